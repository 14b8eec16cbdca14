// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// gate lets through what is below example.com, and no private address.
type gate struct{ admitted []string }

func (*gate) Ask(name string) bool {
	return name == "example.com" || strings.HasSuffix(name, ".example.com")
}

func (g *gate) Admit(name string, a netip.Addr, ttl time.Duration) bool {
	g.admitted = append(g.admitted, fmt.Sprintf("%s %v %v", name, a, ttl))
	return a.IsValid() && !a.IsPrivate() && !a.Is4In6()
}

func gated(rrs ...string) (*gate, *Server, *exchangeFunc) {
	g := new(gate)
	e := &exchangeFunc{f: func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
		m := reply(q, rrs...)
		m.AuthenticatedData = true
		for _, s := range []string{"example.com. 60 IN NS ns.example.com.", "example.com. 60 IN SOA ns.example.com. h.example.com. 1 2 3 4 60"} {
			rr, _ := dns.NewRR(s)
			m.Ns = append(m.Ns, rr)
		}
		glue, _ := dns.NewRR("ns.example.com. 60 IN A 10.0.0.9")
		m.Extra = append(m.Extra, glue)
		return m, nil
	}}
	s := New(Options{Forward: e, Gate: g})
	s.Set(testState(upstream1))
	return g, s, e
}

func TestGateRefusesNames(t *testing.T) {
	_, s, e := gated()
	for _, name := range []string{"www.example.org.", "example.com.evil.org.", "notexample.com.", "7.113.0.203.in-addr.arpa."} {
		m := ask(t, s, edns(query(name, dns.TypeA), 1232, false))
		if m.Rcode != dns.RcodeNameError || extendedError(m) != "no rule allows this name" || len(m.Answer) != 0 {
			t.Errorf("%s: %v", name, m)
		}
	}
	if e.count() != 0 {
		t.Errorf("%d questions were forwarded", e.count())
	}
	// The network's own names are none of its business.
	if m := ask(t, s, query("planner.pilot.internal.", dns.TypeAAAA)); len(m.Answer) != 1 {
		t.Errorf("an agent's name: %v", m)
	}
}

func TestGateFiltersAnswers(t *testing.T) {
	g, s, _ := gated("WWW.example.com. 30 IN CNAME cdn.example.net.", "cdn.example.net. 60 IN A 198.51.100.7",
		"cdn.example.net. 60 IN A 10.0.0.7", "cdn.example.net. 60 IN AAAA ::ffff:127.0.0.1")
	m := ask(t, s, edns(query("WwW.example.com.", dns.TypeA), 1232, false))
	var got []string
	for _, rr := range m.Answer {
		got = append(got, strings.Join(strings.Fields(rr.String()), " "))
	}
	if want := []string{"WWW.example.com. 30 IN CNAME cdn.example.net.", "cdn.example.net. 60 IN A 198.51.100.7"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if m.Rcode != dns.RcodeSuccess || m.AuthenticatedData || !strings.Contains(extendedError(m), "must not be reached") {
		t.Errorf("%v", m)
	}
	if len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA {
		t.Errorf("authority: %v", m.Ns)
	}
	if len(m.Extra) != 1 {
		t.Errorf("additional: %v", m.Extra)
	}
	// All that was shown was asked about, under the name of the question.
	want := []string{"www.example.com 198.51.100.7 1m0s", "www.example.com 10.0.0.7 1m0s", "www.example.com ::ffff:127.0.0.1 1m0s"}
	if !slices.Equal(g.admitted, want) {
		t.Errorf("admitted: %q", g.admitted)
	}
	// An answer from the cache opens the way anew.
	ask(t, s, query("www.example.com.", dns.TypeA))
	if len(g.admitted) != 2*len(want) {
		t.Errorf("admitted: %q", g.admitted)
	}
}

func TestGateTakesHintsAway(t *testing.T) {
	_, s, _ := gated(`www.example.com. 60 IN HTTPS 1 . alpn="h2" ipv4hint="10.0.0.1" ipv6hint="::1"`,
		`www.example.com. 60 IN SVCB 1 . port="8443" ipv4hint="10.0.0.1"`)
	for range 2 { // also from the cache
		m := ask(t, s, query("www.example.com.", dns.TypeHTTPS))
		if text := fmt.Sprint(m.Answer); len(m.Answer) != 2 || strings.Contains(text, "hint") || !strings.Contains(text, "h2") || !strings.Contains(text, "8443") {
			t.Errorf("%v", m.Answer)
		}
	}
}

// A machine that is apart from the network may ask resolvers that have addresses of it.
func TestApart(t *testing.T) {
	e := answering()
	s := New(Options{Forward: e})
	st := testState(netip.AddrPortFrom(service, 53))
	if s.Set(st); ask(t, s, example).Rcode != dns.RcodeServerFailure || e.count() != 0 {
		t.Error("a resolver inside of the network is asked")
	}
	st.Apart = true
	if s.Set(st); ask(t, s, example).Rcode != dns.RcodeSuccess || e.count() != 1 {
		t.Error("a resolver inside of the network is not asked by a machine outside")
	}
}
