// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

var example = query("www.example.com.", dns.TypeA)

// extendedError gives the RFC 8914 text of a reply.
func extendedError(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.ExtraText
			}
		}
	}
	return ""
}

func newTest(e Exchanger, upstreams ...netip.AddrPort) *Server {
	s := New(Options{Forward: e})
	s.Set(testState(upstreams...))
	return s
}

func TestCacheExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := answering()
		s := newTest(e, upstream1)
		for _, c := range []struct {
			wait  time.Duration
			ttl   uint32
			asked int
		}{{0, 60, 1}, {0, 60, 1}, {10 * time.Second, 50, 1}, {49500 * time.Millisecond, 1, 1}, {500 * time.Millisecond, 60, 2}} {
			time.Sleep(c.wait)
			q := query("wWw.example.com.", dns.TypeA)
			m := ask(t, s, q)
			if m.Id != q.Id || m.Question[0].Name != "wWw.example.com." || len(m.Answer) != 1 || m.Answer[0].Header().Ttl != c.ttl ||
				e.count() != c.asked || m.Authoritative {
				t.Errorf("after %v: asked %d times, want %d; TTL %d wanted in %v", c.wait, e.count(), c.asked, c.ttl, m)
			}
		}
		// Other upstreams are another view of the world.
		s.Set(testState(upstream1))
		if ask(t, s, example); e.count() != 2 {
			t.Error("the cache was lost with the same upstreams")
		}
		s.Set(testState(upstream2))
		if ask(t, s, example); e.count() != 3 {
			t.Error("the cache outlived its upstreams")
		}
	})
}

func TestCacheLifetimes(t *testing.T) {
	const soa = "example.com. %d IN SOA ns. m. 1 2 3 4 %d"
	a := "www.example.com. %d IN A 198.51.100.7"
	for name, c := range map[string]struct {
		rcode      int
		answer, ns string
		cut        bool
		want       time.Duration
	}{
		"answer":         {0, fmt.Sprintf(a, 20), "", false, 20 * time.Second},
		"capped":         {0, fmt.Sprintf(a, 1<<20), "", false, time.Hour},
		"zero":           {0, fmt.Sprintf(a, 0), "", false, 0},
		"shorter NS":     {0, fmt.Sprintf(a, 20), "example.com. 7 IN NS ns.example.com.", false, 7 * time.Second},
		"NXDOMAIN":       {dns.RcodeNameError, "", fmt.Sprintf(soa, 100, 30), false, 30 * time.Second},
		"NXDOMAIN, SOA":  {dns.RcodeNameError, "", fmt.Sprintf(soa, 10, 30), false, 10 * time.Second},
		"NODATA":         {0, "", fmt.Sprintf(soa, 100, 30), false, 30 * time.Second},
		"alias to none":  {0, "www.example.com. 900 IN CNAME x.example.com.", fmt.Sprintf(soa, 100, 30), false, 30 * time.Second},
		"negative cap":   {dns.RcodeNameError, "", fmt.Sprintf(soa, 90000, 90000), false, 5 * time.Minute},
		"without SOA":    {dns.RcodeNameError, "", "", false, 0},
		"server failure": {dns.RcodeServerFailure, "", fmt.Sprintf(soa, 100, 30), false, 0},
		"truncated":      {0, fmt.Sprintf(a, 20), "", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &exchangeFunc{f: func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
					m := reply(q)
					if c.answer != "" {
						m = reply(q, c.answer)
					}
					if c.ns != "" {
						m.Ns = reply(q, c.ns).Answer
					}
					m.Rcode, m.Truncated = c.rcode, c.cut
					return m, nil
				}}
				s := newTest(e, upstream1)
				m := ask(t, s, example)
				if m.Rcode != c.rcode || m.Truncated != c.cut {
					t.Errorf("answer is %v", m)
				}
				before := e.count()
				if c.want > 0 {
					time.Sleep(c.want - 1)
					if ask(t, s, example); e.count() != before {
						t.Error("not in the cache just before its end")
					}
					time.Sleep(time.Nanosecond)
				}
				if ask(t, s, example); e.count() == before {
					t.Error("in the cache after its end")
				}
			})
		})
	}
}

func TestCacheBounded(t *testing.T) {
	s := newTest(answering(), upstream1)
	for i := range cacheEntries + 500 {
		ask(t, s, query(fmt.Sprintf("h%d.example.com.", i), dns.TypeA))
	}
	if n := len(s.forward.cache.entries); n > cacheEntries || n < cacheEntries/2 {
		t.Errorf("%d entries", n)
	}
	s.forward.reset()
	big := reply(example)
	for range cacheMessage / 16 {
		big.Answer = append(big.Answer, &dns.A{Hdr: header("www.example.com.", dns.TypeA), A: net.IPv4(10, 0, 0, 1)})
	}
	s.forward.cache.put(question{name: "www.example.com."}, big, time.Now())
	if len(s.forward.cache.entries) != 0 {
		t.Error("a huge answer was kept")
	}
}

// DO and CD are passed on and don't share answers; AD comes back only to who asked.
func TestDNSSECBits(t *testing.T) {
	e := &exchangeFunc{f: func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
		m := reply(q, fmt.Sprintf("www.example.com. 60 IN TXT \"do=%v cd=%v\"", q.IsEdns0().Do(), q.CheckingDisabled))
		m.AuthenticatedData = true
		m.SetEdns0(4096, q.IsEdns0().Do())
		return m, nil
	}}
	s := newTest(e, upstream1)
	for range 2 {
		for _, do := range []bool{false, true} {
			for _, cd := range []bool{false, true} {
				for _, ad := range []bool{false, true} {
					q := edns(query("www.example.com.", dns.TypeTXT), 1232, do)
					q.CheckingDisabled, q.AuthenticatedData = cd, ad
					m := ask(t, s, q)
					want := fmt.Sprintf("do=%v cd=%v", do, cd)
					if got := m.Answer[0].(*dns.TXT).Txt[0]; got != want || m.CheckingDisabled != cd ||
						m.AuthenticatedData != (ad || do) || m.IsEdns0().Do() != do || len(m.Extra) != 1 {
						t.Errorf("%s: %v", want, m)
					}
				}
			}
		}
	}
	if e.count() != 4 {
		t.Errorf("asked %d times, want 4", e.count())
	}
}

func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := true
		e := &exchangeFunc{f: func(ctx context.Context, _ string, u netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
			if u == upstream1 && dead {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return reply(q), nil
		}}
		s := newTest(e, upstream1, upstream2)
		took := func() time.Duration {
			start := time.Now()
			if m := ask(t, s, example); m.Rcode != dns.RcodeSuccess {
				t.Errorf("answer is %v", m)
			}
			return time.Since(start)
		}
		if d := took(); d != upstreamTimeout {
			t.Errorf("the first question took %v", d)
		}
		if d := took(); d != 0 {
			t.Errorf("the second question took %v: the dead upstream is not remembered", d)
		}
		time.Sleep(deadFor)
		dead = false
		took()
		if last := e.asked[len(e.asked)-1]; !strings.Contains(last, upstream1.String()) {
			t.Errorf("asked %s last, want the first upstream again", last)
		}
		dead = true
		took()
		s.Set(testState(upstream1)) // it alone, and dead
		start := time.Now()
		m := ask(t, s, edns(example.Copy(), 1232, false))
		if m.Rcode != dns.RcodeServerFailure || extendedError(m) != "no resolver answered" || time.Since(start) != upstreamTimeout {
			t.Errorf("after %v: %v", time.Since(start), m)
		}
	})
}

func TestUpstreamAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *dns.Msg)
		rcode  int
		asked  []string // of the first upstream
	}{
		"refused":        {func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }, dns.RcodeRefused, []string{"udp"}},
		"wrong name":     {func(m *dns.Msg) { m.Question[0].Name = "evil.example.com." }, dns.RcodeServerFailure, []string{"udp"}},
		"wrong type":     {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX }, dns.RcodeServerFailure, []string{"udp"}},
		"wrong class":    {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeServerFailure, []string{"udp"}},
		"wrong ID":       {func(m *dns.Msg) { m.Id++ }, dns.RcodeServerFailure, []string{"udp"}},
		"no response":    {func(m *dns.Msg) { m.Response = false }, dns.RcodeServerFailure, []string{"udp"}},
		"no question":    {func(m *dns.Msg) { m.Question = nil }, dns.RcodeServerFailure, []string{"udp"}},
		"other case":     {func(m *dns.Msg) { m.Question[0].Name = "WWW.example.com." }, dns.RcodeSuccess, []string{"udp"}},
		"truncated":      {func(m *dns.Msg) { m.Truncated = true }, dns.RcodeSuccess, []string{"udp", "tcp"}},
		"EDNS not known": {func(m *dns.Msg) { m.Rcode = dns.RcodeFormatError }, dns.RcodeSuccess, []string{"udp", "udp"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := &exchangeFunc{}
			first := 0
			e.f = func(_ context.Context, network string, u netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
				m := reply(q)
				if u == upstream2 {
					m.Rcode = dns.RcodeServerFailure
					return m, nil
				}
				if first++; first == 1 {
					c.change(m)
				}
				return m, nil
			}
			m := ask(t, newTest(e, upstream1, upstream2), example)
			// The first answer that isn't a failure to answer is the one given.
			if m.Rcode != c.rcode {
				t.Errorf("answer is %v", m)
			}
			var got []string
			for _, a := range e.asked {
				if strings.Contains(a, upstream1.String()) {
					got = append(got, a[:3])
				}
			}
			if !slices.Equal(got, c.asked) {
				t.Errorf("asked %v, want %v", got, c.asked)
			}
		})
	}
}

func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &exchangeFunc{f: func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
			time.Sleep(time.Second)
			return reply(q), nil // not for the cache
		}}
		s := newTest(e, upstream1)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				q := query("www.example.com.", dns.TypeA)
				if m := ask(t, s, q); m.Rcode != 0 || m.Id != q.Id {
					t.Errorf("answer is %v", m)
				}
			})
		}
		wg.Wait()
		if e.count() != 1 {
			t.Errorf("asked %d times", e.count())
		}
	})
}

// An upstream that sends the question back to us gets no second one.
func TestLoopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *Server
		e := &exchangeFunc{f: func(ctx context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
			wire, err := q.Pack()
			if err != nil {
				return nil, err
			}
			out := s.respond(ctx, wire, true)
			return parse(t, out), nil
		}}
		s = newTest(e, upstream1)
		if m := ask(t, s, example); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("answer is %v", m)
		}
		if e.count() != 1 {
			t.Errorf("asked %d times", e.count())
		}
	})
}

func TestUpstreamsThatLeadBack(t *testing.T) {
	e := answering()
	s := New(Options{Forward: e})
	st := testState(
		netip.AddrPortFrom(service, 53), netip.AddrPortFrom(planner, 53), netip.MustParseAddrPort("[fd5c:1:2::99]:53"),
		netip.MustParseAddrPort("192.0.2.9:53"), netip.MustParseAddrPort("[::ffff:192.0.2.9]:53"), netip.MustParseAddrPort("0.0.0.0:53"),
		netip.MustParseAddrPort("[::]:53"), netip.MustParseAddrPort("192.0.2.1:0"), netip.MustParseAddrPort("224.0.0.1:53"), netip.AddrPort{})
	st.Own = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
	s.Set(st)
	m := ask(t, s, edns(example.Copy(), 1232, false))
	if m.Rcode != dns.RcodeServerFailure || extendedError(m) != errNoUpstreams.Error() || e.count() != 0 {
		t.Errorf("asked %v, answer %v", e.asked, m)
	}
	if m := ask(t, s, example); m.Rcode != dns.RcodeServerFailure || m.IsEdns0() != nil {
		t.Errorf("without EDNS: %v", m)
	}
	st.Upstreams = append(st.Upstreams, upstream1, upstream1)
	s.Set(st)
	if got := s.zone.Load().upstreams; !slices.Equal(got, []netip.AddrPort{upstream1}) {
		t.Errorf("upstreams are %v", got)
	}
}

func TestForwardsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &exchangeFunc{f: func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
			time.Sleep(time.Second)
			return reply(q), nil
		}}
		s := newTest(e, upstream1)
		var wg sync.WaitGroup
		for i := range maxForwards {
			wg.Go(func() { ask(t, s, query(fmt.Sprintf("h%d.example.com.", i), dns.TypeA)) })
		}
		synctest.Wait()
		m := ask(t, s, edns(example.Copy(), 1232, false))
		if m.Rcode != dns.RcodeServerFailure || extendedError(m) != errBusy.Error() {
			t.Errorf("answer is %v", m)
		}
		if m := ask(t, s, query("planner.pilot.internal.", dns.TypeAAAA)); len(m.Answer) != 1 {
			t.Errorf("own names wait too: %v", m)
		}
		wg.Wait()
		if m := ask(t, s, example); m.Rcode != 0 {
			t.Errorf("afterwards: %v", m)
		}
	})
}

func TestStopWhileForwarding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &exchangeFunc{f: func(ctx context.Context, _ string, _ netip.AddrPort, _ *dns.Msg) (*dns.Msg, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		s := newTest(e, upstream1, upstream2)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		start := time.Now()
		for range 2 { // one that asks, one that waits for it
			wg.Go(func() {
				_, err := s.forward.ask(ctx, question{name: "a.b."}, s.zone.Load().upstreams)
				if !errors.Is(err, context.Canceled) {
					t.Errorf("error is %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if time.Since(start) != 0 || len(s.forward.dead) != 0 || e.count() != 1 {
			t.Errorf("took %v, dead %v, asked %v", time.Since(start), s.forward.dead, e.asked)
		}
	})
}

// The real exchanger against a server on loopback that truncates over UDP.
func TestRealUpstream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	ids, ports := map[uint16]bool{}, map[string]bool{}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if w.LocalAddr().Network() == "udp" {
			mu.Lock()
			ids[q.Id], ports[w.RemoteAddr().String()] = true, true
			mu.Unlock()
			m := reply(q)
			m.Truncated = strings.HasPrefix(q.Question[0].Name, "big.")
			w.WriteMsg(m)
			return
		}
		w.WriteMsg(reply(q, q.Question[0].Name+` 60 IN TXT "over TCP"`))
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, srv := range []*dns.Server{{PacketConn: u, Handler: handler}, {Listener: l, Handler: handler}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() {
			if err := srv.ActivateAndServe(); err != nil {
				t.Error(err)
			}
		})
		<-started
		defer srv.Shutdown()
	}
	s := New(Options{})
	s.Set(testState(netip.MustParseAddrPort(l.Addr().String())))
	udp, _ := serve(t, s)
	client := dns.Client{}
	m, _, err := client.Exchange(query("big.example.com.", dns.TypeTXT), udp)
	if err != nil || m.Truncated || len(m.Answer) != 1 {
		t.Errorf("answer %v, %v", m, err)
	}
	for range 20 {
		if m, _, err := client.Exchange(query("small.example.com.", dns.TypeTXT), udp); err != nil || m.Rcode != 0 {
			t.Errorf("answer %v, %v", m, err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < 18 || len(ports) < 15 {
		t.Errorf("21 questions under %d IDs from %d ports", len(ids), len(ports))
	}
	// A closed port is noticed, not waited for; and a stop isn't waited for either.
	ctx, cancel := context.WithCancel(t.Context())
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	done := make(chan error, 1)
	go func() {
		_, err := (&sockets{}).Exchange(ctx, "udp", netip.MustParseAddrPort(silent.LocalAddr().String()), query("a.b.", dns.TypeA))
		done <- err
	}()
	if _, _, err := silent.ReadFrom(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("an exchange without an answer succeeded")
	}
}
