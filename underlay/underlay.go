// SPDX-License-Identifier: Apache-2.0

// Package underlay carries sealed datagrams between nodes: over UDP, on one port for IPv4 and IPv6. It knows nothing
// about what is inside them.
package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
)

// Path is one way for datagrams to travel. It is a plain value: compare it with ==.
type Path struct {
	Remote netip.AddrPort
	Local  netip.Addr // our address that the peer talks to; zero: the kernel's choice
	Relay  uint32     // 0: direct
}

// String returns the path as people read it.
func (p Path) String() string {
	if p.Relay != 0 {
		return fmt.Sprintf("relay %d, %s", p.Relay, p.Remote)
	}
	return p.Remote.String()
}

// ErrNoRelay is returned for a path over a relay.
var ErrNoRelay = errors.New("underlay: no such relay")

// ErrFamily is returned for a path of an address family that this host does not have.
var ErrFamily = errors.New("underlay: the host has no socket of this address family")

// Options of New.
type Options struct {
	Port uint16 // UDP port to listen on; 0, or one that is taken: a free one is chosen
	Log  *slog.Logger
}

// Underlay is the node's UDP sockets. Send and Receive are safe for concurrent use; neither waits for a lock nor allocates.
type Underlay struct {
	log     *slog.Logger
	port    uint16
	v4, v6  *socket // either may be nil, not both
	sockets []*socket
	closed  chan struct{}
	once    sync.Once
}

// New opens the sockets: IPv4 and IPv6 on the same port, or on one family alone where the host has only that. If the
// port is taken, a free one is used: Port tells which.
func New(o Options) (*Underlay, error) {
	u := &Underlay{log: o.Log, closed: make(chan struct{})}
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	err := u.open(o.Port)
	if err != nil {
		if o.Port != 0 {
			u.log.Warn("UDP port is taken, using a free one", "port", o.Port, "error", err)
		}
		if err = u.openFree(); err != nil {
			return nil, err
		}
	}
	for _, s := range []*socket{u.v4, u.v6} {
		if s != nil {
			u.sockets = append(u.sockets, s)
		}
	}
	return u, nil
}

// openFree tries ports of the kernel's choice until one is free for both families.
func (u *Underlay) openFree() (err error) {
	for range 16 {
		if err = u.open(0); err == nil {
			return nil
		}
	}
	return err
}

func (u *Underlay) open(port uint16) error {
	v4, err4 := openSocket("udp4", port)
	if err4 == nil {
		port = v4.port()
	} else if isTaken(err4) {
		return fmt.Errorf("underlay: %w", err4)
	}
	v6, err6 := openSocket("udp6", port)
	switch {
	case err6 == nil:
		port = v6.port()
	case isTaken(err6) || err4 != nil:
		if v4 != nil {
			_ = v4.conn.Close()
		}
		return fmt.Errorf("underlay: %w", errors.Join(err4, err6))
	default:
		u.log.Info("no IPv6 on this host", "error", err6)
	}
	u.v4, u.v6, u.port = v4, v6, port
	return nil
}

// Run keeps the sockets open until ctx ends, then closes them. It returns nil when ctx ended.
func (u *Underlay) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return u.Close()
	case <-u.closed:
		return nil
	}
}

// Close closes the sockets: Receive returns net.ErrClosed from then on. It may be called more than once.
func (u *Underlay) Close() error {
	var err error
	u.once.Do(func() {
		close(u.closed)
		for _, s := range u.sockets {
			err = errors.Join(err, s.conn.Close())
		}
	})
	return err
}

// Port returns the UDP port that the sockets listen on.
func (u *Underlay) Port() uint16 { return u.port }

// Loops returns how many sockets there are, which is how many goroutines may call Receive, one for each.
func (u *Underlay) Loops() int { return len(u.sockets) }

// Send sends the datagrams along one path, in order. It sends all of them even if some fail, and returns the first
// error. The datagrams may be reused when it returns.
func (u *Underlay) Send(p Path, datagrams [][]byte) error {
	if p.Relay != 0 {
		return ErrNoRelay
	}
	s := u.v6
	if p.Remote.Addr().Unmap().Is4() {
		s = u.v4
		p.Remote = netip.AddrPortFrom(p.Remote.Addr().Unmap(), p.Remote.Port())
		p.Local = p.Local.Unmap()
	}
	if s == nil {
		return ErrFamily
	}
	var first error
	for _, d := range datagrams {
		if err := s.send(p, d); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Receive waits for datagrams on one of the sockets, with loop below Loops, and puts each into its own element of bufs,
// its length into sizes and its path into paths. It returns how many there were, at least one, or net.ErrClosed after
// Close. Errors of the network, such as an ICMP error about an earlier datagram, do not end it.
func (u *Underlay) Receive(loop int, bufs [][]byte, sizes []int, paths []Path) (int, error) {
	if loop < 0 || loop >= len(u.sockets) {
		return 0, net.ErrClosed
	}
	s := u.sockets[loop]
	for failures := 0; ; failures++ {
		n, path, err := s.receive(bufs[0])
		if err == nil {
			sizes[0], paths[0] = n, path
			return 1, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return 0, net.ErrClosed
		}
		if failures >= maxFailures {
			return 0, fmt.Errorf("underlay: receive: %w", err)
		}
	}
}

// maxFailures bounds how many errors in a row, with nothing received between them, count as errors of the network.
const maxFailures = 10_000

func hostPort(port uint16) string { return ":" + strconv.Itoa(int(port)) }
