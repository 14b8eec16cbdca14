// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/pilot-protocol/pilot/underlay/stun"
)

func TestEndpoints(t *testing.T) {
	ip, at := netip.MustParseAddr, netip.MustParseAddrPort
	found := func(v4, v6 string) *findings {
		var f findings
		if v4 != "" {
			f.v4.answers = []stun.Reply{{Mapped: at(v4)}}
		}
		if v6 != "" {
			f.v6.answers = []stun.Reply{{Mapped: at(v6)}}
		}
		return &f
	}
	host := func(s string) Endpoint { return Endpoint{at(s), KindHost} }
	seen := func(s string) Endpoint { return Endpoint{at(s), KindReflexive} }
	private := []netip.Addr{ip("10.0.0.5"), ip("fd12:3456:789a::1"), ip("2001:db8::5")}
	prefix := netip.MustParsePrefix("fd12:3456:789a::/48")
	for name, tt := range map[string]struct {
		hosts    []netip.Addr
		mapped   netip.AddrPort
		observed []netip.AddrPort
		found    *findings
		want     []Endpoint
	}{
		"nothing known":   {nil, netip.AddrPort{}, nil, found("", ""), nil},
		"interfaces only": {private, netip.AddrPort{}, nil, found("", ""), []Endpoint{host("10.0.0.5:7745"), host("[2001:db8::5]:7745")}},
		"no translator":   {private, netip.AddrPort{}, nil, found("10.0.0.5:7745", "[2001:db8::5]:7745"), []Endpoint{host("10.0.0.5:7745"), host("[2001:db8::5]:7745")}},
		"behind one": {private[:1], at("203.0.113.7:40000"), nil, found("203.0.113.7:1024", ""),
			[]Endpoint{host("10.0.0.5:7745"), {at("203.0.113.7:40000"), KindMapped}, seen("203.0.113.7:1024")}},
		"a relay's word before an older one": {private[:1], netip.AddrPort{}, []netip.AddrPort{at("203.0.113.7:2000"), at("203.0.113.7:3000")},
			found("203.0.113.7:1024", "[2001:db8::9]:5"), []Endpoint{host("10.0.0.5:7745"), seen("203.0.113.7:2000"), seen("[2001:db8::9]:5")}},
		"an address in IPv6's form": {[]netip.Addr{ip("::ffff:10.0.0.5")}, netip.AddrPort{}, []netip.AddrPort{at("[::ffff:203.0.113.7]:9")}, found("", ""),
			[]Endpoint{host("10.0.0.5:7745"), seen("203.0.113.7:9")}},
		"one in the overlay": {nil, netip.AddrPort{}, []netip.AddrPort{at("[fd12:3456:789a::2]:9")}, found("", ""), nil},
	} {
		s := &State{Prefix: prefix, Hosts: tt.hosts}
		if got := endpoints(s, 7745, tt.mapped, tt.observed, tt.found); !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n%v\nwant %v", name, got, tt.want)
		}
	}
	var many []netip.Addr
	for i := range 40 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	got := endpoints(&State{Hosts: many}, 7745, at("203.0.113.7:1"), nil, found("203.0.113.7:2", "[2001:db8::9]:3"))
	if len(got) != maxEndpoints || got[maxEndpoints-1] != seen("[2001:db8::9]:3") {
		t.Errorf("%d: %v", len(got), got[13:])
	}
}
