// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"math"
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/underlay"
)

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
