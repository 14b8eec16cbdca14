// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/underlay"
)

// Where one side's translator has another port for each destination, the other side can't know to which one to send. But it
// can guess, if there are many: the hard side opens fanSize sockets, each of which sends one ping to the other's address, and
// so has a port on the translator that takes answers from there. The easy side pings sprayPings random ports of the hard
// side's address. With 256 of 64,512 ports open, 1024 pings all miss with a probability of 1.7 % (as in a birthday
// problem); then both try again after a minute.
const (
	fanSize     = 256
	fanPatience = 6 * time.Second
	// punchAfter is how long the ordinary pings have before it begins, punchEvery how often it may. The hard side waits for
	// punchAgain: to the other side, which ignores what comes too early, the time between two requests looks shorter if the
	// first was longer under way.
	punchAfter = 2 * time.Second
	punchEvery = time.Minute
	punchAgain = punchEvery + 5*time.Second

	sprayPings = 1024
	sprayBurst = 10
	sprayEvery = 20 * time.Millisecond
)

// punch is what is under way of it, at either side.
type punch struct {
	id   uint64
	last time.Duration

	// The hard side.
	target netip.AddrPort
	fan    []underlay.Path
	until  time.Duration
	asked  bool
	done   bool // Unfan is due

	// The easy side.
	addr netip.Addr
	left int
	next time.Duration
}

func (p *punch) end() {
	p.left = 0
	if p.until != 0 {
		p.until, p.fan, p.done = 0, nil, true
	}
}

// hit reports whether a pong answers one of the pings.
func (p *punch) hit(id uint64, path underlay.Path) bool {
	if p.id == 0 || id != p.id || path.Relay != 0 {
		return false
	}
	return path.Socket != 0 && path.Remote == p.target || p.addr.IsValid() && path.Remote.Addr().Unmap() == p.addr
}

// drill punches with many ports, where that is what it takes.
func (s *Set) drill(now time.Duration, todo []Action) []Action {
	p := &s.punch
	if p.left > 0 {
		todo = s.spray(now, todo)
	}
	direct := s.directProved(now)
	switch {
	case p.until != 0 && (direct || now >= p.until):
		p.end()
	case p.until != 0:
		if p.fan != nil && !p.asked {
			p.asked = true
			for _, path := range p.fan {
				todo = append(todo, Action{Kind: Ping, Path: path, ID: p.id})
			}
			todo = append(todo, Action{Kind: Punch})
		}
		s.at(p.until)
	case !direct && s.facts.NAT == NATHard && s.facts.PeerNAT != NATHard && s.facts.PeerNAT != NATBlocked && now-s.used <= usedFor:
		target, ok := s.public()
		at := max(s.began+punchAfter, p.last+punchAgain)
		if p.last == 0 {
			at = s.began + punchAfter
		}
		switch {
		case !ok:
		case now < at:
			s.at(at)
		default:
			*p = punch{id: s.random(), last: now, target: target, until: now + fanPatience}
			todo = append(todo, Action{Kind: Fan, Path: underlay.Path{Remote: target}, N: fanSize})
			s.at(p.until)
		}
	}
	if p.done {
		s.at(now)
	}
	return todo
}

// Fanned gives the sockets that Fan asked for. They are not taken if what they are for is over: Fanning tells.
func (s *Set) Fanned(fan []underlay.Path) {
	if s.punch.until != 0 && !s.punch.asked && len(fan) > 0 && fan[0].Remote == s.punch.target {
		s.punch.fan = fan
	}
}

// Sockets returns the paths over sockets of a fan that are still needed.
func (s *Set) Sockets() (keep []underlay.Path) {
	keep = append(keep, s.punch.fan...)
	for _, w := range s.ways {
		if w.path.Socket != 0 && w.state != Dead {
			keep = append(keep, w.path)
		}
	}
	return keep
}

// Punch says that the peer, whose translator is hard, asks for pings to many ports of an address. It is ignored if the peer
// did not name that address as one of its own before, or asks too often.
func (s *Set) Punch(now time.Duration, addr netip.Addr) {
	addr = addr.Unmap()
	p := &s.punch
	if !s.up || s.directProved(now) || s.facts.NAT == NATHard || s.facts.NAT == NATBlocked || p.last != 0 && now-p.last < punchEvery {
		return
	}
	for _, c := range s.facts.Candidates {
		if c.Addr().Unmap() == addr {
			*p = punch{id: s.random(), last: now, addr: addr, left: sprayPings, next: now}
			return
		}
	}
}

// Fanning reports whether the sockets of a fan are open.
func (s *Set) Fanning() bool { return s.punch.fan != nil }

// Punching reports whether many ports of the peer are being tried.
func (s *Set) Punching() bool { return s.punch.left > 0 }

func (s *Set) spray(now time.Duration, todo []Action) []Action {
	p := &s.punch
	if s.directProved(now) {
		p.left = 0
		return todo
	}
	if now >= p.next {
		p.next = now + sprayEvery
		for range min(sprayBurst, p.left) {
			p.left--
			port := 1024 + s.random()%(1<<16-1024)
			todo = append(todo, Action{Kind: Ping, Path: underlay.Path{Remote: netip.AddrPortFrom(p.addr, uint16(port))}, ID: p.id})
		}
	}
	if p.left > 0 {
		s.at(p.next)
	}
	return todo
}

func (s *Set) directProved(now time.Duration) bool {
	for _, w := range s.ways {
		if w.direct() && w.state == Proved && now-w.proof < staleAfter {
			return true
		}
	}
	return false
}

// public returns the first address of the peer that is one of the internet.
func (s *Set) public() (netip.AddrPort, bool) {
	for _, c := range s.facts.Candidates {
		if Public(c.Addr()) {
			return netip.AddrPortFrom(c.Addr().Unmap(), c.Port()), true
		}
	}
	return netip.AddrPort{}, false
}
