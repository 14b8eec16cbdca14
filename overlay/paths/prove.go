// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"net/netip"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/underlay"
)

// Heard says that an authentic record, newer than all before, came along a path. The peer may have moved there.
func (s *Set) Heard(now time.Duration, p underlay.Path) {
	if !s.up || s.current == nil || Same(p, s.current.path) {
		return
	}
	w := s.seen(now, p)
	if w == nil {
		return
	}
	// One that is held down is asked at its own pace: between many answers one that does not come would not be noticed.
	if w.state != Proved || !w.held(now) && now-w.proof > quickEvery {
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

// Gone says that the relay of a path told that the peer is not connected to it. The relay may lie, so it is a reason to ask along the
// path in use at once, and no more than that.
func (s *Set) Gone(now time.Duration, p underlay.Path) {
	if c := s.current; s.up && c != nil && !c.direct() && Same(p, c.path) && c.state == Proved && now-c.suspect > goneEvery {
		c.doubt(now)
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
	case w == s.left.way && s.current != nil && s.current.proof <= s.left.at &&
		(now-rtt <= s.left.at || now-s.left.at > s.current.wait()):
		// It was late, not lost, and the other one has not answered either; or that one has had its time.
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
