// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"encoding/binary"
	"io"
	"net/netip"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	bindInterval  = 25 * time.Second // keeps NATs' mappings, which may last no more than 30 s
	bindPatience  = time.Second      // for an answer
	usedPatience  = 300 * time.Millisecond
	bindTries     = 3
	firstRetry    = 5 * time.Second // after none of the addresses answered
	maxBindRetry  = 5 * time.Minute
	silencePeriod = time.Second // data goes out and nothing comes back: then the way is asked
)

// binder proves the UDP path to a relay and keeps it. It is a machine without I/O and without a clock: its methods return
// what to send to the address to, and next is when the next tick is due.
type binder struct {
	targets []netip.AddrPort
	target  int // the one in use
	slot    uint32
	token   Token
	secret  Secret
	random  io.Reader
	retry   *backoff.ExponentialBackOff

	round  uint64 // of tries whose answers count; the lowest byte is the try
	tries  int    // in this round, without an answer
	sent   [bindTries]time.Time
	last   time.Time // a bind was sent
	hurry  bool      // data waits for the answer
	next   time.Time // the next tick; zero: never
	bound  bool
	way    netip.AddrPort // the address that answered, where bound
	seen   netip.AddrPort // where the relay sees us
	rtt    time.Duration  // smoothed
	buffer []byte
}

func newBinder(targets []netip.AddrPort, w Welcome, random io.Reader) *binder {
	b := &binder{targets: targets, slot: w.Slot, token: w.Token, secret: w.Secret, random: random, retry: backoff.NewExponentialBackOff()}
	b.retry.InitialInterval, b.retry.Multiplier, b.retry.MaxInterval = firstRetry, 2, maxBindRetry
	b.retry.Reset()
	return b
}

// to is the address that binds go to.
func (b *binder) to() netip.AddrPort { return b.targets[b.target] }

// start begins a round at once. The way counts as open until its tries are over, if it was.
func (b *binder) start(now time.Time, hurry bool) {
	if len(b.targets) == 0 {
		return
	}
	b.tries, b.round, b.hurry, b.next = 0, 0, hurry, now
}

// tick does what is due: it returns a bind to send to the address to, or nil.
func (b *binder) tick(now time.Time) []byte {
	if b.next.IsZero() || now.Before(b.next) {
		return nil
	}
	if b.tries == bindTries {
		b.bound, b.tries, b.round, b.hurry = false, 0, 0, false
		if b.target = (b.target + 1) % len(b.targets); b.target == 0 {
			b.next = now.Add(b.retry.NextBackOff())
			return nil
		}
	}
	if b.round == 0 {
		var id [8]byte
		if _, err := io.ReadFull(b.random, id[:]); err != nil {
			b.next = now.Add(bindPatience)
			return nil
		}
		b.round = binary.BigEndian.Uint64(id[:])&^0xff | 1<<8
	}
	b.sent[b.tries], b.last = now, now
	b.next = now.Add(b.patience())
	d := b.message(b.round|uint64(b.tries), [16]byte{})
	b.tries++
	return d
}

func (b *binder) patience() time.Duration {
	if b.hurry {
		return max(usedPatience, 3*b.rtt)
	}
	return bindPatience
}

func (b *binder) message(id uint64, cookie [16]byte) []byte {
	b.buffer = Control{Op: OpBind, Slot: b.slot, Token: b.token, ID: id, Cookie: cookie}.Append(b.buffer[:0], &b.secret)
	return b.buffer
}

// answer takes a control from the relay, and returns what to send next, or nil.
func (b *binder) answer(now time.Time, m Control) []byte {
	if m.Op == OpUnbound {
		// A NAT forgot us, or the relay did. The round is at most one a second, whoever says so.
		if b.bound && b.tries == 0 && now.Sub(b.last) >= bindPatience {
			b.start(now, true)
		}
		return nil
	}
	try := int(m.ID & 0xff)
	if b.round == 0 || m.ID&^0xff != b.round || try >= b.tries {
		return nil
	}
	if m.Op == OpChallenge {
		b.sent[try] = now
		return b.message(m.ID, m.Cookie)
	}
	if m.Op == OpBound {
		b.sample(now.Sub(b.sent[try]))
		b.bound, b.way, b.seen, b.tries, b.round, b.hurry = true, b.to(), m.Observed, 0, 0, false
		b.next = now.Add(bindInterval)
		b.retry.Reset()
	}
	return nil
}

// sample smooths round trips as RFC 6298 does.
func (b *binder) sample(d time.Duration) { b.rtt = smooth(b.rtt, d) }

func smooth(old, d time.Duration) time.Duration {
	if old == 0 {
		return d
	}
	return old + (d-old)/8
}
