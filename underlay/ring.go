// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"net"
	"sync"
	"sync/atomic"
)

const (
	ringSlots = 256
	// maxJoin bounds how many bytes of datagrams are put together while they wait, and so what an idle ring keeps.
	maxJoin = 16 << 10
)

// ring holds what came by other ways than the node's sockets until the loop takes it. Whoever puts something in never
// waits: what finds it full is dropped, as in a full socket.
type ring struct {
	kick    chan struct{} // one slot: something was put in
	dropped atomic.Uint64 // datagrams
	polled  atomic.Bool   // somebody waits for the descriptor

	mu     sync.Mutex
	slots  [ringSlots]Burst // their buffers stay
	first  int
	count  int
	closed bool
	bell   bell
}

func newRing() (*ring, error) {
	r := &ring{kick: make(chan struct{}, 1)}
	return r, r.bell.open()
}

// put copies datagrams into the ring. One that follows others of its size and way joins them.
func (r *ring) put(b *Burst) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(b.Data) == 0 {
		return
	}
	if r.count > 0 && r.slots[(r.first+r.count-1)%ringSlots].join(b) {
		return
	}
	if r.count == ringSlots {
		for range b.Each {
			r.dropped.Add(1)
		}
		return
	}
	s := &r.slots[(r.first+r.count)%ringSlots]
	*s = Burst{Path: b.Path, Data: append(s.Data[:0], b.Data...), Size: b.Size, Class: b.Class}
	if r.count++; r.count == 1 {
		r.signal()
	}
}

// join appends a single datagram to others that it continues.
func (b *Burst) join(next *Burst) bool {
	if len(next.Data) > next.Size || len(next.Data) > b.Size || len(b.Data)%b.Size != 0 || next.Path != b.Path ||
		next.Class != b.Class || len(b.Data)+len(next.Data) > maxJoin || len(b.Data)/b.Size >= MaxSegments {
		return false
	}
	b.Data = append(b.Data, next.Data...)
	return true
}

func (r *ring) signal() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
	if r.polled.Load() {
		r.bell.ring()
	}
}

// poll makes the bell ring from now on, also for what is there already.
func (r *ring) poll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.polled.Store(true)
	if r.count > 0 && !r.closed {
		r.signal()
	}
}

// receive fills bursts with what is there. It is for one goroutine.
func (r *ring) receive(bursts []Burst, wait bool) (int, error) {
	for {
		n, err := r.take(bursts)
		if n > 0 || err != nil || !wait {
			return n, err
		}
		<-r.kick
	}
}

func (r *ring) take(bursts []Burst) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, net.ErrClosed
	}
	for ; n < len(bursts) && r.count > 0; n++ {
		s, b := &r.slots[r.first], &bursts[n]
		b.Data = append(b.Data[:0], s.Data...)
		b.Path, b.Size, b.Class = s.Path, s.Size, s.Class
		r.first = (r.first + 1) % ringSlots
		r.count--
	}
	if r.count == 0 {
		r.bell.silence()
	}
	return n, nil
}

// close ends a waiting receive.
func (r *ring) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.signal()
	return r.bell.close()
}
