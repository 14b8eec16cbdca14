// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"net/netip"
	"slices"
	"testing"
)

func TestAdvertised(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")}
	all := []string{"192.0.2.1:7745", "198.51.100.1:7745", "[2001:db8::1]:7745"}
	for listen, want := range map[string][]string{
		":7745": all, "0.0.0.0:7745": all, "[::]:7745": all,
		"192.0.2.9:7745": {"192.0.2.9:7745"}, "c.example.org:443": {"c.example.org:443"}, "nonsense": nil,
	} {
		if got := Advertised(listen, own); !slices.Equal(got, want) {
			t.Errorf("%s: %v", listen, got)
		}
	}
	if got := Advertised(":1", slices.Repeat(own, 9)); len(got) != MaxAdvertised {
		t.Errorf("%d addresses", len(got))
	}
	if !own[0].Is6() {
		t.Error("the caller's list was sorted")
	}
}
