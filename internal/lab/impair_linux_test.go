// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// journey is when a frame came out.
type journey struct {
	number uint32
	after  time.Duration // since it came in
}

// send puts numbered frames into a direction, one every gap, and returns those that come out, in their order.
func send(t *testing.T, seed uint64, i Impairment, frames int, gap time.Duration) ([]journey, Counters) {
	t.Helper()
	i, err := i.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	d := newDirection(seed, 0)
	d.set(i)
	var out []journey
	begin := time.Unix(0, 0)
	drain := func(now time.Time) {
		for p := d.take(now); p != nil; p = d.take(now) {
			number := binary.BigEndian.Uint32(p.frame[:])
			out = append(out, journey{number, now.Sub(begin.Add(time.Duration(number) * gap))})
			d.done(p, true)
		}
	}
	now := begin
	for n := range frames {
		drain(now)
		frame := make([]byte, 60+n%1400)
		binary.BigEndian.PutUint32(frame, uint32(n))
		d.offer(now, frame)
		drain(now)
		now = now.Add(gap)
	}
	for wait, ok := d.next(now); ok; wait, ok = d.next(now) {
		now = now.Add(wait)
		drain(now)
	}
	return out, d.count()
}

func TestImpairmentKeepsItsRates(t *testing.T) {
	const frames, gap = 50_000, 100 * time.Microsecond
	i := Impairment{Loss: 0.05, Duplication: 0.02, Reordering: 0.03, Late: 2 * time.Millisecond, Delay: 15 * time.Millisecond}
	out, c := send(t, 7, i, frames, gap)
	// Five standard deviations of a binomial distribution.
	within := func(what string, got uint64, of float64, p float64) {
		t.Helper()
		want := of * p
		if d := float64(got) - want; d*d > 25*want*(1-p) {
			t.Errorf("%s: %d of %.0f, which is far from %v", what, got, of, p)
		}
	}
	within("lost", c.Lost, frames, i.Loss)
	within("doubled", c.Duplicated, frames*(1-i.Loss), i.Duplication)
	within("overtaken", c.Reordered, float64(c.Delivered), i.Reordering)
	if c.Received != frames || c.Delivered != c.Received+c.Duplicated-c.Lost || int(c.Delivered) != len(out) || c.Overflowed+c.Oversized+c.Refused != 0 {
		t.Errorf("the counters don't add up: %d came out: %v", len(out), c)
	}
	seen := map[uint32]int{}
	for _, j := range out {
		seen[j.number]++
		if late := j.after - i.Delay; late != 0 && late != i.Late {
			t.Fatalf("frame %d was under way for %v", j.number, j.after)
		}
	}
	for number, times := range seen {
		if times > 2 {
			t.Fatalf("frame %d came out %d times", number, times)
		}
	}
	if again, _ := send(t, 7, i, frames, gap); !slices.Equal(out, again) {
		t.Error("the same seed has another result")
	}
	if other, _ := send(t, 8, i, frames, gap); slices.Equal(out, other) {
		t.Error("another seed has the same result")
	}
}

// What one setting decides does not depend on another.
func TestImpairmentLosesTheSameFramesWhateverElse(t *testing.T) {
	numbers := func(i Impairment) []uint32 {
		out, _ := send(t, 3, i, 10_000, time.Millisecond)
		var n []uint32
		for _, j := range out {
			n = append(n, j.number)
		}
		slices.Sort(n)
		return slices.Compact(n)
	}
	if !slices.Equal(numbers(Impairment{Loss: 0.1}), numbers(Impairment{Loss: 0.1, Duplication: 0.2, Reordering: 0.3, Delay: time.Second})) {
		t.Error("other frames are lost once there are duplicates and delays")
	}
}

func TestImpairmentOfNothing(t *testing.T) {
	out, c := send(t, 1, Impairment{}, 10_000, time.Microsecond)
	if len(out) != 10_000 || c != (Counters{Received: 10_000, Delivered: 10_000}) {
		t.Errorf("%d came out: %v", len(out), c)
	}
	for n, j := range out {
		if j != (journey{number: uint32(n)}) {
			t.Fatalf("as number %d came %v", n, j)
		}
	}
}

func TestImpairmentIsBounded(t *testing.T) {
	out, c := send(t, 1, Impairment{Delay: time.Second, Queue: 100}, 1000, time.Millisecond)
	if len(out) != 100 || c.Overflowed != 900 || out[99].number != 99 {
		t.Errorf("%d came out: %v", len(out), c)
	}
	d := newDirection(1, 1)
	d.offer(time.Unix(0, 0), make([]byte, maxFrame+1))
	if c := d.count(); c.Oversized != 1 || len(d.queue) != 0 {
		t.Errorf("an oversized frame: %v", c)
	}
	for _, wrong := range []Impairment{{Loss: 1.1}, {Duplication: -0.1}, {Delay: -1}, {Queue: -1}} {
		if _, err := wrong.withDefaults(); err == nil {
			t.Errorf("accepted: %+v", wrong)
		}
	}
}

// pairOn makes two hosts on one bridge, the first on an impaired link.
func pairOn(l *Lab, seed uint64) (a, b *Host, e *Emulator) {
	l.tb.Helper()
	wan := l.Bridge("wan")
	a, b = l.Host("a"), l.Host("b")
	link := a.Connect(wan, "192.0.2.10/24")
	b.Connect(wan, "192.0.2.11/24")
	return a, b, link.Impair(seed, Impairment{}, Impairment{})
}

func TestImpairedLinkCarriesPing(t *testing.T) {
	ctx := deadline(t, time.Minute)
	l := open(t)
	Programs(t, "ping")
	a, b, e := pairOn(l, 1)
	pingTimes(t, a, "192.0.2.11", 3)

	const out, in = 20 * time.Millisecond, 10 * time.Millisecond
	e.Set(Impairment{Delay: out}, Impairment{Delay: in})
	for _, ms := range pingTimes(t, b, "192.0.2.10", 5) {
		if ms < 30 {
			t.Errorf("a round trip of %v ms over a link of 30 ms", ms)
		}
	}
	e.Set(Impairment{Duplication: 1}, Impairment{Duplication: 1})
	r := a.Run(ctx, "ping", "-n", "-c", "2", "-i", "0.05", "-W", "5", "192.0.2.11")
	var duplicates int
	for line := range slices.Values(lines(r.Stdout)) {
		if len(line) > 6 && line[len(line)-6:] == "(DUP!)" {
			duplicates++
		}
	}
	if !r.OK() || duplicates == 0 {
		t.Errorf("no duplicates: %v", r)
	}
	e.Set(Impairment{}, Impairment{Loss: 1})
	if r := a.Run(ctx, "ping", "-n", "-c", "1", "-W", "1", "192.0.2.11"); r.OK() {
		t.Errorf("an answer over a link that loses all: %v", r)
	}
	for name, c := range map[string]Counters{"out": first(e.Counters()), "in": second(e.Counters())} {
		if c.Received < 10 || c.Duplicated == 0 || c.Oversized != 0 || c.Overflowed != 0 {
			t.Errorf("%s: %v", name, c)
		}
	}
}

func first[A, B any](a A, _ B) A  { return a }
func second[A, B any](_ A, b B) B { return b }

// The hosts' own interfaces take bursts with unfinished checksums; on the emulated cable there are whole frames only.
func TestImpairedLinkCarriesWholeFrames(t *testing.T) {
	ctx := deadline(t, time.Minute)
	l := open(t)
	a, b, e := pairOn(l, 1)
	out, in := watch(t, l.fabric, "port0f", unix.PACKET_OUTGOING), watch(t, l.fabric, "port0n", unix.PACKET_OUTGOING)
	if err := exchange(ctx, a, b, netip.MustParseAddrPort("192.0.2.11:7001"), 4<<20); err != nil {
		t.Error(err)
	}
	if err := datagramBursts(ctx, a, b, netip.MustParseAddrPort("192.0.2.11:7002")); err != nil {
		t.Error(err)
	}
	for name, w := range map[string]*watcher{"out": out, "in": in} {
		s := w.stop(t)
		t.Logf("%s: %v", name, s)
		if s.partial != 0 || s.longest > maxFrame || len(s.wrong) > 0 || s.verified["TCP"] < 1000 {
			t.Errorf("%s: %v\n%s", name, s, s.wrong)
		}
	}
	co, ci := e.Counters()
	if fmt.Sprint(co.Oversized, ci.Oversized, co.Lost, ci.Lost) != "0 0 0 0" || co.Received != co.Delivered || ci.Received != ci.Delivered {
		t.Errorf("out: %v; in: %v", co, ci)
	}
}
