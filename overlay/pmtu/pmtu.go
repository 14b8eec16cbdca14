// SPDX-License-Identifier: Apache-2.0

// Package pmtu finds how long a datagram a path carries, by probing it (RFC 8899) and by nothing else: what ICMP says
// may be lost, or forged. It is pure: time is an argument, and sizes to be probed come out.
//
// Nothing is sent in a size that only may pass. A search begins with what every path carries, or with what has passed already,
// probes many sizes at once, and raises the limit with each answer: whatever the path carries, one round trip later the limit
// is near it. What was proved counts as long as it is answered; one answer that stays out takes it back, until the next one.
//
// All sizes are bytes of UDP payload. A probe is a datagram of just that size that the other end answers with a small one.
package pmtu

import (
	"slices"
	"time"
)

const (
	// Base is what nearly every path carries: the minimum MTU of IPv6, 1280, less the headers of the outer packet and of a
	// relay (RFC 8899, section 5.1.2: BASE_PLPMTU).
	Base = 1200
	// Least is what every path is taken to carry (RFC 8899, section 5.1.2: MIN_PLPMTU).
	Least = 600

	// grain is how exactly the limit is looked for.
	grain = 4
	// tries is how often a size is probed before it counts as too long (RFC 8899, section 5.1.2: MAX_PROBES).
	tries = 3
	// confirmEvery is how often the limit is probed again while long datagrams are sent: with one wait for the answer, so
	// late is it noticed that a path became narrow.
	confirmEvery = time.Second
	// raiseAfter is when a path that was narrow is searched again (RFC 8899, section 5.1.1: PMTU_RAISE_TIMER).
	raiseAfter = 10 * time.Minute

	// Before a size is probed again its answer is waited for twice the round trip and spareWait more, which is what the other end's and our own processor may be
	// late by; without a round trip known, for unknownWait. While nothing at all is answered that doubles, up to maxWait.
	spareWait   = 50 * time.Millisecond
	unknownWait = 500 * time.Millisecond
	maxWait     = 5 * time.Second
	// Probes that left together come back together: after the first answer the others are waited for half a round trip and
	// reorderWait more before sizes between the two are probed.
	reorderWait = 3 * time.Millisecond
)

// ladder are sizes that are tried at once, next to the longest, where little is known. From one to the next it is a quarter at
// most: so much of the speed can be missing one round trip later.
var ladder = [...]int{Base, 1000, 800, Least}

// Search is what is known of one path, in one direction. It is not safe for concurrent use.
type Search struct {
	want    int
	guesses []int // sizes that are likely to be just right

	low     int  // the longest that was answered; 0: none
	high    int  // the shortest that is too long; want+1: none is known
	last    int  // what low was when it was last taken back; 0: never
	settled bool // the search has ended

	rtt    time.Duration // 0: unknown
	wait   time.Duration // for answers
	due    time.Duration // when waiting ends
	probes []int         // what Step returns

	// While searching.
	round []attempt // sizes that are being probed
	alive bool      // something was answered since probes were sent last

	// While settled.
	confirm  time.Duration // when the limit is to be confirmed next, if it is used
	raise    time.Duration // when a limit below want is looked at again
	awaiting bool          // a confirmation is under way
}

// attempt is a size that is being probed.
type attempt struct {
	size     int
	count    int           // how often, while the path was alive
	at       time.Duration // when it was probed last
	answered bool
}

// New begins a search for up to want, the longest size that is of use. The first probes are of this size, of the guesses, and
// of some that are shorter.
func New(want int, guesses ...int) *Search {
	s := &Search{want: max(want, Least), guesses: slices.Clone(guesses)}
	s.Restart()
	return s
}

// Restart says that the path may be another by now, as it is after the host or the peer moved, or another path was used
// meanwhile. The search begins anew; what was found before is one of the first sizes that it tries.
func (s *Search) Restart() {
	s.takeBack()
	s.high, s.settled, s.awaiting = s.want+1, false, false
	s.wait, s.due, s.round = 0, 0, s.round[:0]
}

// takeBack forgets what was proved.
func (s *Search) takeBack() {
	if s.low > 0 {
		s.last = s.low
	}
	s.low = 0
}

// Limit is the length of the longest datagram that should be sent.
func (s *Search) Limit() int { return max(s.low, Least) }

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
		s.judge(now)
		s.next(now)
	case s.awaiting:
		// The path swallows what is longer than it carries now, or the probe was lost, or the path is dead. Until it is known
		// which, what is sent has to pass. (What was too long stays so: a lost probe costs no new search.)
		s.settled, s.awaiting = false, false
		s.takeBack()
		s.round = s.round[:0]
		s.next(now)
	case s.low < s.want && now >= s.raise:
		s.settled, s.high, s.round = false, s.want+1, s.round[:0]
		s.next(now)
	default:
		s.wait = s.patience()
		s.awaiting, s.due = true, now+s.wait
		s.probes = append(s.probes, s.low)
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

// judge ends a round: what was probed often enough without an answer is too long. Where nothing was answered, also not what
// passed before, the path may be narrower now, or dead, and nothing that was known counts.
func (s *Search) judge(now time.Duration) {
	if len(s.round) == 0 {
		return
	}
	if !s.alive {
		if s.low == 0 {
			s.high = s.want + 1 // for the second time: not by bad luck
		}
		s.takeBack()
		s.wait = min(2*s.wait, maxWait)
		for i := range s.round {
			s.round[i].count = 0
		}
		return
	}
	s.wait = s.patience()
	for _, a := range s.round {
		if !a.answered && a.count >= tries && now-a.at >= s.wait && a.size > s.low {
			s.high = min(s.high, a.size)
		}
	}
}

// next begins a round, or ends the search.
func (s *Search) next(now time.Duration) {
	if s.low >= s.want || s.low > 0 && s.high-s.low <= grain {
		s.settle(now)
		return
	}
	s.choose()
	s.wait = max(s.wait, s.patience())
	s.due = now + s.wait
	for i := range s.round {
		a := &s.round[i]
		if a.count > 0 && now-a.at < s.wait {
			s.due = min(s.due, a.at+s.wait)
			continue
		}
		a.count, a.at = a.count+1, now
		s.probes = append(s.probes, a.size)
	}
	if len(s.probes) == 0 {
		return
	}
	s.alive, s.due = false, now+s.wait
	if s.low > 0 {
		s.probes = append(s.probes, s.low) // tells whether the path is alive
	}
}

func (s *Search) settle(now time.Duration) {
	s.settled, s.awaiting = true, false
	s.confirm, s.raise = now+confirmEvery, now+raiseAfter
}

// choose fills the round: with what is still open, what is wanted, the guesses, and the ladder, as far as they teach anything.
// From the second round on three sizes are added that divide what lies between the longest that was answered and the shortest
// that was not: that one is too long, or was lost, and nobody waits to know which.
func (s *Search) choose() {
	again := len(s.round) > 0
	s.round = slices.DeleteFunc(s.round, func(a attempt) bool { return a.size <= s.low || a.size >= s.high })
	if s.low == 0 || s.high > s.want {
		s.add(s.want)
		for _, g := range s.guesses {
			s.add(g)
		}
		s.add(s.last)
		for _, n := range ladder {
			if n-s.Limit() > grain || s.low == 0 && again {
				s.add(n)
			}
		}
	}
	switch {
	case s.low > 0 && (again || len(s.round) == 0):
		s.divide()
	case len(s.round) == 0:
		s.add(Least)
	}
}

func (s *Search) divide() {
	short := s.high
	for _, a := range s.round {
		short = min(short, a.size)
	}
	if short-s.low <= grain {
		return
	}
	open := len(s.round)
	for k := 1; k <= 3; k++ {
		s.add((s.low + (short-s.low)*k/4) / grain * grain)
	}
	if len(s.round) == open {
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

// Answered takes the answer to a probe, however late, or to another datagram of that size. rtt is how long it took; 0: unknown.
func (s *Search) Answered(size int, rtt, now time.Duration) {
	size = min(size, s.want)
	if rtt > 0 {
		s.rtt = max(rtt, s.rtt*7/8)
	}
	if s.settled && size <= s.low {
		if size == s.low {
			s.awaiting, s.confirm = false, now+confirmEvery
		}
		return
	}
	if size > s.low {
		s.low = size
		if s.high <= size {
			s.high = s.want + 1 // it was only late
		}
	}
	if s.settled {
		s.settled, s.awaiting, s.round, s.due = false, false, s.round[:0], now
		return
	}
	s.alive = true
	open := false
	for i := range s.round {
		a := &s.round[i]
		a.answered = a.answered || a.size <= size
		open = open || !a.answered
	}
	s.due = min(s.due, now+s.rtt/2+reorderWait)
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
		s.Restart()
	}
	s.high = size
	s.round = slices.DeleteFunc(s.round, func(a attempt) bool { return a.size >= size })
	if len(s.round) == 0 {
		s.due = 0
	}
}

// Suspect says that nothing comes back along the path though long datagrams were sent: the limit is confirmed at once.
func (s *Search) Suspect(now time.Duration) {
	if s.settled {
		s.confirm = min(s.confirm, now)
	}
}

// Alive says that something came back along the path. Where no probe did, they are sent again at once: the path was dead.
func (s *Search) Alive(now time.Duration) {
	if !s.settled && s.low == 0 && s.wait > s.patience() {
		s.wait, s.due = 0, min(s.due, now)
	}
}
