// SPDX-License-Identifier: Apache-2.0

package splice

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// PacketConn is what the UDP sockets of both the kernel and the userspace stack have.
type PacketConn interface {
	net.PacketConn
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
}

// FlowOptions of Flows. Dial is needed.
type FlowOptions struct {
	// Dial makes a flow's connection, of which each read and write is a datagram. It may take its time.
	Dial func(context.Context) (net.Conn, error)
	// Admit says whether there may be one more of an address; Done, where it did, that it has ended.
	Admit func(netip.Addr) bool
	Done  func(netip.Addr)
	// Reached is told how it went: with nil that an answer came, otherwise why there was none.
	Reached func(error)
	// Idle is how long a flow lives on which nothing moves.
	Idle     time.Duration
	Counters *Counters
}

// pauseTime is how long a socket waits that can't be read.
const pauseTime = 10 * time.Millisecond

// waiting is how many datagrams wait for a flow's connection.
const waiting = 16

// flows pass what comes to a UDP socket on, by a connection for each port that sends, so that answers find their way back.
type flows struct {
	o       FlowOptions
	conn    PacketConn
	full    *sync.Pool
	running sync.WaitGroup

	mu sync.Mutex // guards by
	by map[netip.AddrPort]*flow
}

// flow is what one port sends and gets.
type flow struct {
	from  netip.AddrPort
	moved atomic.Int64 // when something moved last, in nanoseconds since 1970

	mu      sync.Mutex // guards all below
	far     net.Conn   // nil: not there yet
	pending [][]byte
	over    bool
	timer   *time.Timer
}

// Flows passes datagrams on until conn is closed, and returns when all flows have ended. ctx ends them.
func (s *Splicer) Flows(ctx context.Context, conn PacketConn, o FlowOptions) {
	ctx, cancel := context.WithCancel(ctx)
	f := &flows{o: o, conn: conn, full: &s.full, by: make(map[netip.AddrPort]*flow)}
	defer f.running.Wait()
	defer cancel()
	buf := f.full.Get().(*[fullSize]byte)
	defer f.full.Put(buf)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf[:])
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case ctx.Err() != nil:
			return
		case err != nil: // about one datagram that was sent, or the system is short of something
			select {
			case <-time.After(pauseTime):
			case <-ctx.Done():
			}
			continue
		}
		if one := f.flow(ctx, from); one != nil {
			f.forth(one, buf[:n])
		}
	}
}

// flow returns that of a port, a new one where there is none; nil: there is no room.
func (f *flows) flow(ctx context.Context, from netip.AddrPort) *flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one := f.by[from]; one != nil {
		return one
	}
	if !f.o.Admit(from.Addr().WithZone("")) {
		return nil
	}
	one := &flow{from: from}
	one.moved.Store(time.Now().UnixNano())
	f.by[from] = one
	f.running.Go(func() {
		defer f.o.Done(from.Addr().WithZone(""))
		f.run(ctx, one)
	})
	return one
}

// forth sends one datagram on.
func (f *flows) forth(one *flow, b []byte) {
	one.moved.Store(time.Now().UnixNano())
	one.mu.Lock()
	far := one.far
	if far == nil && len(one.pending) < waiting {
		one.pending = append(one.pending, slices.Clone(b))
	}
	one.mu.Unlock()
	if far != nil {
		f.write(far, b)
	}
}

func (f *flows) write(far net.Conn, b []byte) {
	if _, err := far.Write(b); err != nil {
		if !errors.Is(err, net.ErrClosed) {
			f.o.Reached(err) // and lost
		}
		return
	}
	f.o.Counters.Forth.Add(uint64(len(b)))
}

// run is a flow, from its connection's beginning to its end.
func (f *flows) run(ctx context.Context, one *flow) {
	defer func() {
		f.mu.Lock()
		delete(f.by, one.from)
		f.mu.Unlock()
		one.end()
	}()
	far, err := f.o.Dial(ctx)
	if err != nil {
		if ctx.Err() == nil {
			f.o.Reached(err)
		}
		return
	}
	defer context.AfterFunc(ctx, func() { one.end() })()
	one.mu.Lock()
	pending := one.pending
	one.far, one.pending = far, nil
	if ctx.Err() != nil {
		one.over = true
		far.Close()
	}
	one.mu.Unlock()
	for _, b := range pending {
		f.write(far, b)
	}
	one.watch(f.o.Idle, f.o.Idle)
	f.back(one, far)
}

// back passes answers on, until the connection is closed.
func (f *flows) back(one *flow, far net.Conn) {
	buf := f.full.Get().(*[fullSize]byte)
	defer f.full.Put(buf)
	for {
		n, err := far.Read(buf[:])
		if err != nil {
			if !one.ended() {
				f.o.Reached(err)
			}
			if one.ended() || !refused(err) {
				return
			}
			continue // nobody listens there now; the next one may be heard
		}
		one.moved.Store(time.Now().UnixNano())
		f.o.Reached(nil)
		if _, err := f.conn.WriteToUDPAddrPort(buf[:n], one.from); err == nil {
			f.o.Counters.Back.Add(uint64(n))
		}
	}
}

// watch ends a flow when nothing has moved for that long.
func (one *flow) watch(after, limit time.Duration) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.over {
		return
	}
	one.timer = time.AfterFunc(after, func() {
		if left := limit - time.Since(time.Unix(0, one.moved.Load())); left > 0 {
			one.watch(left, limit)
		} else {
			one.end()
		}
	})
}

func (one *flow) ended() bool {
	one.mu.Lock()
	defer one.mu.Unlock()
	return one.over
}

func (one *flow) end() {
	one.mu.Lock()
	defer one.mu.Unlock()
	one.over = true
	if one.timer != nil {
		one.timer.Stop()
	}
	if one.far != nil {
		one.far.Close()
	}
}

// refused tells whether an error of a UDP socket is about one datagram: the port is closed now.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
