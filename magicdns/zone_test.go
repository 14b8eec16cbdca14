// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestZone(t *testing.T) {
	e := answering()
	s := New(Options{Forward: e})
	s.Set(testState(upstream1))
	udp, tcp := serve(t, s)
	ptr := func(a netip.Addr) string { return reverseName(a) }
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		want  string // data of the answer; empty: none, and a SOA
	}{
		{"planner.pilot.internal.", dns.TypeAAAA, 0, planner.String()},
		{"warehouse.pilot.internal.", dns.TypeAAAA, 0, warehouse.String()},
		{"WareHouse.Pilot.INTERNAL.", dns.TypeAAAA, 0, warehouse.String()},
		{"warehouse.pilot.internal.", dns.TypeANY, 0, warehouse.String()},
		{"pilot.internal.", dns.TypeAAAA, 0, service.String()},
		{"pilot.internal.", dns.TypeNS, 0, "pilot.internal."},
		{"pilot.internal.", dns.TypeSOA, 0, "pilot.internal. hostmaster.pilot.internal."},
		{"pilot.internal.", dns.TypeA, 0, ""},
		{"pilot.internal.", dns.TypeDS, 0, ""},
		{"planner.pilot.internal.", dns.TypeA, 0, ""},
		{"planner.pilot.internal.", dns.TypeMX, 0, ""},
		{"planner.pilot.internal.", dns.TypeHTTPS, 0, ""},
		{"auditor.pilot.internal.", dns.TypeAAAA, dns.RcodeNameError, ""},
		{"auditor.pilot.internal.", dns.TypeANY, dns.RcodeNameError, ""},
		{"www.planner.pilot.internal.", dns.TypeAAAA, dns.RcodeNameError, ""},
		{`plan\.ner.pilot.internal.`, dns.TypeAAAA, dns.RcodeNameError, ""},
		{`\000.pilot.internal.`, dns.TypeAAAA, dns.RcodeNameError, ""},
		{"_a2a.warehouse.pilot.internal.", dns.TypeSVCB, 0, `1 warehouse.pilot.internal. alpn="h2" port="8080"`},
		{"_a2a.warehouse.pilot.internal.", dns.TypeTXT, 0, `"quote \" and \\ and" "line\010end"`},
		{"_a2a.warehouse.pilot.internal.", dns.TypeAAAA, 0, ""},
		{"_a2a.planner.pilot.internal.", dns.TypeSVCB, dns.RcodeNameError, ""},
		{ptr(planner), dns.TypePTR, 0, "planner.pilot.internal."},
		{strings.ToUpper(ptr(warehouse)), dns.TypePTR, 0, "warehouse.pilot.internal."},
		{ptr(service), dns.TypePTR, 0, "pilot.internal."},
		{ptr(planner), dns.TypeAAAA, 0, ""},
		{ptr(planner)[2:], dns.TypePTR, 0, ""},
		{"a." + reverseZone, dns.TypePTR, 0, ""},
		{"c." + reverseZone, dns.TypePTR, dns.RcodeNameError, ""},
		{ptr(netip.MustParseAddr("fd5c:1:2:cccc::3")), dns.TypePTR, dns.RcodeNameError, ""},
		{reverseZone, dns.TypeSOA, 0, "pilot.internal. hostmaster.pilot.internal."},
		{reverseZone, dns.TypeNS, 0, "pilot.internal."},
		{reverseZone, dns.TypePTR, 0, ""},
		{"planner.", dns.TypeAAAA, 0, planner.String()},
		{"planner.", dns.TypeA, 0, ""},
	} {
		for network, addr := range map[string]string{"udp": udp, "tcp": tcp} {
			t.Run(fmt.Sprintf("%s %s %s", network, c.name, dns.TypeToString[c.kind]), func(t *testing.T) {
				client := dns.Client{Net: network}
				m, _, err := client.Exchange(query(c.name, c.kind), addr)
				if err != nil {
					t.Fatal(err)
				}
				if m.Rcode != c.rcode || !m.Authoritative || !m.RecursionAvailable || m.Question[0].Name != c.name {
					t.Errorf("answer is %v", m)
				}
				if c.want == "" {
					if len(m.Answer) != 0 || len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA ||
						!dns.IsSubDomain(m.Ns[0].Header().Name, dns.CanonicalName(c.name)) && c.name != "planner." {
						t.Errorf("want no answer and a SOA, got %v", m)
					}
					return
				}
				if len(m.Answer) != 1 {
					t.Fatalf("%d records: %v", len(m.Answer), m)
				}
				h := m.Answer[0].Header()
				if data := strings.TrimPrefix(m.Answer[0].String(), h.String()); !strings.HasPrefix(data, c.want) {
					t.Errorf("data %q, want %q", data, c.want)
				}
				if h.Name != c.name || h.Ttl < 5 || h.Ttl > 30 {
					t.Errorf("header %v", h)
				}
			})
		}
	}
	if e.count() != 0 {
		t.Errorf("forwarded: %v", e.asked)
	}
}

func TestNeverForwarded(t *testing.T) {
	e := answering()
	s := New(Options{Forward: e})
	s.Set(testState(upstream1))
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
	}{
		{"printer.", dns.TypeAAAA, dns.RcodeNameError},
		{"printer.", dns.TypeA, dns.RcodeNameError},
		{"com.", dns.TypeDS, dns.RcodeRefused},
		{"com.", dns.TypeNS, dns.RcodeRefused},
		{"x.y.z.pilot.internal.", dns.TypeTXT, dns.RcodeNameError},
		{"1.1." + reverseZone, dns.TypeTXT, dns.RcodeNameError},
		{"localhost.", dns.TypeA, 0}, {"a.localhost.", dns.TypeAAAA, 0}, {"localhost.", dns.TypeMX, 0},
		{"example.com.", dns.TypeANY, 0},
		{"example.com.", dns.TypeAXFR, dns.RcodeRefused},
		{"pilot.internal.", dns.TypeIXFR, dns.RcodeRefused},
		{"example.com.", dns.TypeNone, dns.RcodeFormatError},
	} {
		m := ask(t, s, edns(query(c.name, c.kind), 1232, false))
		if m.Rcode != c.rcode {
			t.Errorf("%s %s: %v", c.name, dns.TypeToString[c.kind], m)
		}
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.A); ok && !a.A.IsLoopback() {
				t.Errorf("%s: answered %v", c.name, a)
			}
		}
	}
	q := query("version.bind.", dns.TypeTXT)
	q.Question[0].Qclass = dns.ClassCHAOS
	if m := ask(t, s, q); m.Rcode != dns.RcodeRefused {
		t.Errorf("class CH: %v", m)
	}
	if e.count() != 0 {
		t.Errorf("forwarded: %v", e.asked)
	}
	// Names of another private domain aren't ours.
	if m := ask(t, s, query("printer.corp.internal.", dns.TypeA)); len(m.Answer) != 1 || e.count() != 1 {
		t.Errorf("other .internal: %v", m)
	}
}

func TestMisses(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := New(Options{Forward: answering(), Now: func() time.Time { return now }})
	if ask(t, s, query("early.", dns.TypeAAAA)); len(s.Misses()) != 0 {
		t.Error("a miss without a zone")
	}
	s.Set(testState(upstream1))
	for _, name := range []string{
		"auditor.pilot.internal.", "AUDITOR.pilot.internal.", "auditor.", "scout.", "planner.", "planner.pilot.internal.",
		"x.auditor.pilot.internal.", "example.com.", "_bad.pilot.internal.", `a\.b.pilot.internal.`, "coordinator.", reverseZone,
	} {
		ask(t, s, query(name, dns.TypeAAAA))
	}
	take := func() (names []string) {
		for len(s.Misses()) > 0 {
			names = append(names, <-s.Misses())
		}
		return names
	}
	if got := take(); !slices.Equal(got, []string{"auditor", "scout"}) {
		t.Errorf("misses are %q", got)
	}
	now = now.Add(missAgain)
	ask(t, s, query("scout.", dns.TypeAAAA))
	if got := take(); !slices.Equal(got, []string{"scout"}) {
		t.Errorf("misses are %q", got)
	}
	for i := range 3 * missSeen {
		ask(t, s, query(fmt.Sprintf("x%d.", i), dns.TypeAAAA))
		if i < missSeen {
			take()
		}
	}
	if len(s.misses.seen) > missSeen || len(s.Misses()) > missQueue {
		t.Errorf("%d names remembered, %d waiting", len(s.misses.seen), len(s.Misses()))
	}
}

func TestAbuse18HostileNames(t *testing.T) {
	s := New(Options{})
	st := testState()
	st.Hosts = append(st.Hosts,
		Host{Name: "planner", Addr: warehouse}, // taken
		Host{Name: "foreign", Addr: netip.MustParseAddr("fd99::1")},
		Host{Name: "four", Addr: netip.MustParseAddr("10.0.0.1")})
	bad := []string{"", "a.b", `q"uote`, "new\nline", "esc\x1b[31m", "plаnner", "UPPER", "-x", "x-", "*", "xn--80ak6aa92e", strings.Repeat("a", 64)}
	for _, name := range bad {
		st.Hosts = append(st.Hosts, Host{Name: name, Addr: warehouse})
	}
	s.Set(st)
	names := s.zone.Load().records
	for _, name := range append(bad[1:], "foreign", "four") {
		if _, ok := names[name+".pilot.internal."]; ok {
			t.Errorf("%q is served", name)
		}
	}
	m := ask(t, s, query("planner.pilot.internal.", dns.TypeAAAA))
	if len(m.Answer) != 1 || !m.Answer[0].(*dns.AAAA).AAAA.Equal(planner.AsSlice()) {
		t.Errorf("planner: %v", m)
	}
}

func TestReverseZones(t *testing.T) {
	for p, want := range map[string][]string{
		"fd5c:1:2::/48":   {strings.TrimSuffix(reverseZone, ".")},
		"fd12:3456::1/32": {"6.5.4.3.2.1.d.f.ip6.arpa"},
		"fd00::/8":        {"d.f.ip6.arpa"},
		"fc00::/7":        {"c.f.ip6.arpa", "d.f.ip6.arpa"},
		"10.0.0.0/8":      nil,
	} {
		if got := ReverseZones(netip.MustParsePrefix(p)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
	if got := ReverseZones(netip.Prefix{}); got != nil {
		t.Errorf("no prefix: %q", got)
	}
	if got, err := dns.ReverseAddr(planner.String()); err != nil || got != reverseName(planner) {
		t.Errorf("reverse of %v: %q, want %q", planner, reverseName(planner), got)
	}
}
