// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ourPort = 7745

var outer = netip.MustParseAddr("203.0.113.7")

// box is a gateway on loopback that speaks PCP, NAT-PMP or nothing of both.
type box struct {
	t     *testing.T
	addr  netip.Addr
	conn  *net.UDPConn
	speak string
	ended chan struct{}

	mu       sync.Mutex
	lifetime time.Duration // granted; 0: what is asked for
	mapped   map[uint16]bool
	asked    int
}

func newBox(t *testing.T, speak string) *box {
	t.Helper()
	b := &box{t: t, addr: netip.MustParseAddr("127.0.0.1"), speak: speak, ended: make(chan struct{}), mapped: map[uint16]bool{}}
	if runtime.GOOS == "linux" { // others that test at the same time have another one
		b.addr = netip.AddrFrom4([4]byte{127, byte(1 + rand.N(250)), byte(rand.N(250)), byte(1 + rand.N(250))})
	}
	var err error
	if b.conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.addr, controlPort))); err != nil {
		t.Skip(err)
	}
	go b.serve()
	t.Cleanup(func() { b.conn.Close(); <-b.ended })
	return b
}

func (b *box) serve() {
	defer close(b.ended)
	buf := make([]byte, 2000)
	for {
		n, from, err := b.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		b.mu.Lock()
		b.asked++
		if answer := b.answerLocked(buf[:n]); answer != nil {
			b.conn.WriteToUDPAddrPort(answer, from)
		}
		b.mu.Unlock()
	}
}

func (b *box) answerLocked(d []byte) []byte {
	switch {
	case b.speak == NATPMP && d[0] == 2:
		return []byte{0, 0x80 | d[1], 0, 1, 0, 0, 0, 9} // unsupported version
	case b.speak == PCP && d[0] == 2 && len(d) == pcpSize:
		life := b.grantLocked(binary.BigEndian.Uint32(d[4:]), binary.BigEndian.Uint16(d[40:]))
		a := append([]byte{2, 0x81, 0, 0}, life...)
		a = append(a, make([]byte, 16)...)
		a = append(a, d[24:42]...)
		a = binary.BigEndian.AppendUint16(a, 40000)
		ip := outer.As16()
		return append(a, ip[:]...)
	case b.speak == NATPMP && d[0] == 0 && d[1] == 0:
		return append([]byte{0, 0x80, 0, 0, 0, 0, 0, 9}, outer.AsSlice()...)
	case b.speak == NATPMP && d[0] == 0 && d[1] == 1 && len(d) == 12:
		life := b.grantLocked(binary.BigEndian.Uint32(d[8:]), binary.BigEndian.Uint16(d[4:]))
		a := append([]byte{0, 0x81, 0, 0, 0, 0, 0, 9}, d[4:6]...)
		a = binary.BigEndian.AppendUint16(a, 40000)
		return append(a, life...)
	}
	return nil
}

func (b *box) grantLocked(seconds uint32, port uint16) []byte {
	if seconds == 0 {
		delete(b.mapped, port)
	} else {
		b.mapped[port] = true
		if b.lifetime > 0 {
			seconds = uint32(b.lifetime / time.Second)
		}
	}
	return binary.BigEndian.AppendUint32(nil, seconds)
}

func (b *box) has(port uint16) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mapped[port]
}

func noUPnP(context.Context, netip.Addr) ([]*url.URL, error) { return nil, errors.New("not here") }

// run runs a mapper until the end of the test, and reports its changes.
func run(t *testing.T, gateway netip.Addr, search func(context.Context, netip.Addr) ([]*url.URL, error)) (*Mapper, chan struct{}, func()) {
	t.Helper()
	changed := make(chan struct{}, 10)
	m := New(Options{
		Port: ourPort, Gateway: func() (netip.Addr, error) { return gateway, nil }, Changed: func() { changed <- struct{}{} },
	})
	m.upnp.search = search
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { m.Run(ctx); close(done) }()
	end := sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(end)
	return m, changed, end
}

func await(t *testing.T, changed chan struct{}) {
	t.Helper()
	select {
	case <-changed:
	case <-time.After(15 * time.Second):
		t.Fatal("nothing changed")
	}
}

func TestMappingIsMadeAndGivenBack(t *testing.T) {
	for _, speak := range []string{PCP, NATPMP} {
		t.Run(speak, func(t *testing.T) {
			b := newBox(t, speak)
			m, changed, end := run(t, b.addr, noUPnP)
			await(t, changed)
			got := m.Mapping()
			if got.Protocol != speak || got.External != netip.AddrPortFrom(outer, 40000) || time.Until(got.Expires) < lease-time.Minute {
				t.Errorf("%+v", got)
			}
			if !b.has(ourPort) {
				t.Error("the gateway knows nothing of it")
			}
			end()
			if b.has(ourPort) {
				t.Error("it was not given back")
			}
		})
	}
}

func TestRefreshAsksAgain(t *testing.T) {
	b := newBox(t, PCP)
	m, changed, _ := run(t, b.addr, noUPnP)
	await(t, changed)
	b.mu.Lock()
	b.speak = ""
	b.mu.Unlock()
	m.Refresh()
	await(t, changed)
	if got := m.Mapping(); got != (Mapping{}) {
		t.Errorf("%+v", got)
	}
}

func TestRenewalAtHalfOfTheTime(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, tt := range []struct{ left, want time.Duration }{{2 * time.Hour, time.Hour}, {time.Minute, minRenew}, {-time.Hour, minRenew}} {
		h := held{Mapping: Mapping{Expires: now.Add(tt.left)}}
		if got := h.renewAfter(now); got != tt.want {
			t.Errorf("%v: %v", tt.left, got)
		}
	}
	if got := (&held{}).renewAfter(now); got != permanentRenew {
		t.Errorf("without an end: %v", got)
	}
}

func TestNoGateway(t *testing.T) {
	m := New(Options{Port: ourPort, Gateway: func() (netip.Addr, error) { return netip.Addr{}, errors.New("none") }})
	if h := m.acquire(context.Background(), held{}); h.by != nil {
		t.Errorf("%+v", h)
	}
}

// igd is a gateway that speaks UPnP.
type igd struct {
	t         *testing.T
	srv       *httptest.Server
	control   string // URL of the service
	permanent bool   // takes mappings without an end only
	taken     string // external port
	mu        sync.Mutex
	mapped    map[string]string
}

func newIGD(t *testing.T) *igd {
	g := &igd{t: t, control: "/control", mapped: map[string]string{}}
	g.srv = httptest.NewServer(g)
	t.Cleanup(g.srv.Close)
	return g
}

func (g *igd) search(context.Context, netip.Addr) ([]*url.URL, error) {
	u, err := url.Parse(g.srv.URL + "/root.xml")
	return []*url.URL{u}, err
}

func (g *igd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		fmt.Fprintf(w, rootXML, g.control)
		return
	}
	body, _ := io.ReadAll(r.Body)
	value := func(name string) string {
		m := regexp.MustCompile("<" + name + ">([^<]*)</").FindSubmatch(body)
		if m == nil {
			return ""
		}
		return string(m[1])
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	action := strings.Trim(r.Header["Soapaction"][0], `"`)
	_, action, _ = strings.Cut(action, "#")
	port, answer := value("NewExternalPort"), ""
	switch action {
	case "GetExternalIPAddress":
		answer = "<NewExternalIPAddress>" + outer.String() + "</NewExternalIPAddress>"
	case "AddPortMapping":
		if g.permanent && value("NewLeaseDuration") != "0" || g.taken == port {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring></s:Fault></s:Body></s:Envelope>`)
			return
		}
		g.mapped[port] = value("NewInternalClient") + ":" + value("NewInternalPort") + "/" + value("NewProtocol")
	case "DeletePortMapping":
		delete(g.mapped, port)
	}
	fmt.Fprintf(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:%sResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">%s</u:%sResponse></s:Body></s:Envelope>`, action, answer, action)
}

const rootXML = `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<SCPDURL>/scpd</SCPDURL><controlURL>%s</controlURL><eventSubURL>/event</eventSubURL></service></serviceList></device></deviceList></device></deviceList></device></root>`

func TestUPnP(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	for name, tt := range map[string]struct {
		set  func(*igd)
		port uint16
		ends bool
	}{
		"plain":                       {func(*igd) {}, ourPort, true},
		"permanent leases only":       {func(g *igd) { g.permanent = true }, ourPort, false},
		"the port is somebody else's": {func(g *igd) { g.taken = fmt.Sprint(ourPort) }, ourPort + 1000, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newIGD(t)
			tt.set(g)
			u := upnp{port: ourPort, search: g.search}
			m, err := u.request(context.Background(), loopback, Mapping{}, lease)
			if err != nil || m.Protocol != UPnP || m.External != netip.AddrPortFrom(outer, tt.port) || m.Expires.IsZero() == tt.ends {
				t.Fatalf("%+v, %v", m, err)
			}
			if got := g.mapped[fmt.Sprint(tt.port)]; got != fmt.Sprintf("127.0.0.1:%d/UDP", ourPort) {
				t.Errorf("mapped to %q", got)
			}
			if again, err := u.request(context.Background(), loopback, m, lease); err != nil || again.External != m.External {
				t.Errorf("renewed: %+v, %v", again, err)
			}
			if _, err := u.request(context.Background(), loopback, m, 0); err != nil || len(g.mapped) != 0 {
				t.Errorf("%v, left %v", err, g.mapped)
			}
		})
	}
}

func TestAbuse16UPnPAnswersPointNowhereElse(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") }))
	defer elsewhere.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(elsewhere.URL, "http://"), ":")
	for _, host := range []string{"localhost", "127.0.0.2", "169.254.169.254", "[::ffff:127.0.0.1]", "127.1"} {
		at, _ := url.Parse("http://" + host + ":" + port + "/latest/meta-data")
		u := upnp{port: ourPort, search: func(context.Context, netip.Addr) ([]*url.URL, error) { return []*url.URL{at}, nil }}
		if m, err := u.request(context.Background(), loopback, Mapping{}, lease); err == nil {
			t.Errorf("%s: %+v", host, m)
		}
	}
	g := newIGD(t)
	for _, control := range []string{"http://169.254.169.254/", "http://localhost:" + port + "/", "https://127.0.0.2:" + port + "/"} {
		g.control = control
		u := upnp{port: ourPort, search: g.search}
		if m, err := u.request(context.Background(), loopback, Mapping{}, lease); err == nil {
			t.Errorf("%s: %+v", control, m)
		}
	}
}

func TestPCPWire(t *testing.T) {
	q := pcpRequest{
		nonce: [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, client: netip.MustParseAddr("192.0.2.5"), port: ourPort,
		lifetime: lease, suggested: netip.MustParseAddrPort("203.0.113.7:40000"),
	}
	want := "02010000" + "00001c20" + "00000000000000000000ffffc0000205" +
		"0102030405060708090a0b0c" + "11000000" + "1e41" + "9c40" + "00000000000000000000ffffcb007107"
	if got := hex.EncodeToString(q.append(nil)); got != want {
		t.Errorf("%s\n%s", got, want)
	}
	answer, _ := hex.DecodeString("02810000" + "00000e10" + "00000009" + "000000000000000000000000" + want[48:])
	external, life, err := q.parse(answer)
	if err != nil || external != q.suggested || life != time.Hour {
		t.Errorf("%v, %v, %v", external, life, err)
	}
	for i, spoil := range []func(b []byte) []byte{
		func(b []byte) []byte { return b[:59] },
		func(b []byte) []byte { b[0] = 0; return b },
		func(b []byte) []byte { b[1] = 1; return b },
		func(b []byte) []byte { b[3] = 2; return b },
		func(b []byte) []byte { b[30]++; return b },
		func(b []byte) []byte { b[36] = 6; return b },
		func(b []byte) []byte { b[41]++; return b },
		func([]byte) []byte { return nil },
	} {
		if _, _, err := q.parse(spoil(bytes.Clone(answer))); !errors.Is(err, errRefused) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func FuzzPCP(f *testing.F) {
	q := pcpRequest{client: netip.MustParseAddr("192.0.2.5"), port: ourPort, lifetime: lease}
	seed := q.append(nil)
	seed[1] |= pcpAnswer
	f.Add(seed)
	f.Add([]byte{0, 0x81, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, d []byte) {
		external, life, err := q.parse(d)
		if err == nil && (life < 0 || life > maxLifetime || external.Addr().Is4In6()) {
			t.Errorf("%v, %v", external, life)
		}
	})
}

func FuzzDescription(f *testing.F) {
	at, _ := url.Parse("http://192.0.2.1:5000/root.xml")
	f.Add(fmt.Appendf(nil, rootXML, "/control"))
	f.Add(fmt.Appendf(nil, rootXML, "http://[::1]:1/%zz"))
	f.Fuzz(func(t *testing.T, d []byte) {
		if root, err := parseDescription(d, at); err == nil {
			service(root, at, onlyTo(netip.MustParseAddr("192.0.2.1")))
		}
	})
}
