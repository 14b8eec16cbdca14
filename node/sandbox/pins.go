// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// minPin and maxPin bound how long an answer of DNS opens the way to an address: programs look a name up once and connect
	// a while later, also where its time to live is over at once.
	minPin = time.Minute
	maxPin = time.Hour
	// maxPins bounds the addresses that are remembered, and maxPinNames the names of each.
	maxPins     = 4096
	maxPinNames = 16
)

// pins are the addresses that names had when they were asked for. Safe for concurrent use.
type pins struct {
	now func() time.Time

	mu   sync.Mutex
	byIP map[netip.Addr][]pin // guarded by mu
}

type pin struct {
	name  string
	until time.Time
}

// add remembers that a name has an address, for about as long as the answer said.
func (p *pins) add(a netip.Addr, name string, ttl time.Duration) {
	until := p.now().Add(min(max(ttl, minPin), maxPin))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byIP == nil {
		p.byIP = make(map[netip.Addr][]pin)
	}
	list, known := p.byIP[a]
	if !known && len(p.byIP) >= maxPins {
		p.evict()
	}
	oldest := 0
	for i := range list {
		if list[i].name == name {
			if until.After(list[i].until) {
				list[i].until = until
			}
			return
		}
		if list[i].until.Before(list[oldest].until) {
			oldest = i
		}
	}
	if len(list) >= maxPinNames {
		list[oldest] = pin{name, until}
		return
	}
	p.byIP[a] = append(list, pin{name, until})
}

// evict makes room: what is over goes, and otherwise what will be over first. p.mu is held.
func (p *pins) evict() {
	now := p.now()
	var first netip.Addr
	var when time.Time
	for a, list := range p.byIP {
		last := list[0].until
		for _, n := range list[1:] {
			if n.until.After(last) {
				last = n.until
			}
		}
		switch {
		case !now.Before(last):
			delete(p.byIP, a)
		case !first.IsValid() || last.Before(when):
			first, when = a, last
		}
	}
	if len(p.byIP) >= maxPins {
		delete(p.byIP, first)
	}
}

// names returns those that have an address now.
func (p *pins) names(a netip.Addr) (names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, n := range p.byIP[a] {
		if now.Before(n.until) {
			names = append(names, n.name)
		}
	}
	return names
}
