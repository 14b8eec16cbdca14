// SPDX-License-Identifier: Apache-2.0

// Package pmtu finds how long a datagram a path carries, by probing it (RFC 8899) and by nothing else: what ICMP says
// may be lost, or forged. It is pure: time is an argument, and sizes to be probed come out.
//
// All sizes are bytes of UDP payload. A probe is a datagram of just that size that the other end answers with a small one.
package pmtu

import (
	"slices"
	"time"
)

const (
	// Base is what nearly every path carries, and what is sent before anything is known: the minimum MTU of IPv6, 1280,
	// less the headers of the outer packet and of a relay (RFC 8899, section 5.1.2: BASE_PLPMTU).
	Base = 1200
	// Cautious is where to begin where datagrams of Base are known not to pass, or feared not to.
	Cautious = 800
	// Least is what every path is taken to carry.
	Least = 600

	// grain is how exactly the limit is looked for.
	grain = 4
	// tries is how often a size is probed before it counts as too long (RFC 8899, section 5.1.2: MAX_PROBES).
	tries = 3
	// confirmEvery is how often the limit is probed again while long datagrams are sent: with the time that tries take, so
	// late is it noticed that a path became narrow.
	confirmEvery = time.Second
	// raiseAfter is when a path that was narrow is searched again (RFC 8899, section 5.1.1: PMTU_RAISE_TIMER).
	raiseAfter = 10 * time.Minute

	// An answer is waited for twice the round trip and spareWait more; without one known, for unknownWait. While nothing
	// at all is answered that doubles, up to maxWait.
	spareWait   = 100 * time.Millisecond
	unknownWait = 500 * time.Millisecond
	maxWait     = 5 * time.Second

	maxGuesses = 4
)

// narrow are sizes that are tried where nothing longer was answered, from the longest.
var narrow = [...]int{Base, 1000, Cautious, Least}

// Search is what is known of one path, in one direction. It is not safe for concurrent use.
type Search struct {
	want    int
	guesses []int // sizes that are likely to be just right

	limit   int
	low     int  // the longest that was answered; 0: none
	high    int  // the shortest that is too long; want+1: none is known
	settled bool // the search has ended

	rtt    time.Duration // 0: unknown
	wait   time.Duration // for answers
	due    time.Duration // when waiting ends
	probes []int         // what Step returns

	// While searching.
	round []attempt // sizes that are being probed
	alive bool      // something was answered in this round
	doubt bool      // Base may be too long

	// While settled.
	confirm  time.Duration // when the limit is to be confirmed next, if it is used
	raise    time.Duration // when a limit below want is looked at again
	awaiting bool          // a confirmation is under way
	missing  int           // how many in a row had no answer
}

// attempt is a size that is being probed.
type attempt struct {
	size     int
	count    int // how often, while the path was alive
	answered bool
}

// New begins a search for up to want, the longest size that is of use. The first probes are of this size and of the
// guesses. Until something is answered start is the limit: Base, or Cautious.
func New(want, start int, guesses ...int) *Search {
	s := &Search{want: max(want, Least), guesses: slices.Clone(guesses)}
	s.begin(min(start, s.want), start < Base)
	return s
}

// begin starts from nothing.
func (s *Search) begin(limit int, doubt bool) {
	s.limit, s.low, s.high, s.settled = limit, 0, s.want+1, false
	s.wait, s.due, s.round, s.doubt = 0, 0, s.round[:0], doubt
}

// Limit is the length of the longest datagram that should be sent.
func (s *Search) Limit() int { return s.limit }

// Settled reports whether the limit is what the path carries, as far as can be known: the search has ended.
func (s *Search) Settled() bool { return s.settled }

// Due is when Step wants to be called at the latest. used has the meaning that it has for Step.
func (s *Search) Due(used bool) time.Duration {
	const never = 1<<63 - 1
	if !s.settled || s.awaiting {
		return s.due
	}
	due := time.Duration(never)
	if used {
		due = s.confirm
	}
	if s.low < s.want {
		due = min(due, s.raise)
	}
	return due
}

// Step returns the sizes that are to be probed now, often none. used says that datagrams longer than Least were sent since
// Step last returned one: without them a settled limit is not confirmed. The sizes are the caller's until the next call.
func (s *Search) Step(now time.Duration, used bool) []int {
	s.probes = s.probes[:0]
	switch {
	case now < s.Due(used):
	case !s.settled:
		s.judge()
		s.next(now)
	case s.awaiting:
		s.missed(now)
	case s.low < s.want && now >= s.raise:
		s.settled, s.high, s.round = false, s.want+1, s.round[:0]
		s.next(now)
	default:
		s.wait = s.patience()
		s.ask(now)
	}
	return s.probes
}

// patience is how long an answer is waited for.
func (s *Search) patience() time.Duration {
	if s.rtt == 0 {
		return unknownWait
	}
	return 2*s.rtt + spareWait
}

// ask confirms the limit.
func (s *Search) ask(now time.Duration) {
	s.awaiting, s.due = true, now+s.wait
	s.probes = append(s.probes, s.low)
}

// missed handles a confirmation without an answer. After some of them the path swallows what is longer than it carries
// now, or it is dead; either way the search begins anew.
func (s *Search) missed(now time.Duration) {
	if s.missing++; s.missing < tries {
		s.wait *= 2
		s.ask(now)
		return
	}
	s.guess(s.low)
	s.begin(min(s.limit, Base), true)
	s.next(now)
}

// guess remembers a size that may be right again.
func (s *Search) guess(size int) {
	if size < s.want && !slices.Contains(s.guesses, size) && !slices.Contains(narrow[:], size) {
		s.guesses = slices.Insert(s.guesses, 0, size)
		s.guesses = s.guesses[:min(len(s.guesses), maxGuesses)]
	}
}

// judge ends a round: what was probed often enough without an answer is too long. Where nothing was answered the path may
// have been dead, and nothing was learnt.
func (s *Search) judge() {
	if len(s.round) == 0 {
		return
	}
	if !s.alive {
		s.wait = min(2*s.wait, maxWait)
		for i := range s.round {
			s.round[i].count = 0
		}
		return
	}
	s.wait = s.patience()
	for _, a := range s.round {
		if !a.answered && a.count >= tries && a.size > s.low {
			s.high = min(s.high, a.size)
		}
	}
	s.limit = s.low // also where that is less than the search began with
}

// next begins a round, or ends the search.
func (s *Search) next(now time.Duration) {
	if s.low >= s.want || s.low > 0 && s.high-s.low <= grain {
		s.settle(now)
		return
	}
	s.choose()
	s.alive = false
	s.wait = max(s.wait, s.patience())
	s.due = now + s.wait
	for i := range s.round {
		s.round[i].count++
		s.probes = append(s.probes, s.round[i].size)
	}
	if s.low > 0 {
		s.probes = append(s.probes, s.low) // tells whether the path is alive
	}
}

func (s *Search) settle(now time.Duration) {
	s.settled, s.awaiting, s.missing, s.limit = true, false, 0, s.low
	s.confirm, s.raise = now+confirmEvery, now+raiseAfter
}

// choose fills the round: with what is wanted, the guesses, and sizes that should pass; when something was answered with
// those of the last round that are still open; at last with three that divide what is left in four.
func (s *Search) choose() {
	again := len(s.round) > 0
	s.round = slices.DeleteFunc(s.round, func(a attempt) bool { return a.size <= s.low || a.size >= s.high })
	if s.low > 0 && len(s.round) > 0 {
		return
	}
	if s.high > s.want {
		s.add(s.want)
		for _, g := range s.guesses {
			s.add(g)
		}
	}
	if s.low == 0 {
		for _, n := range narrow {
			if n == Base || s.doubt || again {
				s.add(n)
			}
		}
	}
	if len(s.round) == 0 {
		for k := 1; k <= 3; k++ {
			s.add((s.low + (s.high-s.low)*k/4) / grain * grain)
		}
	}
	if len(s.round) == 0 {
		s.add(s.low + grain)
	}
}

// add adds a size to the round if it can teach anything.
func (s *Search) add(size int) {
	if size <= s.low || size >= s.high || slices.ContainsFunc(s.round, func(a attempt) bool { return a.size == size }) {
		return
	}
	s.round = append(s.round, attempt{size: size})
}

// Answered takes the answer to a probe, however late. rtt is how long it took.
func (s *Search) Answered(size int, rtt, now time.Duration) {
	size = min(size, s.want)
	s.rtt = max(rtt, s.rtt*7/8, time.Nanosecond)
	if size > s.low {
		s.low = size
		if s.high <= size {
			s.high = s.want + 1 // it was only late
		}
	}
	s.limit = max(s.limit, s.low)
	if s.settled {
		if size >= s.low {
			s.awaiting, s.missing, s.confirm = false, 0, now+confirmEvery
		}
		return
	}
	s.alive = true
	open := false
	for i := range s.round {
		a := &s.round[i]
		a.answered = a.answered || a.size <= size
		open = open || !a.answered
	}
	s.due = min(s.due, now+s.patience())
	if !open || s.low >= s.want {
		s.due = now
	}
}

// Refused says that the host itself does not send datagrams of a size: its own interface is narrower.
func (s *Search) Refused(size int) {
	if size >= s.high || size <= Least {
		return
	}
	if size <= s.low || s.settled {
		s.begin(min(s.limit, Base), false)
	}
	s.high = size
	for _, n := range narrow {
		if s.limit >= size {
			s.limit, s.doubt = min(s.limit, n), true
		}
	}
	s.round = slices.DeleteFunc(s.round, func(a attempt) bool { return a.size >= size })
	if len(s.round) == 0 {
		s.due = 0
	}
}

// Resume says that the path may have changed: it is used again after another was, or nothing comes back along it.
func (s *Search) Resume(now time.Duration) {
	if s.settled {
		s.confirm = min(s.confirm, now)
	}
}
