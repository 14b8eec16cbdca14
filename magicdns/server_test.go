// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/netstack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	prefix    = netip.MustParsePrefix("fd5c:1:2::/48")
	service   = netip.MustParseAddr("fd5c:1:2::53")
	planner   = netip.MustParseAddr("fd5c:1:2:aaaa::1")
	warehouse = netip.MustParseAddr("fd5c:1:2:bbbb::2")
	upstream1 = netip.MustParseAddrPort("192.0.2.1:53")
	upstream2 = netip.MustParseAddrPort("192.0.2.2:53")
)

const reverseZone = "2.0.0.0.1.0.0.0.c.5.d.f.ip6.arpa."

func testState(upstreams ...netip.AddrPort) State {
	return State{
		Zone: "pilot.internal", Service: service, Prefix: prefix, Upstreams: upstreams,
		Self: []Host{{Name: "planner", Addr: planner}},
		Hosts: []Host{{Name: "warehouse", Addr: warehouse, Services: []Service{
			{Name: "a2a", Port: 8080, ALPN: []string{"h2"}, Text: []string{`quote " and \ and`, "line\nend"}},
		}}},
	}
}

// exchangeFunc is an Exchanger that counts and remembers what it was asked.
type exchangeFunc struct {
	f func(ctx context.Context, network string, u netip.AddrPort, q *dns.Msg) (*dns.Msg, error)

	mu    sync.Mutex
	asked []string
}

func (e *exchangeFunc) Exchange(ctx context.Context, network string, u netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	e.mu.Lock()
	e.asked = append(e.asked, fmt.Sprintf("%s %v %s %s", network, u, q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype]))
	e.mu.Unlock()
	return e.f(ctx, network, u, q)
}

func (e *exchangeFunc) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.asked)
}

// answering gives an A record with a TTL of 60 s for every question.
func answering() *exchangeFunc {
	return &exchangeFunc{f: func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
		return reply(q, fmt.Sprintf("%s 60 IN A 198.51.100.7", q.Question[0].Name)), nil
	}}
}

func reply(q *dns.Msg, rrs ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	for _, s := range rrs {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

func query(name string, kind uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	return m
}

func edns(m *dns.Msg, size uint16, do bool) *dns.Msg { m.SetEdns0(size, do); return m }

// ask puts a question to the wire handler.
func ask(t testing.TB, s *Server, q *dns.Msg) *dns.Msg {
	t.Helper()
	wire, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, s.respond(t.Context(), wire, true))
}

func parse(t testing.TB, wire []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatalf("answer %x: %v", wire, err)
	}
	return m
}

// serve runs s on loopback sockets until the test ends.
func serve(t *testing.T, s *Server) (udp, tcp string) {
	t.Helper()
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, s, u, l)
	return u.LocalAddr().String(), l.Addr().String()
}

func run(t *testing.T, s *Server, u net.PacketConn, l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, u, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestMessageRules(t *testing.T) {
	s := New(Options{Forward: answering()})
	s.Set(testState(upstream1))
	pack := func(m *dns.Msg) []byte {
		wire, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return wire
	}
	good := query("planner.pilot.internal.", dns.TypeAAAA)
	notify := good.Copy()
	notify.Opcode = dns.OpcodeNotify
	two := good.Copy()
	two.Question = append(two.Question, two.Question[0])
	none := good.Copy()
	none.Question = nil
	response := good.Copy()
	response.Response = true
	twoOPT := edns(edns(good.Copy(), 1232, false), 512, false)
	version := edns(good.Copy(), 1232, true)
	version.IsEdns0().SetVersion(1)
	cut := pack(good)
	for name, c := range map[string]struct {
		wire  []byte
		rcode int // -1: no answer
	}{
		"good":          {pack(good), 0},
		"opcode":        {pack(notify), dns.RcodeNotImplemented},
		"two questions": {pack(two), dns.RcodeFormatError},
		"no question":   {pack(none), dns.RcodeFormatError},
		"response":      {pack(response), -1},
		"empty":         {nil, -1},
		"short":         {cut[:11], -1},
		"header only":   {cut[:12], dns.RcodeFormatError},
		"cut":           {cut[:20], dns.RcodeFormatError},
		"two OPTs":      {pack(twoOPT), dns.RcodeFormatError},
		"EDNS version":  {pack(version), dns.RcodeBadVers},
	} {
		out := s.respond(t.Context(), c.wire, true)
		if c.rcode < 0 {
			if out != nil {
				t.Errorf("%s: answered %x", name, out)
			}
			continue
		}
		m := parse(t, out)
		if m.Rcode != c.rcode || !m.Response || m.Id != binary.BigEndian.Uint16(c.wire) {
			t.Errorf("%s: %v", name, m)
		}
		if name == "EDNS version" && (m.IsEdns0() == nil || m.IsEdns0().Version() != 0 || !m.IsEdns0().Do()) {
			t.Errorf("%s: OPT of %v", name, m)
		}
	}
	if m := ask(t, s, good); m.IsEdns0() != nil {
		t.Error("OPT in the answer to a query without")
	}
	if opt := ask(t, s, edns(good.Copy(), 4096, true)).IsEdns0(); opt == nil || !opt.Do() || opt.UDPSize() != maxUDP {
		t.Errorf("OPT is %v", opt)
	}
}

func TestTruncation(t *testing.T) {
	s := New(Options{Forward: &exchangeFunc{f: func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
		m := reply(q)
		for i := range 200 {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(q.Question[0].Name, dns.TypeA), A: net.IPv4(10, 0, 0, byte(i))})
		}
		return m, nil
	}}})
	s.Set(testState(upstream1))
	udp, tcp := serve(t, s)
	for _, c := range []struct {
		network, addr string
		size          uint16 // 0: no EDNS
		limit         int
	}{
		{"udp", udp, 0, 512}, {"udp", udp, 100, 512}, {"udp", udp, 1000, 1000}, {"udp", udp, 65535, 1232}, {"tcp", tcp, 0, 65535},
	} {
		q := query("big.example.com.", dns.TypeA)
		if c.size != 0 {
			q = edns(q, c.size, false)
		}
		client := dns.Client{Net: c.network, UDPSize: 4096}
		m, _, err := client.Exchange(q, c.addr)
		if err != nil {
			t.Fatal(err)
		}
		m.Compress = true
		if m.Truncated != (c.network == "udp") || m.Len() > c.limit || m.Len() < c.limit/2 && m.Truncated {
			t.Errorf("%s, size %d: truncated %v, %d bytes", c.network, c.size, m.Truncated, m.Len())
		}
		if c.network == "tcp" && len(m.Answer) != 200 {
			t.Errorf("TCP: %d records", len(m.Answer))
		}
	}
}

// Questions on one connection don't wait for each other.
func TestPipelining(t *testing.T) {
	release := make(chan struct{})
	s := New(Options{Forward: &exchangeFunc{f: func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
		<-release
		return reply(q), nil
	}}})
	s.Set(testState(upstream1))
	_, tcp := serve(t, s)
	conn, err := dns.Dial("tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	slow, fast := query("slow.example.com.", dns.TypeA), query("planner.pilot.internal.", dns.TypeAAAA)
	for _, q := range []*dns.Msg{slow, fast} {
		if err := conn.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []*dns.Msg{fast, slow} {
		m, err := conn.ReadMsg()
		if err != nil || m.Id != want.Id {
			t.Fatalf("answer %d: %v, %v", i, m, err)
		}
		if i == 0 {
			close(release)
		}
	}
	// A message that ends early ends the connection, nothing else.
	if _, err := conn.Conn.Write([]byte{0, 50, 1}); err != nil {
		t.Fatal(err)
	}
	conn.Conn.(*net.TCPConn).CloseWrite()
	if _, err := conn.Conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after a cut message: %v", err)
	}
}

func TestServeEnds(t *testing.T) {
	s := New(Options{})
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), u, l) }()
	c, err := net.Dial("tcp", l.Addr().String()) // an idle connection must not hold it up
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	u.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after its socket failed: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the other socket is open: %v", err)
	}
}

func TestSetWhileAsked(t *testing.T) {
	s := New(Options{Forward: answering()})
	s.Set(testState(upstream1))
	udp, _ := serve(t, s)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				st := testState(upstream1)
				if i%2 == 0 {
					st.Hosts, st.Upstreams = nil, []netip.AddrPort{upstream2}
				}
				s.Set(st)
			}
		}
	})
	var askers sync.WaitGroup
	for range 4 {
		askers.Go(func() {
			client := dns.Client{}
			for range 100 {
				for _, name := range []string{"warehouse.pilot.internal.", "example.com."} {
					m, _, err := client.Exchange(query(name, dns.TypeAAAA), udp)
					if err != nil || m.Rcode != dns.RcodeSuccess && (name == "example.com." || m.Rcode != dns.RcodeNameError) {
						t.Errorf("%s: %v, %v", name, m, err)
						return
					}
				}
			}
		})
	}
	askers.Wait()
	close(stop)
	wg.Wait()
}

// As in the node: the server on one userspace stack, the client on another.
func TestOverNetstack(t *testing.T) {
	server, err := netstack.New(netstack.Options{Addresses: []netip.Addr{service}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	client, err := netstack.New(netstack.Options{Addresses: []netip.Addr{planner}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	pump := func(from, to *netstack.Stack) {
		buf, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
		for {
			if _, err := from.ReadPackets(ctx, buf, sizes, 0); err != nil {
				return
			}
			to.Deliver(buf[0][:sizes[0]])
		}
	}
	wg.Go(func() { pump(server, client) })
	wg.Go(func() { pump(client, server) })
	t.Cleanup(func() { cancel(); wg.Wait() })

	port := netip.AddrPortFrom(service, 53)
	u, err := server.ListenUDP(port)
	if err != nil {
		t.Fatal(err)
	}
	l, err := server.ListenTCP(port)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Forward: answering()})
	s.Set(testState(upstream1))
	run(t, s, u, l)
	for _, network := range []string{"udp", "tcp"} {
		conn, err := client.DialContext(ctx, network, port.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := dns.Client{Net: network}
		m, _, err := c.ExchangeWithConn(query("warehouse.pilot.internal.", dns.TypeAAAA), &dns.Conn{Conn: conn})
		if err != nil || len(m.Answer) != 1 || !m.Answer[0].(*dns.AAAA).AAAA.Equal(warehouse.AsSlice()) {
			t.Errorf("%s: %v, %v", network, m, err)
		}
	}
}

func FuzzMessage(f *testing.F) {
	for _, q := range []*dns.Msg{
		query("planner.pilot.internal.", dns.TypeAAAA), query("planner.", dns.TypeA), query("example.com.", dns.TypeA),
		query(reverseName(planner), dns.TypePTR), query(reverseZone, dns.TypeSOA), query(".", dns.TypeNS),
		query("_a2a.warehouse.pilot.internal.", dns.TypeSVCB), query("a.localhost.", dns.TypeANY),
		edns(query("pilot.internal.", dns.TypeANY), 512, true), edns(query("x.pilot.internal.", dns.TypeTXT), 65535, false),
	} {
		wire, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, true)
		f.Add(wire[:len(wire)-3], false)
	}
	s := New(Options{Forward: answering()})
	s.Set(testState(upstream1))
	f.Fuzz(func(t *testing.T, wire []byte, udp bool) {
		out := s.respond(t.Context(), wire, udp)
		if out == nil {
			return
		}
		m := parse(t, out)
		if !m.Response || m.Id != binary.BigEndian.Uint16(wire) || udp && len(out) > maxUDP {
			t.Fatalf("answer of %d bytes: %v", len(out), m)
		}
		if again := s.respond(t.Context(), out, udp); again != nil {
			t.Fatal("an answer was answered")
		}
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.AAAA); ok {
				got, _ := netip.AddrFromSlice(a.AAAA)
				if !slices.Contains([]netip.Addr{planner, warehouse, service, netip.IPv6Loopback()}, got) {
					t.Fatalf("answered %v", a)
				}
			}
		}
	})
}
