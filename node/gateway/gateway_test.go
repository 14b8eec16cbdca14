// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testUser, testPassword = "pilot", "a secret of the daemon"

// fakeNetwork has agents whose ports are on this host's loopback.
type fakeNetwork struct {
	mu     sync.Mutex
	names  map[string]netip.Addr
	dialed []string
	ports  map[netip.AddrPort]string // where they are in truth
	fails  map[netip.AddrPort]error
}

var (
	planner  = netip.MustParseAddr("fd5c:1d2:93a0::a")
	stranger = netip.MustParseAddr("fd5c:1d2:93a0::b")
	prefix   = netip.MustParsePrefix("fd5c:1d2:93a0::/48")
)

func newFakeNetwork() *fakeNetwork {
	return &fakeNetwork{
		names: map[string]netip.Addr{"planner": planner, "planner.pilot.internal": planner},
		ports: make(map[netip.AddrPort]string), fails: make(map[netip.AddrPort]error),
	}
}

func (n *fakeNetwork) Resolve(_ context.Context, host string) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if prefix.Contains(addr) && addr.Zone() == "" {
			return addr, nil
		}
		return addr, ErrForeign
	}
	if addr, ok := n.names[host]; ok {
		return addr, nil
	}
	if host == "stranger" {
		return netip.Addr{}, fmt.Errorf("no consent: %w", syscall.EACCES)
	}
	if !strings.Contains(host, ".") || strings.HasSuffix(host, ".pilot.internal") {
		return netip.Addr{}, &net.DNSError{Err: "no such agent", Name: host, IsNotFound: true}
	}
	return netip.Addr{}, &net.DNSError{UnwrapErr: ErrForeign, Err: ErrForeign.Error(), Name: host, IsNotFound: true}
}

func (n *fakeNetwork) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to := netip.MustParseAddrPort(address)
	n.mu.Lock()
	n.dialed = append(n.dialed, address)
	real, fail := n.ports[to], n.fails[to]
	n.mu.Unlock()
	if fail != nil || real == "" {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.Join(fail, errIf(fail == nil, syscall.ECONNREFUSED))}
	}
	var d net.Dialer
	return d.DialContext(ctx, network, real)
}

func errIf(ok bool, err error) error {
	if ok {
		return err
	}
	return nil
}

func (n *fakeNetwork) ListenPacket(context.Context, string, string) (net.PacketConn, error) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	return &fakePackets{PacketConn: c, n: n}, err
}

// fakePackets sends to agents that are on loopback.
type fakePackets struct {
	net.PacketConn
	n *fakeNetwork
}

func (p *fakePackets) WriteTo(b []byte, to net.Addr) (int, error) {
	p.n.mu.Lock()
	real := p.n.ports[to.(*net.UDPAddr).AddrPort()]
	p.n.mu.Unlock()
	if real == "" {
		return 0, syscall.ECONNREFUSED
	}
	return p.PacketConn.WriteTo(b, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(real)))
}

func (p *fakePackets) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := p.PacketConn.ReadFrom(b)
	if err != nil {
		return n, from, err
	}
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	for agent, real := range p.n.ports {
		if real == from.String() {
			return n, net.UDPAddrFromAddrPort(agent), nil
		}
	}
	return n, from, nil
}

func (n *fakeNetwork) publish(agent netip.AddrPort, real net.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports[agent] = real.String()
}

// proxies are a gateway that runs, and where.
type proxies struct {
	network     *fakeNetwork
	socks, http string
}

func start(t *testing.T, o Options) *proxies {
	t.Helper()
	p := &proxies{network: newFakeNetwork()}
	if o.Network == nil {
		o.Network = p.network
	}
	o.SOCKS5, o.HTTP, o.User, o.Password = listen(t), listen(t), testUser, testPassword
	p.socks, p.http = o.SOCKS5.Addr().String(), o.HTTP.Addr().String()
	g := New(o)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return p
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve gives each connection to f, and closes it afterwards.
func serve(t *testing.T, f func(*net.TCPConn)) net.Addr {
	t.Helper()
	l := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr()
}

// countServer reads all that is said, and only then answers how much that was.
func countServer(c *net.TCPConn) {
	n, _ := io.Copy(io.Discard, c)
	fmt.Fprintf(c, "%d bytes", n)
}

func (p *proxies) dialSOCKS(t *testing.T, address string) (net.Conn, error) {
	t.Helper()
	d, err := proxy.SOCKS5("tcp", p.socks, &proxy.Auth{User: testUser, Password: testPassword}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d.Dial("tcp", address)
}

// half says something, says that this was all, and returns the answer.
func half(t *testing.T, c net.Conn, said string) string {
	t.Helper()
	defer c.Close()
	if _, err := io.WriteString(c, said); err != nil {
		t.Error(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	text, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

func TestSOCKS(t *testing.T) {
	p := start(t, Options{})
	p.network.publish(netip.AddrPortFrom(planner, 80), serve(t, countServer))
	for _, host := range []string{"planner", "planner.pilot.internal", planner.String()} {
		c, err := p.dialSOCKS(t, net.JoinHostPort(host, "80"))
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Repeat("x", 300_000)
		if got := half(t, c, said); got != "300000 bytes" {
			t.Errorf("%s: %q", host, got)
		}
	}
}

// raw speaks SOCKS byte by byte, and returns what the proxy said until it ended or has said enough.
func (p *proxies) raw(t *testing.T, want int, messages ...[]byte) []byte {
	t.Helper()
	c, err := net.Dial("tcp", p.socks)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, m := range messages {
		if _, err := c.Write(m); err != nil {
			break // it may have ended already
		}
	}
	got := make([]byte, want)
	n, _ := io.ReadFull(c, got)
	return got[:n]
}

func greeting() []byte { return []byte{5, 2, 0, 2} }

func credentials(user, password string) []byte {
	b := append([]byte{1, byte(len(user))}, user...)
	return append(append(b, byte(len(password))), password...)
}

func request(command byte, host string, port uint16) []byte {
	b := []byte{5, command, 0}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
		if addr.Is4() {
			raw := addr.As4()
			return append(append(append(b, 1), raw[:]...), byte(port>>8), byte(port))
		}
		raw := addr.As16()
		return append(append(append(b, 4), raw[:]...), byte(port>>8), byte(port))
	}
	return append(append(append(b, 3, byte(len(host))), host...), byte(port>>8), byte(port))
}

// asked is what the proxy replies to a request of a caller who may ask; 255: nothing.
func (p *proxies) asked(t *testing.T, request []byte) byte {
	t.Helper()
	got := p.raw(t, 8, greeting(), credentials(testUser, testPassword), request)
	if len(got) < 6 || string(got[:4]) != "\x05\x02\x01\x00" || got[4] != 5 {
		return 255
	}
	return got[5]
}

func TestSOCKSRefusals(t *testing.T) {
	p := start(t, Options{})
	p.network.fails[netip.AddrPortFrom(stranger, 80)] = syscall.EACCES
	p.network.fails[netip.AddrPortFrom(stranger, 81)] = syscall.ENETUNREACH
	p.network.fails[netip.AddrPortFrom(stranger, 82)] = syscall.EHOSTUNREACH
	p.network.fails[netip.AddrPortFrom(stranger, 83)] = syscall.ETIMEDOUT
	p.network.fails[netip.AddrPortFrom(stranger, 84)] = errors.New("something else")
	for _, c := range []struct {
		host string
		port uint16
		want byte
	}{
		{"planner", 81, replyRefused}, {"planner", 0, replyFailed}, {"nobody", 80, replyNoHost}, {"stranger", 80, replyForbidden},
		{stranger.String(), 80, replyForbidden}, {stranger.String(), 81, replyNoNetwork}, {stranger.String(), 82, replyNoHost},
		{stranger.String(), 83, replyTimeout}, {stranger.String(), 84, replyFailed},
		{"two words", 80, replyNoHost}, {"line\nbreak", 80, replyNoHost}, {"", 80, replyNoHost},
	} {
		if got := p.asked(t, request(commandConnect, c.host, c.port)); got != c.want {
			t.Errorf("%q port %d: reply %d instead of %d", c.host, c.port, got, c.want)
		}
	}
	if got := p.asked(t, request(2, "planner", 80)); got != replyCommand {
		t.Errorf("BIND: reply %d", got)
	}
	if got := p.asked(t, []byte{5, commandConnect, 0, 9, 1, 2, 3, 4, 0, 80}); got != replyAddressType {
		t.Errorf("an unknown type of address: reply %d", got)
	}
	if got := p.asked(t, []byte{4, commandConnect, 0, 1, 1, 2, 3, 4, 0, 80}); got != 255 {
		t.Errorf("SOCKS4: reply %d", got)
	}
	for name, messages := range map[string][][]byte{
		"no password offered":  {{5, 1, 0}},
		"another version":      {{4, 1, 0, 80, 1, 2, 3, 4, 0}},
		"a wrong password":     {greeting(), credentials(testUser, "guess"), request(commandConnect, "planner", 80)},
		"a wrong user":         {greeting(), credentials("guess", testPassword), request(commandConnect, "planner", 80)},
		"no password":          {greeting(), credentials("", ""), request(commandConnect, "planner", 80)},
		"passwords of another": {greeting(), append([]byte{5}, credentials(testUser, testPassword)[1:]...)},
	} {
		got := p.raw(t, 8, messages...)
		if len(got) > 4 || strings.HasSuffix(string(got), "\x01\x00") {
			t.Errorf("%s: the proxy said %x", name, got)
		}
	}
	if len(p.network.dialed) > 8 {
		t.Errorf("dialled %v", p.network.dialed)
	}
}

// A caller that says nothing, or stops in the middle, does not stay.
func TestCallersThatSayNothing(t *testing.T) {
	p := start(t, Options{})
	for _, said := range [][]byte{nil, {5}, greeting(), append(greeting(), 1, 5, 'p')} {
		c, err := net.Dial("tcp", p.socks)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(said); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	// Run ends all the same: see start.
}

func (p *proxies) client(user *url.Userinfo) *http.Client {
	return &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: p.http, User: user}), DisableKeepAlives: true},
	}
}

func (p *proxies) get(t *testing.T, u string) (status int, text string) {
	t.Helper()
	r, err := p.client(url.UserPassword(testUser, testPassword)).Get(u)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	return r.StatusCode, string(body)
}

func TestHTTPForwards(t *testing.T) {
	p := start(t, Options{})
	var seen http.Header
	var host string
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen, host = r.Header.Clone(), r.Host
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "by hop")
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q", r.Method, r.URL, body)
	}))
	defer site.Close()
	p.network.publish(netip.AddrPortFrom(planner, 80), site.Listener.Addr())
	p.network.publish(netip.AddrPortFrom(planner, 8080), site.Listener.Addr())
	request, err := http.NewRequest(http.MethodPut, "http://planner:8080/a%2Fb?c=d", strings.NewReader("a body"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header = http.Header{"X-Forwarded-For": {"192.0.2.1"}, "Connection": {"X-Secret"}, "X-Secret": {"for the proxy"}, "User-Agent": {"test"}}
	answer, err := p.client(url.UserPassword(testUser, testPassword)).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != `PUT /a%2Fb?c=d "a body"` {
		t.Errorf("%q %v", body, err)
	}
	if host != "planner:8080" || seen.Get("X-Forwarded-For") != "192.0.2.1" || seen.Get("User-Agent") != "test" {
		t.Errorf("the server saw %s %v", host, seen)
	}
	for _, name := range []string{"Proxy-Authorization", "X-Secret", "Via"} {
		if seen.Get(name) != "" {
			t.Errorf("the server saw %s: %s", name, seen.Get(name))
		}
	}
	if answer.Header.Get("X-Hop") != "" {
		t.Error("what was meant for the proxy was passed on")
	}
	if status, text := p.get(t, "http://planner/"); status != http.StatusOK || text != `GET / ""` {
		t.Errorf("%d %s", status, text)
	}
}

func TestHTTPRefusals(t *testing.T) {
	p := start(t, Options{})
	p.network.fails[netip.AddrPortFrom(stranger, 83)] = syscall.ETIMEDOUT
	for _, c := range []struct {
		url    string
		status int
		text   string
	}{
		{"http://planner:81/", http.StatusBadGateway, "connection refused"},
		{"http://nobody/", http.StatusBadGateway, "no such agent"},
		{"http://stranger/", http.StatusForbidden, "no consent"},
		{"http://[" + stranger.String() + "]:83/", http.StatusGatewayTimeout, "timed out"},
		{"http://example.com/", http.StatusForbidden, "not a name or an address in the network"},
	} {
		if status, text := p.get(t, c.url); status != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d %s", c.url, status, text)
		}
	}
	for _, c := range []struct {
		request string
		status  string
	}{
		{"GET / HTTP/1.1\r\nHost: planner\r\n", "400"},
		{"GET ftp://planner/ HTTP/1.1\r\nHost: planner\r\n", "501"},
		{"CONNECT planner HTTP/1.1\r\nHost: planner\r\n", "400"},
		{"CONNECT planner:0 HTTP/1.1\r\nHost: planner:0\r\n", "400"},
		{"CONNECT planner:81 HTTP/1.1\r\nHost: planner:81\r\n", "502"},
		{"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n", "403"},
	} {
		if got := p.rawHTTP(t, c.request+"Proxy-Authorization: Basic cGlsb3Q6YSBzZWNyZXQgb2YgdGhlIGRhZW1vbg==\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 "+c.status+" ") {
			t.Errorf("%q: %s", c.request, got)
		}
	}
}

// rawHTTP sends a request and returns the first line of the answer.
func (p *proxies) rawHTTP(t *testing.T, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", p.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1000)
	n, _ := c.Read(buf)
	line, _, _ := strings.Cut(string(buf[:n]), "\r\n")
	return line
}

// Other users of this host, and web pages in its browsers, can connect too.
func TestHTTPWantsAPassword(t *testing.T) {
	p := start(t, Options{})
	for _, user := range []*url.Userinfo{nil, url.User(testUser), url.UserPassword(testUser, "guess"), url.UserPassword("guess", testPassword)} {
		r, err := p.client(user).Get("http://planner/")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusProxyAuthRequired || r.Header.Get("Proxy-Authenticate") == "" {
			t.Errorf("%v: %s", user, r.Status)
		}
	}
	for _, header := range []string{"", "Proxy-Authorization: Basic\r\n", "Proxy-Authorization: Basic !!!!\r\n", "Proxy-Authorization: Bearer x\r\n",
		"Proxy-Authorization: Basic cGlsb3Q=\r\n", "Authorization: Basic cGlsb3Q6YSBzZWNyZXQgb2YgdGhlIGRhZW1vbg==\r\n"} {
		if got := p.rawHTTP(t, "CONNECT planner:80 HTTP/1.1\r\nHost: planner:80\r\n"+header+"\r\n"); !strings.HasPrefix(got, "HTTP/1.1 407 ") {
			t.Errorf("%q: %s", header, got)
		}
	}
	if len(p.network.dialed) > 0 {
		t.Errorf("dialled %v", p.network.dialed)
	}
}

// connectPlanner asks an HTTP proxy for a tunnel.
const connectPlanner = "CONNECT planner:22 HTTP/1.1\r\nHost: planner:22\r\nProxy-Authorization: Basic cGlsb3Q6YSBzZWNyZXQgb2YgdGhlIGRhZW1vbg==\r\n\r\n"

// A tunnel passes on what was sent ahead, and the end of each side on its own.
func TestTunnel(t *testing.T) {
	p := start(t, Options{})
	p.network.publish(netip.AddrPortFrom(planner, 22), serve(t, countServer))
	c, err := net.Dial("tcp", p.http)
	if err != nil {
		t.Fatal(err)
	}
	if got := half(t, c, connectPlanner+"sent ahead"); got != "HTTP/1.1 200 Connection established\r\n\r\n10 bytes" {
		t.Errorf("%q", got)
	}
}

// A far end that breaks off breaks the near end off too: nobody takes what came so far for all.
func TestResetIsPassedOn(t *testing.T) {
	p := start(t, Options{})
	p.network.publish(netip.AddrPortFrom(planner, 22), serve(t, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	}))
	socks, err := p.dialSOCKS(t, "planner:22")
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := net.Dial("tcp", p.http)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		conn net.Conn
		say  string
	}{"SOCKS5": {socks, "x"}, "HTTP, with what was sent ahead": {tunnel, connectPlanner + "x"}} {
		t.Run(name, func(t *testing.T) {
			defer c.conn.Close()
			if _, err := io.WriteString(c.conn, c.say); err != nil {
				t.Fatal(err)
			}
			if text, err := io.ReadAll(c.conn); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%q, then %v", text, err)
			}
		})
	}
}

func TestAssociate(t *testing.T) {
	p := start(t, Options{})
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(append([]byte("echo of "), buf[:n]...), from)
		}
	})
	defer wg.Wait()
	defer echo.Close()
	p.network.publish(netip.AddrPortFrom(planner, 5000), echo.LocalAddr())
	control, err := net.Dial("tcp", p.socks)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	for _, m := range [][]byte{greeting(), credentials(testUser, testPassword), request(commandAssociate, "0.0.0.0", 0)} {
		if _, err := control.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	reply := make([]byte, 14)
	if _, err := io.ReadFull(control, reply); err != nil || reply[5] != replySucceeded || reply[7] != addressIPv4 {
		t.Fatalf("%x %v", reply, err)
	}
	relay := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(reply[12])<<8|int(reply[13])))
	caller, err := net.Dial("udp", relay)
	if err != nil {
		t.Fatal(err)
	}
	defer caller.Close()
	datagram := func(host, text string) []byte {
		return append(append([]byte{0, 0, 0}, request(0, host, 5000)[3:]...), text...)
	}
	want := append(append([]byte{0, 0, 0}, request(0, planner.String(), 5000)[3:]...), "echo of hello"...)
	// What can't be sent is lost, as datagrams are: of several parts, to nobody, cut off.
	for _, lost := range [][]byte{{0, 0, 1, 1}, datagram("nobody", "x"), datagram("127.0.0.1", "x"), {0}, nil} {
		if _, err := caller.Write(lost); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 2000)
	for _, host := range []string{"planner", planner.String()} {
		if _, err := caller.Write(datagram(host, "hello")); err != nil {
			t.Fatal(err)
		}
		if n, err := caller.Read(buf); err != nil || string(buf[:n]) != string(want) {
			t.Errorf("%q %v", buf[:n], err)
		}
	}
	// Another program of this host knows the port, and is not heard.
	other, err := net.Dial("udp", relay)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Write(datagram("planner", "of another")); err != nil {
		t.Fatal(err)
	}
	if _, err := caller.Write(datagram("planner", "hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := caller.Read(buf); err != nil || string(buf[:n]) != string(want) {
		t.Errorf("%q %v", buf[:n], err)
	}
	// It ends with its connection.
	control.Close()
	for err := error(nil); !errors.Is(err, syscall.ECONNREFUSED); {
		if _, err = caller.Write(datagram("planner", "hello")); err == nil {
			_ = caller.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // one may be lost with the association
			_, err = caller.Read(buf)
		}
	}
}

// More callers than there may be wait until one has ended.
func TestConnectionsAreLimited(t *testing.T) {
	l := newLimited(listen(t), 2)
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	var first []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for range 2 {
		first = append(first, <-accepted)
	}
	if n := len(l.slots); n != 2 {
		t.Errorf("%d slots are taken", n)
	}
	first[0].Close()
	first[0].Close() // twice gives back one
	third := <-accepted
	third.Close()
	first[1].Close()
	l.Close()
	if c, more := <-accepted; more {
		t.Errorf("accepted %v after the end", c)
	}
}
