// SPDX-License-Identifier: Apache-2.0

package noise

// The window is a ring of 64-bit blocks, one of which is always being filled (RFC 6479).
const (
	windowBlocks = 256 // power of two
	windowSize   = (windowBlocks - 1) * 64
)

// window remembers which of the latest windowSize counters were seen. The zero value has seen none.
// It is not safe for concurrent use.
type window struct {
	next uint64 // one more than the highest counter seen
	ring [windowBlocks]uint64
}

// accept reports whether counter is new, and marks it as seen. A counter windowSize or more behind the highest is
// taken for seen. counter must be below 2^64-1.
func (w *window) accept(counter uint64) bool {
	block := counter / 64
	if counter >= w.next {
		// Blocks that come into the window still hold bits of a former round.
		if w.next > 0 {
			last := (w.next - 1) / 64
			for i := range min(block-last, windowBlocks) {
				w.ring[(block-i)%windowBlocks] = 0
			}
		}
		w.next = counter + 1
	} else if w.next-1-counter >= windowSize {
		return false
	}
	bit := uint64(1) << (counter % 64)
	seen := w.ring[block%windowBlocks]&bit != 0
	w.ring[block%windowBlocks] |= bit
	return !seen
}
