// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// bench is a binder with a clock and a relay that answers as told.
type bench struct {
	*binder
	now    time.Time
	secret Secret
	sent   []Control
	t      *testing.T
}

func newBench(t *testing.T, targets ...string) *bench {
	var list []netip.AddrPort
	for _, a := range targets {
		list = append(list, netip.MustParseAddrPort(a))
	}
	b := &bench{now: time.Unix(1790000000, 0), secret: Secret{5}, t: t}
	b.binder = newBinder(list, Welcome{Slot: 3, Token: Token{4}, Secret: b.secret}, rand.Reader)
	return b
}

func (b *bench) note(d []byte) *Control {
	if d == nil {
		return nil
	}
	c, ok := ParseControl(d)
	if !ok || !VerifyControl(d, &b.secret) || c.Op != OpBind || c.Slot != 3 || c.Token != (Token{4}) {
		b.t.Fatalf("it sent %x", d)
	}
	b.sent = append(b.sent, c)
	return &c
}

// step goes on to the next tick.
func (b *bench) step() *Control {
	if b.next.After(b.now) {
		b.now = b.next
	}
	return b.note(b.tick(b.now))
}

func (b *bench) answers(op Op, id uint64, cookie byte) *Control {
	return b.note(b.answer(b.now, Control{Op: op, ID: id, Cookie: [16]byte{cookie}, Observed: netip.MustParseAddrPort("192.0.2.7:7")}))
}

// bound goes through a whole exchange.
func (b *bench) bind() {
	b.t.Helper()
	ask := b.step()
	b.now = b.now.Add(20 * time.Millisecond)
	proof := b.answers(OpChallenge, ask.ID, 9)
	if proof == nil || proof.Cookie != [16]byte{9} || proof.ID != ask.ID {
		b.t.Fatalf("to the challenge it said %+v", proof)
	}
	b.now = b.now.Add(20 * time.Millisecond)
	b.answers(OpBound, ask.ID, 0)
	if !b.binder.bound || b.seen.String() != "192.0.2.7:7" || b.rtt != 20*time.Millisecond {
		b.t.Fatalf("bound %v, seen %v, %v", b.binder.bound, b.seen, b.rtt)
	}
}

func TestBinderKeepsAlive(t *testing.T) {
	b := newBench(t, "192.0.2.1:7745")
	b.start(b.now, false)
	b.bind()
	for range 10 {
		before := b.now
		ask := b.step()
		if d := b.now.Sub(before); d != bindInterval {
			t.Fatalf("after %v", d)
		}
		b.now = b.now.Add(20 * time.Millisecond)
		b.answers(OpBound, ask.ID, 0)
	}
	if n := len(b.sent); n != 12 { // the first exchange takes two
		t.Errorf("%d binds", n)
	}
}

func TestBinderGivesUp(t *testing.T) {
	b := newBench(t, "192.0.2.1:7745", "[2001:db8::1]:7745")
	b.start(b.now, false)
	b.bind()
	b.step()
	began := b.now
	for b.binder.bound {
		b.step()
	}
	if d := b.now.Sub(began); d != bindTries*bindPatience {
		t.Errorf("given up after %v", d)
	}
	if b.to().String() != "[2001:db8::1]:7745" {
		t.Errorf("then it asks %v", b.to())
	}
	for b.target != 0 {
		b.step()
	}
	if wait := b.next.Sub(b.now); wait < firstRetry/2 || wait > 2*firstRetry {
		t.Errorf("then it waits %v", wait)
	}
	b.bind() // and it comes back
}

func TestBinderHurries(t *testing.T) {
	b := newBench(t, "192.0.2.1:7745")
	b.start(b.now, false)
	b.bind()
	b.now = b.now.Add(5 * time.Second)
	began := b.now
	b.start(b.now, true)
	for b.binder.bound {
		b.step()
	}
	if d := b.now.Sub(began); d > time.Second {
		t.Errorf("given up after %v", d)
	}
}

// TestBinderBelievesItsOwnRound: answers to earlier rounds, to binds that were not sent, and floods of unbound change nothing.
func TestBinderBelievesItsOwnRound(t *testing.T) {
	b := newBench(t, "192.0.2.1:7745")
	b.start(b.now, false)
	ask := b.step()
	for _, id := range []uint64{0, ask.ID + 1, ask.ID + 256, ask.ID ^ 1<<40} {
		if b.answers(OpChallenge, id, 1) != nil || b.answers(OpBound, id, 1) != nil || b.binder.bound {
			t.Fatalf("believed %x for %x", id, ask.ID)
		}
	}
	b.answers(OpUnbound, 0, 0)
	b.answers(OpBound, ask.ID, 0)
	if !b.binder.bound {
		t.Fatal("not bound")
	}
	b.answers(OpBound, ask.ID, 0) // once more
	sent := len(b.sent)
	for range 100 {
		b.answers(OpUnbound, 0, 0)
		b.now = b.now.Add(time.Millisecond)
		b.note(b.tick(b.now))
	}
	if n := len(b.sent) - sent; n > 1 {
		t.Errorf("%d binds within 100 ms", n)
	}
}

func TestBinderWithoutTargets(t *testing.T) {
	b := newBench(t)
	b.start(b.now, true)
	if !b.next.IsZero() || b.step() != nil {
		t.Error("it does something")
	}
}

// slow is a connection that takes some bytes a second.
type slow struct {
	rate  int
	wrote int
}

func (s *slow) SetWriteDeadline(time.Time) error { return nil }
func (s *slow) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(len(b)) * time.Second / time.Duration(s.rate))
	s.wrote += len(b)
	return len(b), nil
}

// TestQueueStaysShort: on a slow connection little waits, on a fast one much may; Close writes what is there.
func TestQueueStaysShort(t *testing.T) {
	for _, tt := range []struct{ rate, rounds, least, most int }{{1_000_000, 600, leastLimit, 110_000}, {1 << 30, 200, 1 << 20, 1 << 20}} {
		synctest.Test(t, func(t *testing.T) {
			q, w := NewQueue(1<<20, 1), &slow{rate: tt.rate}
			ended := make(chan error, 1)
			go func() { ended <- q.Drain(context.Background(), w) }()
			d := make([]byte, 1000)
			for range tt.rounds { // on the slow one the first write may be of all that there is room for, and take a second
				for q.Data(1, netip.IPv6Unspecified(), d, len(d), 0) == 1 {
				}
				time.Sleep(5 * time.Millisecond)
			}
			q.mu.Lock()
			limit := q.limit
			q.mu.Unlock()
			if limit < tt.least || limit > tt.most {
				t.Errorf("%d bytes may wait at %d bytes a second", limit, tt.rate)
			}
			q.Frame(FrameBye, []byte{1})
			q.Close()
			if err := <-ended; !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
			if q.Data(1, netip.IPv6Unspecified(), d, len(d), 0) != 0 || q.Frame(FramePong) {
				t.Error("taken after Close")
			}
		})
	}
}

// TestQueueIsFair: one source leaves half of the room to others.
func TestQueueIsFair(t *testing.T) {
	q := NewQueue(100_000, 2)
	d := make([]byte, 1000)
	count := func(source uint32) (n int) {
		for q.Data(source, netip.IPv6Unspecified(), d, len(d), 0) == 1 {
			n++
		}
		return n
	}
	if a, b := count(1), count(2); a < 48 || a > 50 || b < 47 {
		t.Errorf("%d and %d", a, b)
	}
}
