// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"testing"

	"github.com/pilot-protocol/pilot/underlay"
)

// A loop gets room for more when all of it was needed, and for the most only where datagrams come one by one.
func TestRoomForBursts(t *testing.T) {
	fill := func(bursts []underlay.Burst, datagrams int) {
		for i := range bursts {
			bursts[i].Size, bursts[i].Data = 100, bursts[i].Data[:100*datagrams]
		}
	}
	for _, tt := range []struct{ datagrams, most int }{{1, receiveBurst}, {2, enoughBursts}} {
		bursts := newBursts(firstBursts)
		if got := moreBursts(bursts, firstBursts-1); len(got) != firstBursts {
			t.Errorf("%d bursts though there was room", len(got))
		}
		for range 10 {
			fill(bursts, tt.datagrams)
			bursts = moreBursts(bursts, len(bursts))
		}
		if len(bursts) != tt.most {
			t.Errorf("%d datagrams each: %d bursts, want %d", tt.datagrams, len(bursts), tt.most)
		}
		seen := map[*byte]bool{}
		for i := range bursts {
			if b := bursts[i].Data; cap(b) != underlay.ReceiveSize || seen[&b[:1][0]] {
				t.Fatalf("burst %d has no buffer of its own, or one of %d bytes", i, cap(b))
			} else {
				seen[&b[:1][0]] = true
			}
		}
	}
}
