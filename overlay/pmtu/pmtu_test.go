// SPDX-License-Identifier: Apache-2.0

package pmtu

import (
	"math/rand/v2"
	"testing"
	"time"
)

// way is a path as a search meets it: datagrams of more than size bytes vanish, and no ICMP says so.
type way struct {
	size int
	own  int // what the host's own interface carries; 0: everything
	rtt  time.Duration
	loss float64
	rand *rand.Rand

	now     time.Duration
	answers []answer
	sent    int // bytes of probes
	probes  int
}

type answer struct {
	size     int
	sent, at time.Duration
}

// run drives a search for a time, in whole milliseconds.
func (w *way) run(s *Search, length time.Duration, used bool) {
	for end := w.now + length; w.now < end; w.now = w.next(s, end, used) {
		kept := w.answers[:0]
		for _, a := range w.answers {
			if a.at > w.now {
				kept = append(kept, a)
				continue
			}
			s.Answered(a.size, w.now-a.sent, w.now)
		}
		w.answers = kept
		if due := s.Due(used); due > w.now {
			continue
		}
		for _, size := range s.Step(w.now, used) {
			switch {
			case w.own != 0 && size > w.own:
				s.Refused(size)
				continue
			case size <= w.size && (w.loss == 0 || w.rand.Float64() >= w.loss):
				w.answers = append(w.answers, answer{size, w.now, w.now + w.rtt})
			}
			w.sent += size
			w.probes++
		}
	}
}

// until runs a search until it has settled, and returns how long that took.
func (w *way) until(t *testing.T, s *Search) time.Duration {
	t.Helper()
	from := w.now
	for !s.Settled() {
		if w.run(s, time.Millisecond, true); w.now-from > time.Minute {
			t.Fatalf("size %d: still searching, limit %d", w.size, s.Limit())
		}
	}
	return w.now - from
}

// next is when something happens.
func (w *way) next(s *Search, end time.Duration, used bool) time.Duration {
	at := min(end, s.Due(used))
	for _, a := range w.answers {
		at = min(at, a.at)
	}
	return max(w.now+time.Millisecond, (at+time.Millisecond-1)/time.Millisecond*time.Millisecond)
}

const full = 1452 // a packet of 1420 bytes in its record

// exact tells whether a limit is right for a path.
func exact(limit, size int) bool {
	return limit == min(size, full) || limit < size && size-limit < grain
}

// usable is what a search should reach one round trip after it began.
func usable(size int) int { return min(size, full) * 3 / 4 }

// On the usual path the first answer is the last. What a handshake proved need not be probed.
func TestUsualPathTakesOneRoundTrip(t *testing.T) {
	for _, tt := range []struct{ carried, probes, bytes int }{
		{0, 4, full + 1200 + 1000 + 800}, {800, 4, full + 1200 + 1000 + 800}, {1200, 2, full + 1200},
	} {
		w := &way{size: 1472, rtt: 30 * time.Millisecond}
		s := New(full)
		if s.Limit() != Least || s.Settled() {
			t.Fatalf("begins with %d", s.Limit())
		}
		if tt.carried > 0 {
			s.Answered(tt.carried, 0, 0)
		}
		if s.Limit() != max(Least, tt.carried) || s.Settled() {
			t.Fatalf("begins with %d", s.Limit())
		}
		if took := w.until(t, s); took > 35*time.Millisecond || s.Limit() != full {
			t.Errorf("limit %d after %v", s.Limit(), took)
		}
		if w.probes != tt.probes || w.sent != tt.bytes {
			t.Errorf("%d probes, %d bytes", w.probes, w.sent)
		}
	}
}

// All that may lie between two hosts, with nothing that says how narrow it is: what is sent always passes, most of what the path
// carries is used after one round trip, and all of it some round trips later.
func TestAnyPath(t *testing.T) {
	for _, rtt := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond} {
		slowest, longest, most := 0, time.Duration(0), 0
		for size := Least; size <= 1500; size++ {
			for _, carried := range []int{0, 790, 832, 1200} {
				if carried > size {
					continue
				}
				w := &way{size: size, rtt: rtt}
				s := New(full)
				if carried > 0 {
					s.Answered(carried, rtt, 0)
				}
				for !s.Settled() {
					if s.Limit() > size {
						t.Fatalf("size %d, %d carried: limit %d after %v", size, carried, s.Limit(), w.now)
					}
					if size >= 800 && w.now > rtt+time.Millisecond && s.Limit() < usable(size) {
						t.Fatalf("size %d, %d carried: limit %d after %v", size, carried, s.Limit(), w.now)
					}
					if w.run(s, time.Millisecond, true); w.now > 10*time.Second {
						t.Fatalf("size %d, %d carried: still searching, limit %d", size, carried, s.Limit())
					}
				}
				if !exact(s.Limit(), size) {
					t.Errorf("size %d, %d carried: limit %d", size, carried, s.Limit())
				}
				if w.now > longest {
					slowest, longest = size, w.now
				}
				most = max(most, w.sent)
				if size == 1096 || size == 1252 {
					t.Logf("size %d, %d carried, round trips of %v: settled after %v, %d probes of %d bytes", size, carried, rtt, w.now, w.probes, w.sent)
				}
			}
		}
		t.Logf("round trips of %v: settled within %v (size %d), after %d bytes at most", rtt, longest, slowest, most)
		if bound := unknownWait + 12*(rtt*3/2+reorderWait) + 3*(2*rtt+spareWait); longest > bound || most > 64<<10 {
			t.Errorf("round trips of %v: took %v (size %d), and up to %d bytes", rtt, longest, slowest, most)
		}
	}
}

// A fifth of the probes gets lost: what is sent passes nevertheless, and the limit is near what the path carries soon.
func TestLostProbes(t *testing.T) {
	const rtt = 20 * time.Millisecond
	for _, size := range []int{1472, 1252, 1096} {
		late := 0
		for seed := range uint64(500) {
			w := &way{size: size, rtt: rtt, loss: 0.2, rand: rand.New(rand.NewPCG(seed, 1))}
			s := New(full)
			for s.Limit() < usable(size) {
				if w.run(s, time.Millisecond, true); w.now > 30*time.Second {
					t.Fatalf("size %d, seed %d: limit %d", size, seed, s.Limit())
				}
			}
			if s.Limit() > size {
				t.Fatalf("size %d, seed %d: limit %d", size, seed, s.Limit())
			}
			if w.now > 5*rtt {
				late++
			}
		}
		t.Logf("size %d: %d of 500 took longer than five round trips", size, late)
		if late > 50 {
			t.Errorf("size %d: %d of 500 took longer than five round trips", size, late)
		}
	}
}

func TestLossyPaths(t *testing.T) {
	wrong := 0
	for seed := range uint64(200) {
		for _, size := range []int{1472, 1252, 1096} {
			w := &way{size: size, rtt: 50 * time.Millisecond, loss: 0.05, rand: rand.New(rand.NewPCG(seed, 1))}
			s := New(full)
			w.until(t, s)
			if s.Limit() > size {
				t.Fatalf("seed %d, size %d: limit %d", seed, size, s.Limit())
			}
			if !exact(s.Limit(), size) {
				wrong++
			}
			// It stays there, but for bad luck, and finds back from that.
			w.run(s, 5*time.Minute, true)
			w.loss = 0
			w.run(s, time.Second, true)
			if w.until(t, s); s.Limit() > size {
				t.Fatalf("seed %d, size %d: limit %d later", seed, size, s.Limit())
			}
		}
	}
	if wrong > 10 {
		t.Errorf("%d of 600 searches ended too low", wrong)
	}
}

// A path that becomes narrow in the middle swallows what is longer: a black hole. It ends with one confirmation that is not
// answered.
func TestPathShrinks(t *testing.T) {
	const rtt = 20 * time.Millisecond
	for _, tt := range []struct {
		suspect bool
		within  time.Duration
	}{{false, confirmEvery + 2*rtt + spareWait + 2*time.Millisecond}, {true, 2*rtt + spareWait + 2*time.Millisecond}} {
		for _, size := range []int{1372, 1252, 1232, 1096, 700, Least} {
			w := &way{size: 1472, rtt: rtt}
			s := New(full)
			w.until(t, s)
			w.run(s, 1234*time.Millisecond, true)
			w.size = size
			if tt.suspect {
				s.Suspect(w.now)
			}
			from := w.now
			for s.Limit() > size {
				if w.run(s, time.Millisecond, true); w.now-from > 5*time.Second {
					t.Fatalf("size %d: limit still %d", size, s.Limit())
				}
			}
			if took := w.now - from; took > tt.within {
				t.Errorf("to %d: usable after %v", size, took)
			}
			w.run(s, rtt+2*time.Millisecond, true)
			if size >= 800 && s.Limit() < usable(size) {
				t.Errorf("to %d: limit %d after a round trip more", size, s.Limit())
			}
			w.until(t, s)
			if !exact(s.Limit(), size) {
				t.Errorf("to %d: limit %d", size, s.Limit())
			}
			// And back, when it is looked at again: not before, for it costs probes.
			w.size = 1472
			w.run(s, raiseAfter-time.Minute, true)
			if s.Limit() > size {
				t.Errorf("to %d: raised early, to %d", size, s.Limit())
			}
			w.run(s, 2*time.Minute, true)
			if s.Limit() != full {
				t.Errorf("from %d: limit %d at last", size, s.Limit())
			}
		}
	}
}

// A path becomes narrow while it is searched still.
func TestPathShrinksWhileSearched(t *testing.T) {
	const rtt = 20 * time.Millisecond
	for after := rtt; after < 15*rtt; after += 5 * time.Millisecond {
		w := &way{size: 1252, rtt: rtt}
		s := New(full)
		w.run(s, after, true)
		w.size = 900
		from := w.now
		for s.Limit() > w.size {
			if w.run(s, time.Millisecond, true); w.now-from > confirmEvery+2*(2*rtt+spareWait)+2*rtt {
				t.Fatalf("after %v: limit still %d", after, s.Limit())
			}
		}
		if w.until(t, s); !exact(s.Limit(), w.size) {
			t.Errorf("after %v: limit %d", after, s.Limit())
		}
	}
}

// One confirmation that is lost, or its answer, costs a round trip with small datagrams, and no new search.
func TestLostConfirmation(t *testing.T) {
	const rtt = 20 * time.Millisecond
	for _, size := range []int{1472, 1096} {
		w := &way{size: size, rtt: rtt}
		s := New(full)
		w.until(t, s)
		limit := s.Limit()
		w.size = 0
		w.run(s, confirmEvery+rtt, true)
		w.size = size
		before := w.probes
		for s.Limit() == limit {
			w.run(s, time.Millisecond, true)
		}
		w.run(s, rtt+2*time.Millisecond, true)
		if s.Limit() != limit || !s.Settled() || w.probes-before > 6 {
			t.Errorf("size %d: limit %d, settled %v after %d probes", size, s.Limit(), s.Settled(), w.probes-before)
		}
	}
}

// A path that may be another begins with what passes everywhere, and is where it was after a round trip if it is the same.
func TestRestart(t *testing.T) {
	const rtt = 20 * time.Millisecond
	for _, size := range []int{1472, 1096} {
		w := &way{size: size, rtt: rtt}
		s := New(full)
		w.until(t, s)
		limit := s.Limit()
		s.Restart()
		if s.Limit() != Least || s.Settled() {
			t.Errorf("limit %d, settled %v", s.Limit(), s.Settled())
		}
		if w.run(s, rtt+2*time.Millisecond, true); s.Limit() != limit {
			t.Errorf("limit %d after a round trip, not %d", s.Limit(), limit)
		}
		w.size = 850
		s.Restart()
		for !s.Settled() {
			if w.run(s, time.Millisecond, true); s.Limit() > w.size {
				t.Fatalf("limit %d", s.Limit())
			}
		}
	}
}

func TestRaisingAPathThatStaysNarrow(t *testing.T) {
	w := &way{size: 1252, rtt: 20 * time.Millisecond}
	s := New(full)
	w.until(t, s)
	for range 3 {
		w.run(s, raiseAfter+10*time.Second, true)
		if s.Limit() != 1252 || !s.Settled() {
			t.Errorf("limit %d, settled %v", s.Limit(), s.Settled())
		}
	}
}

// A dead path teaches nothing about its size, and is not flooded.
func TestDeadPath(t *testing.T) {
	w := &way{size: 1472, rtt: 20 * time.Millisecond}
	s := New(full)
	w.until(t, s)
	w.size = 0
	w.run(s, time.Minute, true)
	if s.Limit() != Least || s.Settled() {
		t.Errorf("limit %d, settled %v", s.Limit(), s.Settled())
	}
	if w.probes > 120 {
		t.Errorf("%d probes", w.probes)
	}
	// When something else is heard from there it is asked at once.
	w.size = 1472
	s.Alive(w.now)
	if took := w.until(t, s); took > 22*time.Millisecond || s.Limit() != full {
		t.Errorf("limit %d, %v after it is back", s.Limit(), took)
	}
	w.size = 0
	w.run(s, time.Minute, true)
	w.size = 1472
	if w.run(s, 2*maxWait, true); s.Limit() != full {
		t.Errorf("limit %d when it is back", s.Limit())
	}
	// It dies in the middle of a search.
	w = &way{size: 1252, rtt: 20 * time.Millisecond}
	s = New(full)
	w.run(s, 300*time.Millisecond, true)
	w.size = 0
	w.run(s, time.Minute, true)
	w.size = 1472
	if w.until(t, s); s.Limit() != full {
		t.Errorf("limit %d after an outage", s.Limit())
	}
}

// Nothing is sent over a path that nobody uses.
func TestIdle(t *testing.T) {
	w := &way{size: 1472, rtt: 20 * time.Millisecond}
	s := New(full)
	w.until(t, s)
	before := w.probes
	w.run(s, time.Hour, false)
	if w.probes != before {
		t.Errorf("%d probes", w.probes-before)
	}
	w.run(s, time.Minute, true)
	if n := w.probes - before; n < 50 || n > 61 {
		t.Errorf("%d confirmations in a minute of use", n)
	}
}

// A host that knows its own interface to be narrower need not wait.
func TestRefused(t *testing.T) {
	for _, own := range []int{1440, 1420, 1252, 1096} {
		w := &way{size: 1472, own: own, rtt: 20 * time.Millisecond}
		s := New(full, 1440, 1420)
		if took := w.until(t, s); !exact(s.Limit(), own) || took > 500*time.Millisecond {
			t.Errorf("own %d: limit %d after %v", own, s.Limit(), took)
		}
	}
	// The interface becomes narrower later: what is sent is refused.
	w := &way{size: 1472, rtt: 20 * time.Millisecond}
	s := New(full)
	w.until(t, s)
	w.own = 1000
	s.Refused(full)
	s.Refused(Base)
	if s.Limit() >= Base {
		t.Errorf("limit %d", s.Limit())
	}
	if w.until(t, s); !exact(s.Limit(), 1000) {
		t.Errorf("limit %d", s.Limit())
	}
}

// A relay's header makes the usual path too narrow by a known number of bytes.
func TestGuesses(t *testing.T) {
	w := &way{size: 1440, rtt: 20 * time.Millisecond}
	s := New(full, 1440, 1420)
	w.run(s, 25*time.Millisecond, true)
	if s.Limit() != 1440 {
		t.Errorf("limit %d after a round trip", s.Limit())
	}
	w.until(t, s)
	if !exact(s.Limit(), 1440) {
		t.Errorf("limit %d", s.Limit())
	}
}

// Answers that come after their time still count.
func TestSlowPath(t *testing.T) {
	w := &way{size: 1472, rtt: 1900 * time.Millisecond}
	s := New(full)
	w.until(t, s)
	w.run(s, 10*time.Second, true)
	if s.Limit() != full || !s.Settled() {
		t.Errorf("limit %d, settled %v", s.Limit(), s.Settled())
	}
}

func TestSuspect(t *testing.T) {
	w := &way{size: 1472, rtt: 20 * time.Millisecond}
	s := New(full)
	w.until(t, s)
	w.now += time.Hour
	s.Suspect(w.now)
	before := w.probes
	if w.run(s, 50*time.Millisecond, true); w.probes != before+1 {
		t.Errorf("%d probes", w.probes-before)
	}
}

// FuzzSearch has answers, refusals and time come in any order: the limit is always one that can be sent, a search never
// sends much at once, and the path that is there is found in the end.
func FuzzSearch(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 250, 17}, uint16(1252))
	f.Add([]byte{9, 9, 9, 100, 100}, uint16(1472))
	f.Add([]byte{50}, uint16(47))
	f.Fuzz(func(t *testing.T, script []byte, size uint16) {
		w := &way{size: max(Least, int(size)%1600), rtt: 10 * time.Millisecond}
		s := New(full)
		for _, b := range script[:min(len(script), 64)] {
			asked := Least + int(b)*4
			switch b % 6 {
			case 0:
				s.Answered(min(asked, w.size), time.Duration(b)*time.Millisecond, w.now)
			case 1:
				s.Suspect(w.now)
			case 2:
				if asked > w.size {
					s.Refused(asked)
				}
			case 3:
				s.Restart()
			case 4:
				s.Alive(w.now)
			}
			before := w.probes
			w.run(s, time.Duration(b)*10*time.Millisecond, b%2 == 0)
			if limit := s.Limit(); limit < Least || limit > min(w.size, full) {
				t.Fatalf("limit %d", limit)
			}
			if w.probes-before > 200 {
				t.Fatalf("%d probes in %d0 ms", w.probes-before, b)
			}
		}
		w.run(s, time.Minute, true)
		w.until(t, s)
		if s.Limit() > w.size {
			t.Errorf("limit %d on a path of %d", s.Limit(), w.size)
		}
		w.run(s, 2*raiseAfter, true)
		w.until(t, s)
		if !exact(s.Limit(), w.size) {
			t.Errorf("limit %d on a path of %d", s.Limit(), w.size)
		}
	})
}
