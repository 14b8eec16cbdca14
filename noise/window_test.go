// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"math/rand/v2"
	"testing"
)

func TestWindowEdges(t *testing.T) {
	var w window
	steps := []struct {
		counter uint64
		want    bool
	}{
		{0, true}, {0, false}, {1, true}, {63, true}, {64, true}, {64, false}, {63, false}, {2, true},
		{windowSize + 64, true},
		{64, false}, {65, true}, {65, false},
		{1 << 30, true}, {1<<30 - windowSize, false}, {1<<30 - windowSize + 1, true}, {1<<30 - windowSize + 1, false},
		{1<<30 + windowBlocks*64, true}, {1<<30 + 1, false}, {1<<30 + windowBlocks*64 - 1, true},
		{1<<64 - 2, true}, {1<<64 - 2, false}, {1<<64 - 3, true}, {0, false},
	}
	for i, s := range steps {
		if got := w.accept(s.counter); got != s.want {
			t.Fatalf("step %d: accept(%d) = %v", i, s.counter, got)
		}
	}
}

// TestWindowAgainstModel compares with a set that remembers everything.
func TestWindowAgainstModel(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		var w window
		seen, highest := map[uint64]bool{}, uint64(0)
		base := uint64(0)
		for range 20000 {
			switch r.IntN(50) {
			case 0:
				base += r.Uint64N(3 * windowSize)
			default:
				base += r.Uint64N(4)
			}
			c := base - min(base, r.Uint64N(windowSize+200)*r.Uint64N(2))
			want := !seen[c] && (c > highest || highest-c < windowSize)
			if got := w.accept(c); got != want {
				t.Fatalf("seed %d: accept(%d) = %v with highest %d", seed, c, got, highest)
			}
			if want {
				seen[c], highest = true, max(highest, c)
			}
		}
	}
}
