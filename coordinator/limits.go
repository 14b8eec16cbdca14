// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/pilot-protocol/pilot/identity"
)

// What one address and one agent may ask of this process. Bursts are as large as what a host with many agents does when it
// starts; the steady rates are what keeps the registry's disk free for others.
const (
	addressRate, addressBurst = rate.Limit(50), 1000
	agentRate, agentBurst     = rate.Limit(20), 200
	joinRate, joinBurst       = rate.Limit(2), 500 // by address; each refusal is a line of the audit trail
	maxStreams                = 4                  // of one agent
	maxKeys                   = 20_000             // remembered by one limiter
	// Of all callers together: what strangers are refused must not fill the disk.
	refusalRate, refusalBurst = rate.Limit(0.5), 10_000
)

// refusals decides which refusals are recorded.
type refusals struct {
	limiter *rate.Limiter
	missed  atomic.Uint64
}

func newRefusals() *refusals { return &refusals{limiter: rate.NewLimiter(refusalRate, refusalBurst)} }

// allow reports whether one more may be recorded, and how many were not since the last one.
func (r *refusals) allow(now time.Time) (missed uint64, ok bool) {
	if !r.limiter.AllowN(now, 1) {
		r.missed.Add(1)
		return 0, false
	}
	return r.missed.Swap(0), true
}

// limiter holds a token bucket per key. A key that has been idle until its bucket is full again is forgotten.
type limiter[K comparable] struct {
	rate  rate.Limit
	burst int

	mu    sync.Mutex
	keys  map[K]*rate.Limiter
	swept time.Time
}

func newLimiter[K comparable](r rate.Limit, burst int) *limiter[K] {
	return &limiter[K]{rate: r, burst: burst, keys: make(map[K]*rate.Limiter)}
}

// allow takes a token of the key's and reports whether there was one.
func (l *limiter[K]) allow(key K, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.keys[key]
	if b == nil {
		if len(l.keys) >= maxKeys {
			l.sweep(now)
		}
		if len(l.keys) >= maxKeys {
			return false
		}
		b = rate.NewLimiter(l.rate, l.burst)
		l.keys[key] = b
	}
	return b.AllowN(now, 1)
}

// sweep looks at all keys, and so at most once per second: who invents keys must not be able to make it dear.
func (l *limiter[K]) sweep(now time.Time) {
	if since := now.Sub(l.swept); since >= 0 && since < time.Second {
		return
	}
	l.swept = now
	for key, b := range l.keys {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.keys, key)
		}
	}
}

// limitKey is the address, or the /64 of an IPv6 address: a host has all of it.
func limitKey(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

// slots counts the streams of each agent.
type slots struct {
	mu   sync.Mutex
	used map[identity.AgentPublic]int
}

func (s *slots) take(agent identity.AgentPublic) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[agent] >= maxStreams {
		return false
	}
	s.used[agent]++
	return true
}

func (s *slots) free(agent identity.AgentPublic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[agent]--; s.used[agent] == 0 {
		delete(s.used, agent)
	}
}
