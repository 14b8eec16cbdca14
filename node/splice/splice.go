// SPDX-License-Identifier: Apache-2.0

// Package splice makes one connection of two: what comes in on the one goes out on the other, its end and its failure
// too.
package splice

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// smallSize is the buffer of a direction in which little moves, fullSize that of one with more, in bytes. Most
	// connections are idle most of the time.
	smallSize = 4 << 10
	fullSize  = 64 << 10
)

// ErrIdle says that nothing moved for too long.
var ErrIdle = errors.New("nothing moved for too long")

// Splicer joins connections. It keeps buffers for all that it joins.
type Splicer struct{ full sync.Pool }

// New makes a Splicer.
func New() *Splicer {
	return &Splicer{full: sync.Pool{New: func() any { return new([fullSize]byte) }}}
}

// Counters are what has moved so far, in bytes. They may be read at any time.
type Counters struct{ Forth, Back atomic.Uint64 }

// Options of Join. All may be left out.
type Options struct {
	// Idle ends the connection when nothing moved in either direction for that long, and Half when one side has said all.
	// 0: never.
	Idle, Half time.Duration
	// Datagrams says that each Read is a message to be written in one go, and that there is no end but a failure or EOF,
	// which ends both directions.
	Datagrams bool
	Counters  []*Counters // all of them count
}

// joined is two connections that are one for their far ends.
type joined struct {
	o     Options
	full  *sync.Pool
	a, b  net.Conn
	moved atomic.Int64 // when something moved last, in nanoseconds since 1970
	half  atomic.Bool  // one side has said all

	mu    sync.Mutex // guards all below
	over  bool
	err   error // why, where it did not end by itself; stays as it is when over
	timer *time.Timer
}

// Join copies both ways until both sides have said all, one of them fails, nothing moves for too long, or ctx ends; then
// both are closed. A side that failed, or was cut off, is a reset for the other, so that neither takes half for all.
// The error is nil where both sides have said all.
func (s *Splicer) Join(ctx context.Context, a, b net.Conn, o Options) error {
	j := &joined{o: o, full: &s.full, a: a, b: b}
	j.moved.Store(time.Now().UnixNano())
	j.watch(j.limit())
	stop := context.AfterFunc(ctx, func() { j.end(context.Cause(ctx)) })
	defer stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		j.copy(a, b, func(c *Counters) *atomic.Uint64 { return &c.Back })
	}()
	j.copy(b, a, func(c *Counters) *atomic.Uint64 { return &c.Forth })
	<-back
	j.end(nil)
	return j.err
}

// end closes both, and notes why: the first time.
func (j *joined) end(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.over {
		return
	}
	j.over, j.err = true, err
	if j.timer != nil {
		j.timer.Stop()
	}
	if err != nil {
		Abort(j.a)
		Abort(j.b)
	} else {
		j.a.Close()
		j.b.Close()
	}
}

// Abort closes a connection so that its other end doesn't take what it has got for all: with a reset, where it is TCP.
func Abort(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0) // fails if it is gone already
	}
	c.Close()
}

func (j *joined) limit() time.Duration {
	if j.half.Load() && j.o.Half > 0 {
		return j.o.Half
	}
	return j.o.Idle
}

// watch looks after some time whether anything has moved.
func (j *joined) watch(after time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.over || after <= 0 {
		return
	}
	if j.timer != nil {
		j.timer.Stop()
	}
	j.timer = time.AfterFunc(after, func() {
		limit := j.limit()
		if left := limit - time.Since(time.Unix(0, j.moved.Load())); left > 0 {
			j.watch(left)
		} else {
			j.end(ErrIdle)
		}
	})
}

// copy moves one direction, and passes its end on.
func (j *joined) copy(to, from net.Conn, counter func(*Counters) *atomic.Uint64) {
	b := buffer{pool: j.full, always: j.o.Datagrams}
	defer b.release()
	for {
		n, err := from.Read(b.next())
		if n > 0 || err == nil && j.o.Datagrams {
			j.moved.Store(time.Now().UnixNano())
			if _, failed := to.Write(b.read(n)); failed != nil {
				err = failed
			} else {
				for _, c := range j.o.Counters {
					counter(c).Add(uint64(n))
				}
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			j.sayAll(to)
			return
		default:
			j.end(err)
			return
		}
	}
}

// sayAll tells a side that there will be no more.
func (j *joined) sayAll(to net.Conn) {
	w, ok := to.(interface{ CloseWrite() error })
	if j.o.Datagrams || !ok {
		j.end(nil)
		return
	}
	if j.half.Swap(true) {
		return // it was the second one: Join closes both
	}
	if err := w.CloseWrite(); err != nil {
		j.end(err)
		return
	}
	j.watch(j.o.Half)
}

// quiet is after how many small reads a buffer is small again.
const quiet = 8

// buffer is small until much comes at once, and small again when it doesn't.
type buffer struct {
	pool   *sync.Pool
	always bool // full
	small  []byte
	full   *[fullSize]byte
	calm   int // small reads since the last large one
}

// next returns where to read to.
func (b *buffer) next() []byte {
	if b.calm >= quiet && !b.always {
		b.release()
	}
	switch {
	case b.full != nil:
		return b.full[:]
	case b.always:
		b.full = b.pool.Get().(*[fullSize]byte)
		return b.full[:]
	case b.small == nil:
		b.small = make([]byte, smallSize)
	}
	return b.small
}

// read returns the n bytes that came; they stay until next is called.
func (b *buffer) read(n int) []byte {
	if b.full != nil {
		if b.calm++; n > smallSize {
			b.calm = 0
		}
		return b.full[:n]
	}
	if n == smallSize {
		b.full, b.calm = b.pool.Get().(*[fullSize]byte), 0
	}
	return b.small[:n]
}

func (b *buffer) release() {
	if b.full != nil {
		b.pool.Put(b.full)
		b.full = nil
	}
	b.calm = 0
}
