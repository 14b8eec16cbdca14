// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
)

// The streams of one address are pinged at the same moments, an interval apart, whenever they began.
func TestPulseOfOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, addr := newPulse(), netip.MustParseAddr("192.0.2.7")
		time.Sleep(7 * time.Second)
		at := time.Now().Add(p.next(addr))
		for time.Now().Before(at) {
			if d := p.next(addr); d <= 0 || d > api.PingInterval || !time.Now().Add(d).Equal(at) {
				t.Fatalf("%v after the beginning the next one is in %v", time.Since(p.began), d)
			}
			time.Sleep(min(time.Second, time.Until(at)))
		}
		if d := p.next(addr); d != api.PingInterval {
			t.Errorf("at the moment itself the next one is in %v", d)
		}
	})
}

// Each part of the interval has its share of the addresses.
func TestPulseIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse()
		var parts [9]int
		const each = 1000
		addr := netip.MustParseAddr("2001:db8::")
		for range each * len(parts) {
			addr = addr.Next()
			parts[int(p.next(addr)-1)*len(parts)/int(api.PingInterval)]++
		}
		for i, n := range parts {
			if n < each*3/4 || n > each*5/4 {
				t.Errorf("%d of %d are pinged in part %d of %d", n, each*len(parts), i, len(parts))
			}
		}
	})
}
