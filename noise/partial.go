// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"net/netip"
	"time"
)

// A responder keeps few unfinished messages, and briefly.
const (
	maxPartials          = 256
	maxPartialsPerSource = 16
	partialLifetime      = 5 * time.Second
)

// partial is a message of which some fragments have come. A fragment's place is checked before it gets here.
type partial struct {
	from   netip.AddrPort
	sender uint32
	suite  suite
	key    *localKey // whom it is for; nil for an answer
	born   time.Time
	have   uint8 // a bit for each part
	count  int
	body   []byte
}

func newPartial(f *fragment, from netip.AddrPort, key *localKey, now time.Time) *partial {
	return &partial{from: from, sender: f.sender, suite: f.suite, key: key, born: now, count: f.count, body: make([]byte, f.total)}
}

// fits reports whether f is of the same message.
func (p *partial) fits(f *fragment, from netip.AddrPort, key *localKey) bool {
	return p.sender == f.sender && p.from == from && p.key.same(key) && p.suite == f.suite && len(p.body) == f.total &&
		p.count == f.count
}

// add puts a fragment in its place and reports whether the message is whole. The first of two with one place wins.
func (p *partial) add(f *fragment) bool {
	if bit := uint8(1) << f.part; p.have&bit == 0 {
		p.have |= bit
		start, _ := cut(len(p.body), f.count, f.part)
		copy(p.body[start:], f.body)
	}
	return p.have == 1<<p.count-1
}

func (p *partial) old(now time.Time) bool {
	age := now.Sub(p.born)
	return age >= partialLifetime || age < -partialLifetime
}

// assembler holds unfinished initiations, oldest first. It is small enough to be searched one by one.
// Not safe for concurrent use.
type assembler struct{ list []*partial }

// add takes a fragment in and returns its message if that is whole now, else nil.
func (a *assembler) add(f *fragment, from netip.AddrPort, key *localKey, now time.Time) *partial {
	a.expire(now)
	for i, p := range a.list {
		if p.fits(f, from, key) {
			if !p.add(f) {
				return nil
			}
			a.remove(i)
			return p
		}
	}
	p := newPartial(f, from, key, now)
	if p.add(f) {
		return p
	}
	a.makeRoom(from)
	a.list = append(a.list, p)
	return nil
}

// makeRoom evicts the oldest of a source that has its share, else the oldest of all when the table is full.
func (a *assembler) makeRoom(from netip.AddrPort) {
	source, same, oldest := sourceOf(from), 0, 0
	for i := len(a.list) - 1; i >= 0; i-- {
		if sourceOf(a.list[i].from) == source {
			same, oldest = same+1, i
		}
	}
	switch {
	case same >= maxPartialsPerSource:
		a.remove(oldest)
	case len(a.list) >= maxPartials:
		a.remove(0)
	}
}

func (a *assembler) remove(i int) {
	copy(a.list[i:], a.list[i+1:])
	a.list[len(a.list)-1] = nil
	a.list = a.list[:len(a.list)-1]
}

func (a *assembler) expire(now time.Time) {
	kept := a.list[:0]
	for _, p := range a.list {
		if !p.old(now) {
			kept = append(kept, p)
		}
	}
	clear(a.list[len(kept):])
	a.list = kept
}
