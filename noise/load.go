// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// Under load means that first messages come faster than handshakeRate, counted in fragments whose mac1 is right.
const (
	// handshakeRate is in fragments per second; at two per message and below 1 ms per message
	// it is a tenth of a core.
	handshakeRate  = 200
	handshakeBurst = 200
	// loadedFor is how long after the last fragment over the rate the load is taken to last.
	loadedFor = time.Second
	// sourceRate and sourceBurst bound one proved source while we are under load.
	sourceRate    = 20
	sourceBurst   = 40
	sourceBuckets = 1024
)

// bucket is a token bucket. The zero value is full.
type bucket struct {
	used float64
	last time.Time
}

// take takes a token, of which rate come back per second up to burst, and reports whether there was one.
func (b *bucket) take(now time.Time, rate, burst float64) bool {
	if past := now.Sub(b.last); past > 0 { // a clock that stepped back gives nothing
		b.used = max(0, b.used-past.Seconds()*rate)
	}
	b.last = now
	if b.used+1 > burst {
		return false
	}
	b.used++
	return true
}

// load judges whether the machine is busy with handshakes. Not safe for concurrent use.
type load struct {
	all     bucket
	until   time.Time
	seed    maphash.Seed
	sources [sourceBuckets]bucket // by hash of the source: bounded, whoever sends; neighbours in a bucket share it
}

// arrive counts a fragment and reports whether we are under load.
func (l *load) arrive(now time.Time) bool {
	if !l.all.take(now, handshakeRate, handshakeBurst) {
		l.until = now.Add(loadedFor)
	}
	return now.Before(l.until)
}

// share reports whether a source that proved its address is within its share.
func (l *load) share(now time.Time, from netip.AddrPort) bool {
	h := maphash.Comparable(l.seed, sourceOf(from))
	return l.sources[h%sourceBuckets].take(now, sourceRate, sourceBurst)
}

// sourceOf is what counts as one source: an IPv4 address, or an IPv6 /64, of which a single host may use every address.
func sourceOf(from netip.AddrPort) netip.Prefix {
	addr := from.Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // fails for the zero Addr only, whose zero Prefix is right
	return p
}
