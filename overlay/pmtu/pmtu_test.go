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

func TestUsualPathTakesOneRoundTrip(t *testing.T) {
	w := &way{size: 1472, rtt: 30 * time.Millisecond}
	s := New(full, Base)
	if s.Limit() != Base || s.Settled() {
		t.Fatalf("begins with %d", s.Limit())
	}
	if took := w.until(t, s); took > 35*time.Millisecond || s.Limit() != full {
		t.Errorf("limit %d after %v", s.Limit(), took)
	}
	if w.probes != 2 {
		t.Errorf("%d probes", w.probes)
	}
}

// All that may lie between two hosts, with nothing that says how narrow it is.
func TestAnyPath(t *testing.T) {
	for size := Least; size <= 1500; size++ {
		for _, start := range []int{Base, Cautious} {
			w := &way{size: size, rtt: 20 * time.Millisecond}
			s := New(full, start)
			took := w.until(t, s)
			if !exact(s.Limit(), size) {
				t.Errorf("size %d from %d: limit %d", size, start, s.Limit())
			}
			if took > 5*time.Second || w.sent > 100_000 {
				t.Errorf("size %d from %d: took %v and %d bytes", size, start, took, w.sent)
			}
		}
	}
}

// A narrow path carries traffic after a moment, whatever is still being searched.
func TestNarrowPathsAreUsableSoon(t *testing.T) {
	for _, tt := range []struct {
		size, start int
		within      time.Duration
	}{{1252, Base, 0}, {1232, Base, 0}, {1096, Cautious, 0}, {1096, Base, 1100 * time.Millisecond}, {Least, Base, 1100 * time.Millisecond}} {
		w := &way{size: tt.size, rtt: 20 * time.Millisecond}
		s := New(full, tt.start)
		for w.now <= tt.within {
			w.run(s, time.Millisecond, true)
		}
		for s.Limit() <= tt.size && !s.Settled() {
			w.run(s, time.Millisecond, true)
		}
		if s.Limit() > tt.size {
			t.Errorf("size %d from %d: limit %d after %v", tt.size, tt.start, s.Limit(), w.now)
		}
	}
}

func TestLossyPaths(t *testing.T) {
	wrong := 0
	for seed := range uint64(200) {
		for _, size := range []int{1472, 1252, 1096} {
			w := &way{size: size, rtt: 50 * time.Millisecond, loss: 0.05, rand: rand.New(rand.NewPCG(seed, 1))}
			s := New(full, Base)
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

// A path that becomes narrow in the middle swallows what is longer: a black hole.
func TestPathShrinks(t *testing.T) {
	for _, size := range []int{1372, 1252, 1232, 1096, 700, Least} {
		w := &way{size: 1472, rtt: 20 * time.Millisecond}
		s := New(full, Base)
		w.until(t, s)
		w.run(s, 1234*time.Millisecond, true)
		w.size = size
		from := w.now
		for s.Limit() > size {
			if w.run(s, time.Millisecond, true); w.now-from > 5*time.Second {
				t.Fatalf("size %d: limit still %d", size, s.Limit())
			}
		}
		t.Logf("to %d: usable after %v", size, w.now-from)
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

func TestRaisingAPathThatStaysNarrow(t *testing.T) {
	w := &way{size: 1252, rtt: 20 * time.Millisecond}
	s := New(full, Base)
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
	s := New(full, Base)
	w.until(t, s)
	w.size = 0
	w.run(s, time.Minute, true)
	if s.Limit() != Base || s.Settled() {
		t.Errorf("limit %d, settled %v", s.Limit(), s.Settled())
	}
	if w.probes > 120 {
		t.Errorf("%d probes", w.probes)
	}
	w.size = 1472
	w.run(s, 2*maxWait, true)
	if s.Limit() != full {
		t.Errorf("limit %d when it is back", s.Limit())
	}
	// It dies in the middle of a search.
	w = &way{size: 1252, rtt: 20 * time.Millisecond}
	s = New(full, Base)
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
	s := New(full, Base)
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
		s := New(full, Base, 1440, 1420)
		if took := w.until(t, s); !exact(s.Limit(), own) || took > 500*time.Millisecond {
			t.Errorf("own %d: limit %d after %v", own, s.Limit(), took)
		}
	}
	// The interface becomes narrower later: what is sent is refused.
	w := &way{size: 1472, rtt: 20 * time.Millisecond}
	s := New(full, Base)
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
	s := New(full, Base, 1440, 1420)
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
	s := New(full, Base)
	w.until(t, s)
	w.run(s, 10*time.Second, true)
	if s.Limit() != full || !s.Settled() {
		t.Errorf("limit %d, settled %v", s.Limit(), s.Settled())
	}
}

func TestResume(t *testing.T) {
	w := &way{size: 1472, rtt: 20 * time.Millisecond}
	s := New(full, Base)
	w.until(t, s)
	w.now += time.Hour
	s.Resume(w.now)
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
	f.Fuzz(func(t *testing.T, script []byte, size uint16) {
		w := &way{size: max(Least, int(size)%1600), rtt: 10 * time.Millisecond}
		s := New(full, Base)
		for _, b := range script[:min(len(script), 64)] {
			asked := Least + int(b)*4
			switch b % 4 {
			case 0:
				s.Answered(min(asked, w.size), time.Duration(b)*time.Millisecond, w.now)
			case 1:
				s.Resume(w.now)
			case 2:
				if asked > w.size {
					s.Refused(asked)
				}
			}
			before := w.probes
			w.run(s, time.Duration(b)*10*time.Millisecond, b%2 == 0)
			if limit := s.Limit(); limit < Least || limit > full {
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
