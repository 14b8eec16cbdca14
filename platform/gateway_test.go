// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"net/netip"
	"testing"
)

func TestGateway(t *testing.T) {
	a, err := Gateway()
	if !errors.Is(err, ErrNoGateway) && (err != nil || !a.Is4()) {
		t.Errorf("%v, %v", a, err)
	}
	t.Log(a, err)
}

func TestGatewayOfTheLowestMetric(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	g := gateway{}.better(gateway{one, 100}).better(gateway{two, 50}).better(gateway{netip.IPv4Unspecified(), 1}).better(gateway{one, 50})
	if a, err := g.get(); a != two || err != nil {
		t.Errorf("%v, %v", a, err)
	}
	if _, err := (gateway{}).better(gateway{netip.MustParseAddr("fe80::1"), 0}).get(); !errors.Is(err, ErrNoGateway) {
		t.Errorf("got %v", err)
	}
}
