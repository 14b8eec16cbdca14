// SPDX-License-Identifier: Apache-2.0

// Package simnet is an internet in memory, for tests: hosts on segments, routers that translate addresses and filter by the
// kinds of RFC 4787, relays, and faults that a test chooses. It runs by the time of a testing/synctest bubble, in which what
// takes hours passes in milliseconds.
package simnet

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/underlay"
)

// Kind is what a translation or a filter depends on (RFC 4787, sections 4.1 and 5).
type Kind uint8

// The kinds. None is for a router that is only a firewall: it leaves addresses as they are.
const (
	None Kind = iota
	EndpointIndependent
	AddressDependent
	AddressAndPortDependent
)

// Internet is the segment in the middle and all that is attached to it.
type Internet struct {
	mu     sync.Mutex // guards everything
	random *rand.Rand
	root   *Segment
	relays map[uint32]*Relay
	drop   func(from, to netip.AddrPort) bool
	sent   int
}

// New returns an internet on which a datagram takes latency from one router or host to another.
func New(latency time.Duration) *Internet {
	n := &Internet{random: rand.New(rand.NewPCG(1, 2)), relays: make(map[uint32]*Relay)}
	n.root = &Segment{net: n, latency: latency, members: make(map[netip.Addr]member)}
	return n
}

// Drop sets which datagrams the middle of the internet loses, by the addresses that they bear there; nil: none.
func (n *Internet) Drop(f func(from, to netip.AddrPort) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = f
}

// Sent is how many datagrams hosts sent so far.
func (n *Internet) Sent() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent
}

// Root returns the middle.
func (n *Internet) Root() *Segment { return n.root }

// datagram is on its way.
type datagram struct {
	from, to netip.AddrPort
	data     []byte
}

// member is what has an address on a segment. Its method is called with the lock held.
type member interface{ receive(d datagram) }

// Segment is a network in which everybody reaches everybody.
type Segment struct {
	net     *Internet
	latency time.Duration
	members map[netip.Addr]member
	gateway *Router
}

// send is called with the lock held, as are all methods that are not exported.
func (s *Segment) send(d datagram) {
	if s == s.net.root && s.net.drop != nil && s.net.drop(d.from, d.to) {
		return
	}
	time.AfterFunc(s.latency, func() {
		s.net.mu.Lock()
		defer s.net.mu.Unlock()
		if m := s.members[d.to.Addr()]; m != nil {
			m.receive(d)
		} else if s.gateway != nil {
			s.gateway.out(d)
		}
	})
}

// RouterOptions say what a router does.
type RouterOptions struct {
	Outside   netip.Addr // its address on the segment outside; not with mapping None
	Mapping   Kind
	Filtering Kind
	Timeout   time.Duration // of a mapping without datagrams from inside; 0: two minutes
	Hairpin   bool          // what goes from inside to an outside address of it comes back in
	Blocked   bool          // nothing passes
	Latency   time.Duration // of the segment inside; 0: a millisecond
}

// Router stands between two segments.
type Router struct {
	RouterOptions
	inside, outside *Segment
	byInside        map[mapKey]*mapping
	byOutside       map[netip.AddrPort]*mapping
}

type mapKey struct{ inside, to netip.AddrPort }

type mapping struct {
	inside, outside netip.AddrPort
	used            time.Time
	allowed         map[netip.AddrPort]bool
}

// Router attaches a router to a segment, and returns the segment behind it.
func (s *Segment) Router(o RouterOptions) (*Router, *Segment) {
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.Latency == 0 {
		o.Latency = time.Millisecond
	}
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	r := &Router{RouterOptions: o, outside: s}
	r.inside = &Segment{net: s.net, latency: o.Latency, members: make(map[netip.Addr]member), gateway: r}
	if o.Outside.IsValid() {
		s.members[o.Outside] = r
	}
	r.flush()
	return r, r.inside
}

// Flush makes the router forget all mappings, as a restart does.
func (r *Router) Flush() {
	r.inside.net.mu.Lock()
	defer r.inside.net.mu.Unlock()
	r.flush()
}

func (r *Router) flush() {
	r.byInside, r.byOutside = make(map[mapKey]*mapping), make(map[netip.AddrPort]*mapping)
}

// Readdress gives the router another address outside, as a provider does at night.
func (r *Router) Readdress(a netip.Addr) {
	r.inside.net.mu.Lock()
	defer r.inside.net.mu.Unlock()
	delete(r.outside.members, r.Outside)
	r.Outside = a
	r.outside.members[a] = r
	r.flush()
}

// translate makes a datagram from inside one of the outside.
func (r *Router) translate(d datagram) (datagram, bool) {
	if r.Blocked {
		return d, false
	}
	k := mapKey{inside: d.from}
	switch r.Mapping {
	case AddressDependent:
		k.to = netip.AddrPortFrom(d.to.Addr(), 0)
	case AddressAndPortDependent:
		k.to = d.to
	}
	m := r.byInside[k]
	if m == nil || time.Since(m.used) > r.Timeout {
		m = &mapping{inside: d.from, outside: d.from, allowed: make(map[netip.AddrPort]bool)}
		for r.Mapping != None {
			m.outside = netip.AddrPortFrom(r.Outside, uint16(1024+r.inside.net.random.IntN(64512)))
			if r.byOutside[m.outside] == nil {
				break
			}
		}
		r.byInside[k], r.byOutside[m.outside] = m, m
	}
	m.used = time.Now()
	m.allowed[d.to], m.allowed[netip.AddrPortFrom(d.to.Addr(), 0)] = true, true
	d.from = m.outside
	return d, true
}

func (r *Router) out(d datagram) {
	d, ok := r.translate(d)
	switch {
	case !ok:
	case d.to.Addr() != r.Outside:
		r.outside.send(d)
	case r.Hairpin:
		r.receive(d)
	}
}

// receive implements member: it lets in what is mapped and not filtered.
func (r *Router) receive(d datagram) {
	m := r.byOutside[d.to]
	if m == nil || r.Blocked || time.Since(m.used) > r.Timeout {
		return
	}
	if r.Filtering == AddressDependent && !m.allowed[netip.AddrPortFrom(d.from.Addr(), 0)] ||
		r.Filtering == AddressAndPortDependent && !m.allowed[d.from] {
		return
	}
	d.to = m.inside
	r.inside.send(d)
}

// Relay forwards datagrams between hosts, whatever is between it and them.
type Relay struct {
	net     *Internet
	id      uint32
	latency time.Duration
	dead    bool
	hosts   map[netip.Addr]*Host
	mangle  func(d []byte) []time.Duration
}

// Relay adds a relay. A datagram takes latency from one host to the other.
func (n *Internet) Relay(id uint32, latency time.Duration) *Relay {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := &Relay{net: n, id: id, latency: latency, hosts: make(map[netip.Addr]*Host)}
	n.relays[id] = r
	return r
}

// Kill ends the relay; Revive undoes it.
func (r *Relay) Kill() { r.set(true) }

// Revive brings the relay back.
func (r *Relay) Revive() { r.set(false) }

func (r *Relay) set(dead bool) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.dead = dead
}

// Mangle says after which delays, besides the latency, copies of each datagram arrive; nil: one, at once.
func (r *Relay) Mangle(f func(d []byte) []time.Duration) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.mangle = f
}

// Inject delivers a datagram as if it came from an agent.
func (r *Relay) Inject(from, to netip.Addr, d []byte) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.forward(from, to, bytes.Clone(d), 0)
}

func (r *Relay) send(from *Host, to netip.Addr, d []byte) {
	if r.dead {
		return
	}
	if h, known := r.hosts[from.overlay]; known && h == nil {
		return
	}
	r.hosts[from.overlay] = from // connected on demand
	delays := []time.Duration{0}
	if r.mangle != nil {
		delays = r.mangle(d)
	}
	for _, delay := range delays {
		r.forward(from.overlay, to, d, delay)
	}
}

func (r *Relay) forward(from, to netip.Addr, d []byte, delay time.Duration) {
	time.AfterFunc(r.latency+delay, func() {
		r.net.mu.Lock()
		defer r.net.mu.Unlock()
		switch h, sender := r.hosts[to], r.hosts[from]; {
		case r.dead:
		case h != nil:
			h.relayed(r.id, from, d)
		case sender != nil:
			select {
			case sender.gone <- underlay.Path{Relay: r.id, Remote: netip.AddrPortFrom(to, 0)}:
			default:
			}
		}
	})
}
