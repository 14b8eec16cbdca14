// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

var (
	epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	peer  = netip.MustParseAddr("fd00:1:2::aaaa:1")
	other = netip.MustParseAddr("fd00:1:2::aaaa:2")
)

func all() *Grant { return &Grant{} }

func ports(r ...identity.PortRange) *Grant { return &Grant{Ports: r} }

func until(t time.Time) *Grant { return &Grant{Expiry: t} }

func TestDecide(t *testing.T) {
	https := identity.PortRange{Proto: 6, First: 443, Last: 443}
	high := identity.PortRange{First: 8000, Last: 8999}
	out := func(proto uint8, port uint16) Flow {
		return Flow{Outbound: true, Peer: peer, Proto: proto, Port: port, PortKnown: true}
	}
	in := func(proto uint8, port uint16) Flow {
		return Flow{Peer: peer, Proto: proto, Port: port, PortKnown: true}
	}
	for _, tt := range []struct {
		name string
		rule Rule
		flow Flow
		want Verdict
	}{
		{"both consented, out", Rule{Inbound: all(), Outbound: all()}, out(6, 22), Allow},
		{"both consented, in", Rule{Inbound: all(), Outbound: all()}, in(17, 53), Allow},
		{"no consent at all", Rule{}, out(6, 22), DenyNoConsentLocal},
		{"only the peer consented, out", Rule{Outbound: all()}, out(6, 22), DenyNoConsentLocal},
		{"only the peer consented, in", Rule{Outbound: all()}, in(6, 22), DenyNoConsentLocal},
		{"only we consented, out", Rule{Inbound: all()}, out(6, 22), DenyNoConsentPeer},
		{"only we consented, in", Rule{Inbound: all()}, in(6, 22), DenyNoConsentPeer},
		{"another peer", Rule{Inbound: all(), Outbound: all()}, Flow{Peer: other, Proto: 6, Port: 1, PortKnown: true}, DenyUnknown},
		{"listed port, out", Rule{Inbound: all(), Outbound: ports(https)}, out(6, 443), Allow},
		{"listed port, other protocol", Rule{Inbound: all(), Outbound: ports(https)}, out(17, 443), DenyPort},
		{"unlisted port, out", Rule{Inbound: all(), Outbound: ports(https)}, out(6, 444), DenyPort},
		{"the opener's own consent does not limit it", Rule{Inbound: ports(https), Outbound: all()}, out(6, 22), Allow},
		{"our list limits the peer", Rule{Inbound: ports(https), Outbound: all()}, in(6, 22), DenyPort},
		{"range, first", Rule{Inbound: ports(high), Outbound: all()}, in(6, 8000), Allow},
		{"range, last, udp", Rule{Inbound: ports(high), Outbound: all()}, in(17, 8999), Allow},
		{"range, below", Rule{Inbound: ports(high), Outbound: all()}, in(6, 7999), DenyPort},
		{"range, above", Rule{Inbound: ports(high), Outbound: all()}, in(6, 9000), DenyPort},
		{"range for tcp and udp, sctp", Rule{Inbound: ports(high), Outbound: all()}, in(132, 8000), DenyPort},
		{"echo needs no port", Rule{Inbound: ports(https), Outbound: all()}, in(58, 0), Allow},
		{"fragment against a list", Rule{Inbound: ports(high), Outbound: all()}, Flow{Peer: peer, Proto: 6, Port: 8000}, DenyPort},
		{"fragment of echo against a list", Rule{Inbound: ports(high), Outbound: all()}, Flow{Peer: peer, Proto: 58}, DenyPort},
		{"fragment without a list", Rule{Inbound: all(), Outbound: all()}, Flow{Peer: peer, Proto: 44}, Allow},
		{"not yet expired", Rule{Inbound: until(epoch.Add(1)), Outbound: all()}, out(6, 22), Allow},
		{"ours expired", Rule{Inbound: until(epoch), Outbound: all()}, out(6, 22), DenyExpired},
		{"theirs expired", Rule{Inbound: all(), Outbound: until(epoch)}, in(6, 22), DenyExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.rule.Addr = peer
			if got := Compile([]Rule{tt.rule}).Decide(tt.flow, epoch); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestNilDenies(t *testing.T) {
	var c *Compiled
	if got := c.Decide(Flow{Peer: peer}, epoch); got != DenyUnknown {
		t.Errorf("got %v", got)
	}
	if c.Trusted(peer, epoch) {
		t.Error("nil rules trust a peer")
	}
}

func TestCompileCopies(t *testing.T) {
	g := ports(identity.PortRange{Proto: 6, First: 443, Last: 443})
	c := Compile([]Rule{{Addr: peer, Inbound: g, Outbound: all()}})
	g.Ports[0].First, g.Ports[0].Last = 0, 65535
	g.Expiry = epoch
	f := Flow{Peer: peer, Proto: 6, Port: 22, PortKnown: true}
	if got := c.Decide(f, epoch); got != DenyPort {
		t.Errorf("a change after Compile took effect: %v", got)
	}
}

func TestCompileLeavesOddAddressesOut(t *testing.T) {
	for _, a := range []string{"192.0.2.1", "::ffff:192.0.2.1", "fd00::1%eth0"} {
		addr := netip.MustParseAddr(a)
		c := Compile([]Rule{{Addr: addr, Inbound: all(), Outbound: all()}})
		if c.Trusted(addr, epoch) {
			t.Errorf("%s matched", a)
		}
	}
}

func TestVerdictCodesAreStable(t *testing.T) {
	want := map[Verdict]string{
		DenyUnknown: "unknown-peer", Allow: "allow", DenyNoConsentLocal: "no-consent-local",
		DenyNoConsentPeer: "no-consent-peer", DenyPort: "port-denied", DenyExpired: "consent-expired", 200: "verdict-200",
	}
	for v, s := range want {
		if v.String() != s {
			t.Errorf("%d: got %q, want %q", v, v, s)
		}
	}
}

func randomGrant(r *rand.Rand) *Grant {
	if r.IntN(3) == 0 {
		return nil
	}
	g := &Grant{}
	for range r.IntN(3) {
		first := uint16(r.IntN(8))
		g.Ports = append(g.Ports, identity.PortRange{
			Proto: []uint8{0, 6, 17}[r.IntN(3)], First: first, Last: first + uint16(r.IntN(4)),
		})
	}
	if r.IntN(4) == 0 {
		g.Expiry = epoch.Add(time.Duration(r.IntN(3)-1) * time.Second)
	}
	return g
}

func randomFlow(r *rand.Rand) Flow {
	return Flow{
		Outbound: r.IntN(2) == 0, Peer: []netip.Addr{peer, other}[r.IntN(2)],
		Proto: []uint8{0, 6, 17, 44, 58, 132}[r.IntN(6)], Port: uint16(r.IntN(12)), PortKnown: r.IntN(4) != 0,
	}
}

// Whatever the rules are: nothing is allowed without trust, swapping the two sides of everything changes nothing, and
// taking a consent away or shortening its list never allows more.
func TestProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50_000 {
		rule, flow := Rule{Addr: peer, Inbound: randomGrant(r), Outbound: randomGrant(r)}, randomFlow(r)
		c := Compile([]Rule{rule})
		got := c.Decide(flow, epoch)
		if got == Allow && !c.Trusted(flow.Peer, epoch) {
			t.Fatalf("allowed without trust: %+v %+v", rule, flow)
		}
		mirror := Rule{Addr: peer, Inbound: rule.Outbound, Outbound: rule.Inbound}
		back := flow
		back.Outbound = !flow.Outbound
		if m := Compile([]Rule{mirror}).Decide(back, epoch); (m == Allow) != (got == Allow) {
			t.Fatalf("the two ends disagree: %v and %v for %+v %+v", got, m, rule, flow)
		}
		less := rule
		switch {
		case r.IntN(2) == 0:
			less.Inbound = nil
		case rule.Outbound != nil && len(rule.Outbound.Ports) > 1:
			less.Outbound = &Grant{Ports: rule.Outbound.Ports[1:], Expiry: rule.Outbound.Expiry}
		}
		if Compile([]Rule{less}).Decide(flow, epoch) == Allow && got != Allow {
			t.Fatalf("fewer rights allow more: %+v %+v", less, flow)
		}
		hidden := flow
		hidden.PortKnown = false
		if Compile([]Rule{rule}).Decide(hidden, epoch) == Allow && got != Allow {
			t.Fatalf("hiding the port allows more: %+v %+v", rule, flow)
		}
	}
}

func FuzzDecide(f *testing.F) {
	f.Add(true, uint8(6), uint16(443), true, uint8(6), uint16(443), uint16(443), int64(0))
	f.Add(false, uint8(44), uint16(0), false, uint8(0), uint16(0), uint16(65535), int64(1))
	f.Fuzz(func(t *testing.T, outbound bool, proto uint8, port uint16, known bool, rp uint8, first, last uint16, expiry int64) {
		g := &Grant{Ports: []identity.PortRange{{Proto: rp, First: first, Last: last}}}
		if expiry != 0 {
			g.Expiry = time.Unix(expiry, 0)
		}
		c := Compile([]Rule{{Addr: peer, Inbound: g, Outbound: g}})
		got := c.Decide(Flow{Outbound: outbound, Peer: peer, Proto: proto, Port: port, PortKnown: known}, epoch)
		if got != Allow {
			return
		}
		inList := (proto == 6 || proto == 17) && (rp == 0 || rp == proto) && first <= port && port <= last
		if !known || (proto != 58 && !inList) {
			t.Errorf("allowed: proto %d port %d known %v by %+v", proto, port, known, g.Ports)
		}
		if !g.activeAt(epoch) {
			t.Errorf("allowed by an expired consent: %v", g.Expiry)
		}
	})
}

func TestDecideDoesNotAllocate(t *testing.T) {
	c := Compile([]Rule{{Addr: peer, Inbound: all(), Outbound: ports(identity.PortRange{Proto: 6, First: 1, Last: 2})}})
	f := Flow{Outbound: true, Peer: peer, Proto: 6, Port: 2, PortKnown: true}
	if n := testing.AllocsPerRun(100, func() { c.Decide(f, epoch) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	c := Compile([]Rule{{Addr: peer, Inbound: all(), Outbound: ports(identity.PortRange{Proto: 6, First: 1, Last: 2})}})
	f := Flow{Outbound: true, Peer: peer, Proto: 6, Port: 2, PortKnown: true}
	for b.Loop() {
		c.Decide(f, epoch)
	}
}
