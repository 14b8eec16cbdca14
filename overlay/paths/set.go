// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"math"
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

// Heard says that an authentic record, newer than all before, came along a path. The peer may have moved there.
func (s *Set) Heard(now time.Duration, p underlay.Path) {
	if !s.up || s.current == nil || Same(p, s.current.path) {
		return
	}
	w := s.seen(now, p)
	if w == nil {
		return
	}
	if w.state != Proved || now-w.proof > quickEvery {
		s.soon(w, now)
	}
	// The one in use may not work any more. (Over a relay it came so because the peer has not found a better way yet.)
	if c := s.current; w.direct() && c.direct() && c.state == Proved && now-w.suspect > doubtEvery {
		w.suspect = now // so that a peer that has its own mind does not make us ask without end
		c.after = now
		c.doubt(now)
	}
}

// Pinged says that a ping came along a path, and was answered. If we do not know whether we can reach the peer there, now
// is the time to ask: the hole is open.
func (s *Set) Pinged(now time.Duration, p underlay.Path) {
	if !s.up {
		return
	}
	if w := s.seen(now, p); w != nil && w != s.current && w.state != Proved {
		s.soon(w, now)
	}
}

// soon lets a path be pinged now, unless that was done a moment ago.
func (s *Set) soon(w *way, now time.Duration) {
	if last := w.pings[w.last].at; last == 0 || now-last >= quickEvery {
		w.next, w.stage = now, 0
	}
}

// seen finds a path on which something came, or adds it. Of those that the peer did not name the oldest is forgotten.
func (s *Set) seen(now time.Duration, p underlay.Path) *way {
	if w := s.find(p); w != nil {
		if w.state != Proved && p.Local.IsValid() {
			w.path.Local = p.Local
		}
		return w
	}
	if p.Relay != 0 && p.Remote.Addr() != s.facts.Peer {
		return nil
	}
	var spare *way
	n := 0
	for _, w := range s.ways {
		if w.named {
			continue
		}
		n++
		if w != s.current && (spare == nil || w.proof < spare.proof) {
			spare = w
		}
	}
	if n >= maxSeen && spare != nil {
		s.ways = slices.DeleteFunc(s.ways, func(w *way) bool { return w == spare })
		if s.left.way == spare {
			s.left.way = nil
		}
	}
	return s.add(now, p)
}

// Refresh says that our own addresses changed: no path is proved any more, and all are asked at once.
func (s *Set) Refresh(now time.Duration) {
	for _, w := range s.ways {
		w.path.Local = netip.Addr{}
		w.stage, w.next, w.after = 0, now, now
		if w.state == Proved && w != s.current {
			w.state = Probing
		}
	}
	if !s.up || s.current == nil {
		return
	}
	s.begin(now)
	s.tell = true
	s.current.doubt(now)
}

// Pong says that the answer to a ping came, and along which path. It returns the time since the ping.
func (s *Set) Pong(now time.Duration, id uint64, p underlay.Path) (time.Duration, bool) {
	if !s.up || id == 0 {
		return 0, false
	}
	for _, w := range s.ways {
		for _, ping := range w.pings {
			if ping.id != id {
				continue
			}
			if !Same(p, w.path) {
				return 0, false // it went there, and came from elsewhere: neither path works both ways
			}
			if ping.at >= w.after {
				s.answered(w, now, p, now-ping.at)
			}
			return now - ping.at, true
		}
	}
	if s.punch.hit(id, p) {
		w := s.find(p)
		if w == nil {
			w = s.add(now, p)
		}
		w.prove(now, p, 0)
		w.next = now // how far is it?
		s.choose(now)
		return 0, true
	}
	return 0, false
}

func (s *Set) answered(w *way, now time.Duration, p underlay.Path, rtt time.Duration) {
	w.prove(now, p, rtt)
	switch {
	case w == s.current:
		w.next = max(w.next, now+pingEvery-rtt)
	case w == s.left.way && s.current != nil && s.current.proof <= s.left.at:
		// It was late, not lost, and the other one has not answered either.
		w.hold, w.died = s.left.hold, s.left.died
		s.use(w, now)
	default:
		w.next = now + usedFor
		if c := s.current; c != nil && c.direct() == w.direct() {
			if better(w, c) {
				w.better++
				w.next = now + pingEvery
			} else {
				w.better = 0
			}
		}
		if w.hold != 0 {
			w.next = now + max(pingEvery, w.hold/10)
		}
	}
	s.choose(now)
}

// better says whether a path is so much faster that a change is worth it.
func better(w, than *way) bool {
	return w.rtt != 0 && than.rtt != 0 && w.rtt <= than.rtt-2*time.Millisecond && w.rtt <= than.rtt*4/5
}

// prove notes a pong.
func (w *way) prove(now time.Duration, p underlay.Path, rtt time.Duration) {
	if w.state != Proved || w.since == 0 {
		w.since = now
	}
	w.state, w.proof, w.stage, w.quick, w.deadline = Proved, now, 0, 0, 0
	if p.Local.IsValid() {
		w.path.Local = p.Local
	}
	switch {
	case rtt == 0:
	case w.rtt == 0 || rtt < w.rtt/2:
		w.rtt = rtt
	default:
		w.rtt += (rtt - w.rtt) / 4
	}
}

// wait is how long a pong may take.
func (w *way) wait() time.Duration {
	if w.rtt == 0 {
		return unknownWait
	}
	return min(max(3*w.rtt, minWait), max(maxWait, w.rtt*3/2))
}

// doubt begins the quick pings.
func (w *way) doubt(now time.Duration) {
	w.state, w.suspect, w.quick, w.next, w.deadline = Suspect, now, quickPings, now, 0
}

// held reports whether the path must prove itself for longer before it is used again.
func (w *way) held(now time.Duration) bool { return w.hold != 0 && now-w.since < w.hold }

// use makes a path the one in use.
func (s *Set) use(w *way, now time.Duration) {
	if s.current == w {
		return
	}
	s.change(w)
	if w.state == Proved {
		w.next = max(now, w.proof+pingEvery)
	} else {
		w.doubt(now)
	}
}

func (s *Set) change(w *way) {
	if old := s.current; old != nil && old.state == Suspect {
		old.state, old.quick, old.deadline, old.since = Probing, 0, 0, 0
	}
	s.current, s.moved = w, true
	for _, o := range s.ways {
		o.better = 0
	}
}

// best returns the best path that is proved, nil: none is.
func (s *Set) best(now time.Duration) (best *way) {
	for _, w := range s.ways {
		if w.state != Proved || now-w.proof >= staleAfter || w.held(now) {
			continue
		}
		if best == nil || w.direct() && !best.direct() || w.direct() == best.direct() && w.before(best) {
			best = w
		}
	}
	return best
}

func (w *way) before(o *way) bool {
	if w.rtt == 0 || o.rtt == 0 {
		return w.rtt != 0
	}
	return w.rtt < o.rtt
}

// choose moves to a better path, if there is one.
func (s *Set) choose(now time.Duration) {
	c, w := s.current, s.best(now)
	if !s.up || c == nil || w == nil || w == c {
		return
	}
	switch {
	case c.state == Dead, c.state != Proved && c.proof == 0:
	case w.direct() && !c.direct():
	case w.direct() == c.direct() && c.state == Suspect && w.proof >= c.suspect && now-w.proof < freshWithin:
	case w.direct() == c.direct() && w.better >= 2 && better(w, c):
	default:
		return
	}
	s.use(w, now)
}

// die leaves the path in use.
func (s *Set) die(now time.Duration) {
	w := s.current
	if w.proof != 0 {
		s.left.way, s.left.at, s.left.hold, s.left.died = w, now, w.hold, w.died
	}
	switch {
	case w.died == 0 || now-w.died >= maxHold+flapWithin:
		w.hold = 0
	case now-w.died < flapWithin+w.hold:
		w.hold = min(max(minHold, 2*w.hold), maxHold)
	}
	w.state, w.died, w.since, w.stage, w.deadline, w.quick = Dead, now, 0, 0, 0, 0
	w.next = now + retry(0)
	if b := s.best(now); b != nil {
		s.use(b, now)
		return
	}
	// Nothing is proved: all are asked at once, and data goes over the relay meanwhile.
	for _, o := range s.ways {
		if o != w {
			o.stage, o.next = 0, now
		}
	}
	if r := s.fallback(); r != nil {
		s.use(r, now)
		return
	}
	s.lost = true
}

// fallback is the relay that is used without proof: the first that is not dead.
func (s *Set) fallback() (spare *way) {
	for _, w := range s.ways {
		switch {
		case w.direct() || w.state == Dead:
		case !w.spare:
			return w
		case spare == nil:
			spare = w
		}
	}
	return spare
}

// Current returns the path in use; false: there is no session.
func (s *Set) Current() (underlay.Path, bool) {
	if s.current == nil {
		return underlay.Path{}, false
	}
	return s.current.path, true
}

// Act appends to todo what is to be done now.
func (s *Set) Act(now time.Duration, todo []Action) []Action {
	s.next = 0
	if s.punch.done {
		s.punch.done = false
		todo = append(todo, Action{Kind: Unfan})
	}
	if !s.up || s.current == nil {
		return todo
	}
	s.choose(now)
	todo = s.watch(now, todo)
	s.stale(now)
	todo = s.search(now, todo)
	todo = s.drill(now, todo)
	if s.moved {
		s.moved = false
		// First, so that what is sent meanwhile goes there.
		todo = append([]Action{{Kind: Use, Path: s.current.path}}, todo...)
	}
	if s.tell {
		s.tell, s.told = false, now
		todo = append(todo, Action{Kind: Tell})
	}
	if s.lost && now-s.called >= callEvery || s.lost && s.called == 0 {
		s.lost, s.called = false, now
		todo = append(todo, Action{Kind: Call})
	}
	return todo
}

// Next is when Act has something to do if nothing happens before; 0: never.
func (s *Set) Next() time.Duration { return s.next }

func (s *Set) at(t time.Duration) {
	if s.next == 0 || t < s.next {
		s.next = t
	}
}

// watch asks along the path in use whether it still works.
func (s *Set) watch(now time.Duration, todo []Action) []Action {
	for range len(s.ways) + 1 { // a path that dies makes way for another
		w := s.current
		if w.deadline != 0 && now >= w.deadline {
			switch {
			case w.state != Suspect:
				w.doubt(now)
			case w.quick == 0:
				s.die(now)
				if s.current == w {
					break // there is no other
				}
				continue
			}
		}
		switch {
		case w.state == Suspect && w.quick > 0:
			if now >= w.next {
				w.quick--
				w.next = now + quickEvery
				w.deadline = 0
				if w.quick == 0 {
					w.deadline = now + w.wait()
				}
				todo = s.ping(w, now, todo)
			}
			s.at(max(w.next, now))
		case w.state == Suspect:
		case now-s.used <= flowsFor || w.state == Dead && now-s.used <= usedFor:
			if now >= w.next {
				if w.state == Dead {
					w.next = now + retry(w.stage)
					w.stage++
					s.lost = true
				} else {
					w.next = now + pingEvery
					if w.deadline == 0 {
						w.deadline = now + w.wait()
					}
				}
				todo = s.ping(w, now, todo)
			}
			s.at(w.next)
		}
		if w.deadline != 0 {
			s.at(w.deadline)
		}
		return todo
	}
	return todo
}

// stale goes back to the relay when the direct path in use was not proved for long: behind a translator it may be gone.
func (s *Set) stale(now time.Duration) {
	w := s.current
	if !w.direct() || w.state != Proved {
		return
	}
	if now-w.proof < staleAfter {
		s.at(w.proof + staleAfter)
		return
	}
	r := s.fallback()
	for _, o := range s.ways {
		if !o.direct() && o.state == Proved && (r == nil || o.before(r)) {
			r = o
		}
	}
	if r == nil {
		return
	}
	w.state, w.stage, w.next = Unknown, 0, now
	s.change(r)
	r.next, r.deadline = now, 0
}

// search tries the paths that are not in use.
func (s *Set) search(now time.Duration, todo []Action) []Action {
	if now-s.used > usedFor {
		return todo
	}
	direct := s.current.direct() && s.current.state == Proved
	for _, w := range s.ways {
		if w == s.current {
			continue
		}
		if w.state == Proved && w.deadline != 0 && now >= w.deadline {
			w.state, w.since, w.deadline, w.stage, w.next, w.better = Probing, 0, 0, 0, now, 0
		}
		if w.deadline != 0 {
			s.at(w.deadline)
		}
		if w.next == 0 || !w.direct() && direct && w.stage > 0 || w.spare && s.current.state == Proved {
			continue
		}
		if now < w.next {
			s.at(w.next)
			continue
		}
		if w.state != Proved && w.direct() && !s.afford(now) {
			s.at(now + time.Second/probeRate)
			continue
		}
		if w.state == Proved {
			w.next, w.deadline = now+usedFor, now+w.wait()
			s.at(w.deadline)
		} else {
			if w.state == Unknown {
				w.state = Probing
			}
			w.next = now + retry(w.stage)
			w.stage++
		}
		s.at(w.next)
		todo = s.ping(w, now, todo)
	}
	// The word about our addresses may have been lost.
	if !s.current.direct() && !s.tell {
		if again := s.told + retry(s.tellings); now >= again {
			s.tell = true
			s.tellings++
		} else {
			s.at(again)
		}
	}
	return todo
}

// afford bounds what is sent to addresses that are not proved.
func (s *Set) afford(now time.Duration) bool {
	b := &s.budget
	if b.at == 0 {
		b.n = probeBurst
	}
	b.n = math.Min(probeBurst, b.n+(now-b.at).Seconds()*probeRate)
	b.at = now
	if b.n < 1 {
		return false
	}
	b.n--
	return true
}

func (s *Set) ping(w *way, now time.Duration, todo []Action) []Action {
	id := s.random()
	w.last = (w.last + 1) % len(w.pings)
	w.pings[w.last] = sent{id, now}
	p := w.path
	if w.state != Proved && w.stage%2 == 0 && w.stage > 0 {
		p.Local = netip.Addr{} // the address that it was asked from may be gone
	}
	return append(todo, Action{Kind: Ping, Path: p, ID: id, InUse: w == s.current})
}

// Status is what is known of one path.
type Status struct {
	Path  underlay.Path
	State State
	RTT   time.Duration // smoothed; 0: not measured
	Proof time.Duration // when the last pong came
	InUse bool
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
