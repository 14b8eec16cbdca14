// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package underlay

import (
	"net/netip"
	"testing"
)

func TestSourceCacheIsBounded(t *testing.T) {
	u := open(t)
	a := netip.MustParseAddr("10.0.0.0")
	for range 10 * maxSources {
		a = a.Next()
		if u.v4.source(a) == nil {
			t.Fatal("no control message")
		}
	}
	if n := len(*u.v4.sources.Load()); n > maxSources {
		t.Errorf("%d entries", n)
	}
}

func FuzzPacketDestination(f *testing.F) {
	f.Add(packetSource(netip.MustParseAddr("127.0.0.1")), false)
	f.Add(packetSource(netip.MustParseAddr("::1")), true)
	f.Fuzz(func(t *testing.T, oob []byte, v6 bool) {
		if a := packetDestination(oob, v6); a.IsValid() && a.Is6() != v6 {
			t.Errorf("%v for IPv6 %v", a, v6)
		}
	})
}
