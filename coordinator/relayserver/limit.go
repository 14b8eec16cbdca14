// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"sync/atomic"
	"time"
)

// meter is a token bucket that many may use at once, without a lock: the generic cell rate algorithm (ITU-T I.371). It
// holds the time at which the bucket is full again, in nanoseconds.
type meter struct {
	full atomic.Int64
	cost int64 // nanoseconds for 1000 bytes; 0: no limit
	deep int64 // nanoseconds that the bucket holds
}

// set makes it a meter for a rate in bytes per second that lets a burst of bytes pass at once.
func (m *meter) set(rate, burst int) {
	if rate > 0 {
		m.cost = max(1, int64(1000*time.Second)/int64(rate))
		m.deep = int64(burst) * m.cost / 1000
	}
}

// take takes up to n bytes in units, all but the last of which have size bytes, and returns how many bytes it got.
func (m *meter) take(now int64, n, size int) int {
	if m.cost == 0 {
		return n
	}
	for {
		full := m.full.Load()
		from := max(full, now)
		room := m.deep - (from - now)
		got := n
		if need := int64(n) * m.cost / 1000; need > room {
			got = int(room*1000/m.cost) / size * size
			if got <= 0 {
				return 0
			}
		}
		if m.full.CompareAndSwap(full, from+int64(got)*m.cost/1000) {
			return got
		}
	}
}
