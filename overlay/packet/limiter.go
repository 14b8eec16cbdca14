// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"hash/maphash"
	"sync"
	"time"
)

const (
	limiterBuckets = 256
	limiterBurst   = 40
	limiterEvery   = 50 * time.Millisecond // one more each
)

// Limiter bounds how many errors are sent about one destination: a burst of 40, then 20 each second (RFC 4443, section
// 2.4 (f)). Destinations share 256 token buckets by a secret hash, so its size is fixed. Safe for concurrent use.
type Limiter struct {
	seed    maphash.Seed
	buckets [limiterBuckets]bucket
}

type bucket struct {
	mu   sync.Mutex
	full time.Duration // when the bucket is full again
}

// NewLimiter returns a limiter whose buckets are full.
func NewLimiter() *Limiter { return &Limiter{seed: maphash.MakeSeed()} }

// Allow reports whether one more error about the destination may be sent now, a time since any fixed moment.
func (l *Limiter) Allow(destination [16]byte, now time.Duration) bool {
	b := &l.buckets[maphash.Bytes(l.seed, destination[:])%limiterBuckets]
	b.mu.Lock()
	defer b.mu.Unlock()
	full := max(b.full, now) + limiterEvery
	if full-now > limiterBurst*limiterEvery {
		return false
	}
	b.full = full
	return true
}
