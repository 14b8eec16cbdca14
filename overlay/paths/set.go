// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"net/netip"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/underlay"
)

const (
	// MaxCandidates is how many addresses and MaxRelays how many relays of a peer are tried.
	MaxCandidates = 12
	MaxRelays     = 4
	// maxSeen is how many more paths are kept that the peer did not name but used.
	maxSeen = 4

	// pingEvery is how often the path in use is pinged while data flows.
	pingEvery = time.Second
	// flowsFor is how long data counts as flowing after a packet, usedFor how long the session counts as used: other
	// paths are tried that long.
	flowsFor = 2 * time.Second
	usedFor  = 30 * time.Second
	// A pong is late after three round trips: at least minWait, and for a slow path no more than that or half as long
	// again as it takes. Then quickPings are sent, quickEvery apart.
	minWait, maxWait = 300 * time.Millisecond, 800 * time.Millisecond
	unknownWait      = time.Second
	quickPings       = 3
	quickEvery       = 100 * time.Millisecond
	// goneEvery is how often a relay's word that the peer is not there makes us doubt the path over it.
	goneEvery = time.Second
	// doubtEvery is how often the peer's coming along another path makes us doubt ours.
	doubtEvery = 200 * time.Millisecond
	// staleAfter is how long a direct path counts as proved after a pong: the shortest time for which translators are
	// known to keep a mapping is thirty seconds.
	staleAfter = 25 * time.Second
	// A path that dies again within flapWithin must be proved for minHold before it is used again, each time for twice as
	// long, up to maxHold.
	flapWithin       = time.Minute
	minHold, maxHold = 10 * time.Second, 5 * time.Minute
	// callEvery is how often Call may come.
	callEvery = 5 * time.Second
	// Pings to addresses that are not proved: at most probeBurst at once, and probeRate per second.
	probeBurst, probeRate = 24, 12
	// freshWithin is how new a proof must be for its path to be preferred to one whose pong is late.
	freshWithin = 2 * time.Second
)

// retries are the pauses between tries of a path that does not answer; the last one goes on.
func retry(stage int) time.Duration {
	steps := [...]time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second}
	return steps[min(stage, len(steps)-1)]
}

// Kind is what an Action asks for.
type Kind uint8

// The kinds.
const (
	Ping  Kind = iota + 1 // send a ping with ID along Path
	Use                   // send along Path from now on
	Tell                  // tell the peer where we are
	Call                  // no path answers: make a new session at all addresses
	Fan                   // open N sockets for hole punching towards Path.Remote, and say so with Fanned
	Unfan                 // close those that Sockets does not return
	Punch                 // ask the peer to ping many ports of ours
)

// Action is something to be done.
type Action struct {
	Kind Kind
	Path underlay.Path
	ID   uint64
	N    int
	// InUse: the ping goes along the path in use, so its answer is expected.
	InUse bool
}

// Facts are what is known of the two ends, apart from what travels between them.
type Facts struct {
	Peer       netip.Addr       // its overlay address, by which relays know it
	Candidates []netip.AddrPort // where it may be, best first; all are Usable
	Relays     []uint32         // where it is, home first
	Spare      []uint32         // where we are: the last resort
	NAT        NAT
	PeerNAT    NAT
}

// Set is the paths of a session between two agents. It is not safe for concurrent use. Time is a distance from any moment
// of the past; 0 means never.
//
// Something happens (a method is called), then Act says what follows, and Next when Act is to be called again.
type Set struct {
	random  func() uint64
	facts   Facts
	up      bool
	ways    []*way
	current *way
	tell    bool          // Tell is due
	told    time.Duration // when it was done last
	// tellings is how often it was repeated, asked when the peer's word made us try again.
	tellings int
	asked    time.Duration
	used     time.Duration
	called   time.Duration
	lost     bool // Call is due
	moved    bool // Use is due
	left     struct {
		way  *way
		at   time.Duration
		hold time.Duration // the way's before
		died time.Duration // likewise
	}
	budget struct {
		n  float64
		at time.Duration
	}
	punch punch
	began time.Duration // of the session, or of the last change of the facts
	next  time.Duration
}

// way is a path with what is known of it.
type way struct {
	path  underlay.Path
	named bool // by the peer
	spare bool // over a relay of ours, at which the peer need not be
	state State
	rtt   time.Duration // smoothed
	proof time.Duration // when the last pong came
	since time.Duration // from when on all pings were answered

	next     time.Duration // when it is pinged; 0: not
	stage    int
	quick    int           // quick pings to come
	deadline time.Duration // when the pong is late; 0: none is waited for
	suspect  time.Duration // since when it is
	after    time.Duration // answers to pings before this prove nothing: one of the ends moved then
	better   int           // proofs in a row that were better than the path in use
	died     time.Duration
	hold     time.Duration
	pings    [8]sent
	last     int
}

type sent struct {
	id uint64
	at time.Duration
}

// New returns a set without paths. random gives the numbers of pings, which nobody may guess.
func New(random func() uint64) *Set { return &Set{random: random} }

// key is what makes two paths the same. The local address is only where the last datagram came to.
func key(p underlay.Path) underlay.Path {
	p.Local = netip.Addr{}
	p.Remote = netip.AddrPortFrom(p.Remote.Addr().Unmap(), p.Remote.Port())
	return p
}

// Same reports whether two paths are one, whatever the local address.
func Same(a, b underlay.Path) bool { return key(a) == key(b) }

func (w *way) direct() bool { return w.path.Relay == 0 }

func (s *Set) find(p underlay.Path) *way {
	k := key(p)
	for _, w := range s.ways {
		if key(w.path) == k {
			return w
		}
	}
	return nil
}

// Learn says what is known of the ends. New candidates are tried at once.
func (s *Set) Learn(now time.Duration, f Facts) {
	news := !slices.Equal(f.Candidates, s.facts.Candidates) || !slices.Equal(f.Relays, s.facts.Relays) ||
		!slices.Equal(f.Spare, s.facts.Spare) || f.Peer != s.facts.Peer
	if f.NAT != s.facts.NAT || f.PeerNAT != s.facts.PeerNAT {
		s.punch.last = 0 // it may go better now
	}
	s.facts = f
	if !news {
		return
	}
	for _, w := range s.ways {
		w.named, w.spare = false, false
	}
	for i, a := range f.Candidates {
		if i < MaxCandidates {
			s.name(now, underlay.Path{Remote: netip.AddrPortFrom(a.Addr().Unmap(), a.Port())})
		}
	}
	for i, r := range f.Relays {
		if i < MaxRelays {
			s.name(now, s.over(r))
		}
	}
	for i, r := range f.Spare {
		if i < MaxRelays && !slices.Contains(f.Relays, r) {
			s.name(now, s.over(r)).spare = true
		}
	}
	s.ways = slices.DeleteFunc(s.ways, func(w *way) bool { return !w.named && w != s.current && w.state != Proved && w.state != Suspect })
}

func (s *Set) over(relay uint32) underlay.Path {
	return underlay.Path{Remote: netip.AddrPortFrom(s.facts.Peer, 0), Relay: relay}
}

// name adds a path that the peer, or the coordinator for it, named.
func (s *Set) name(now time.Duration, p underlay.Path) *way {
	w := s.find(p)
	if w == nil {
		w = s.add(now, p)
		s.begin(now)
	}
	w.named = true
	return w
}

// begin says that there is something new to try.
func (s *Set) begin(now time.Duration) { s.began, s.tellings = now, 0 }

func (s *Set) add(now time.Duration, p underlay.Path) *way {
	w := &way{path: p, next: now}
	s.ways = append(s.ways, w)
	return w
}

// Up says that there is a session, and along which path its handshake went there and back; rtt 0: it was not measured.
func (s *Set) Up(now time.Duration, p underlay.Path, rtt time.Duration) {
	renewed := s.up && s.current != nil && s.current.state == Proved && now-s.current.proof < staleAfter
	w := s.find(p)
	if w == nil {
		w = s.add(now, p)
	}
	w.prove(now, p, rtt)
	if renewed {
		s.choose(now)
		return
	}
	s.up, s.used, s.lost = true, max(s.used, now), false
	s.begin(now)
	s.use(w, now)
	s.restart(now)
	w.next = now
	if rtt != 0 {
		w.next = now + pingEvery
	}
	s.tell = true
}

// Down says that there is no session any more. What was learned of paths that answered is forgotten.
func (s *Set) Down() {
	s.up, s.current, s.tell, s.lost, s.moved = false, nil, false, false, false
	s.left.way = nil
	s.ways = slices.DeleteFunc(s.ways, func(w *way) bool { return !w.named })
	for _, w := range s.ways {
		*w = way{path: underlay.Path{Remote: w.path.Remote, Relay: w.path.Relay}, named: w.named, spare: w.spare, died: w.died, hold: w.hold}
	}
	s.punch.end()
}

// restart tries all paths but the one in use at once.
func (s *Set) restart(now time.Duration) {
	for _, w := range s.ways {
		if w != s.current && w.state != Proved {
			w.stage, w.next = 0, now
		}
	}
}

// Used says when a packet last went either way.
func (s *Set) Used(at time.Duration) {
	if at <= s.used {
		return
	}
	if s.up && at-s.used > usedFor {
		// It was left alone: what did not answer may do so now, and the peer may not know where we are.
		s.restart(at)
		s.begin(at)
		s.tell = s.tell || at-s.told > usedFor
	}
	s.used = at
}

// Changed says that what Tell tells is not what it told.
func (s *Set) Changed() { s.tell = true }

// Told says that the peer told where it is: it tries its paths now, so it is the moment to try ours. Learn comes first.
func (s *Set) Told(now time.Duration) {
	if !s.up || s.asked != 0 && now-s.asked < retry(0) || s.directProved(now) {
		return
	}
	s.asked = now
	s.restart(now)
}

// Status lists the paths, the one in use first, then those that answered, then the others.
func (s *Set) Status() []Status {
	all := make([]Status, 0, len(s.ways))
	for _, w := range s.ways {
		all = append(all, Status{w.path, w.state, w.rtt, w.proof, w == s.current})
	}
	rank := func(x Status) int {
		switch {
		case x.InUse:
			return 0
		case x.State == Proved || x.State == Suspect:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b Status) int { return rank(a) - rank(b) })
	return all
}

// Codes of Why.
const (
	WhyBlocked      = "udp-blocked"      // UDP does not pass on our side
	WhyPeerBlocked  = "peer-udp-blocked" // nor on the peer's
	WhyBothHard     = "both-hard-nat"    // both translators have another port for each destination
	WhyNoCandidates = "no-candidates"    // nobody knows an address of the peer
	WhyTrying       = "trying"           // it is being tried
	WhyUnstable     = "unstable"         // a direct path broke twice, and has to prove itself
	WhyIdle         = "idle"             // the session is not used, and the direct path may be gone
	WhyNoAnswer     = "no-answer"        // no address answers
)

// Why says, as a stable code, why the path in use is not direct; empty: it is, or there is no session.
func (s *Set) Why(now time.Duration) string {
	if s.current == nil || s.current.direct() {
		return ""
	}
	candidates, proved, waiting := 0, false, false
	for _, w := range s.ways {
		if !w.direct() {
			continue
		}
		candidates++
		proved = proved || w.state == Proved && w.held(now)
		waiting = waiting || w.stage < 2 && w.state != Dead
	}
	switch f := s.facts; {
	case f.NAT == NATBlocked:
		return WhyBlocked
	case f.PeerNAT == NATBlocked:
		return WhyPeerBlocked
	case proved:
		return WhyUnstable
	case f.NAT == NATHard && f.PeerNAT == NATHard:
		return WhyBothHard
	case candidates == 0:
		return WhyNoCandidates
	case now-s.used > usedFor:
		return WhyIdle
	case waiting || s.punch.until != 0 || s.punch.left > 0:
		return WhyTrying
	}
	return WhyNoAnswer
}
