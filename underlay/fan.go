// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
)

// ErrFan is returned where no more sockets can be opened for hole punching.
var ErrFan = errors.New("underlay: no more sockets")

const (
	// maxFan bounds the sockets of all fans together: a host has a limit on descriptors, often 1024 for a process.
	maxFan = 512
	// fanBuffers is how many bursts are read from a fan's socket at once.
	fanBuffers = 4
)

// fan is the sockets that were opened besides the node's own, each on a port of its own.
type fan struct {
	open    atomic.Pointer[map[uint16]*socket] // by Path.Socket; replaced as a whole
	changed chan struct{}                      // one slot: the reader should look

	mu     sync.Mutex // guards replacing open
	last   uint16     // the socket that was opened last
	closed bool
	bell   bell // rings when the reader should look
}

func newFan() (*fan, error) {
	f := &fan{changed: make(chan struct{}, 1)}
	f.open.Store(&map[uint16]*socket{})
	return f, f.bell.open()
}

// add opens n sockets of a family, and returns their numbers. Where not all can be had, it opens fewer; none is an error.
func (f *fan) add(v6 bool, n int) (ids []uint16, err error) {
	network := "udp4"
	if v6 {
		network = "udp6"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, net.ErrClosed
	}
	next := maps.Clone(*f.open.Load())
	for range min(n, maxFan-len(next)) {
		var s *socket
		if s, err = openSocket(network, 0); err != nil {
			break
		}
		for f.last++; f.last == 0 || next[f.last] != nil; f.last++ {
		}
		next[f.last] = s
		ids = append(ids, f.last)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrFan, err)
	}
	f.replace(next)
	return ids, nil
}

// keep closes all sockets but those.
func (f *fan) keep(ids []uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	old := *f.open.Load()
	next := maps.Clone(old)
	maps.DeleteFunc(next, func(id uint16, _ *socket) bool { return !slices.Contains(ids, id) })
	if len(next) == len(old) {
		return
	}
	f.replace(next)
	for id, s := range old {
		if next[id] == nil {
			_ = s.close() // nothing that was sent is lost by it
		}
	}
}

func (f *fan) replace(next map[uint16]*socket) {
	f.open.Store(&next)
	select {
	case f.changed <- struct{}{}:
	default:
	}
	f.bell.ring()
}

func (f *fan) close() error {
	f.keep(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	return f.bell.close()
}

// send sends a burst from the socket that its path names.
func (f *fan) send(b *Burst) error {
	s := (*f.open.Load())[b.Path.Socket]
	if s == nil {
		return net.ErrClosed
	}
	remote := unmapped(b.Path.Remote)
	if remote.Addr().Is6() != s.v6 {
		return ErrFamily
	}
	return s.send(remote, b.Path.Local, b)
}

// read passes on what the sockets receive, until ctx ends.
func (f *fan) read(ctx context.Context, put func(*Burst)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
			f.serve(ctx, put)
		}
	}
}

// drain takes what has come to one socket.
func (f *fan) drain(id uint16, s *socket, buffers []Burst, wait bool, put func(*Burst)) error {
	n, err := s.receive(buffers, wait)
	for i := range buffers[:n] {
		buffers[i].Path.Socket = id
		put(&buffers[i])
	}
	return err
}

func newFanBuffers() []Burst {
	buffers := make([]Burst, fanBuffers)
	for i := range buffers {
		buffers[i].Data = make([]byte, 0, ReceiveSize)
	}
	return buffers
}

// Fan opens n more sockets for datagrams to remote, each on a port of its own, and returns the paths from them: fewer,
// where the host has no more. What they receive comes out of Receive.
func (u *Underlay) Fan(remote netip.AddrPort, n int) ([]Path, error) {
	remote = unmapped(remote)
	ids, err := u.fan.add(remote.Addr().Is6(), n)
	if err != nil {
		return nil, err
	}
	paths := make([]Path, len(ids))
	for i, id := range ids {
		paths[i] = Path{Remote: remote, Socket: id}
	}
	return paths, nil
}

// Unfan closes the sockets of Fan that none of the paths needs.
func (u *Underlay) Unfan(keep []Path) {
	var ids []uint16
	for _, p := range keep {
		ids = append(ids, p.Socket)
	}
	u.fan.keep(ids)
}

// unmapped writes an IPv4 address as one.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
