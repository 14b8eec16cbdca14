// SPDX-License-Identifier: Apache-2.0

// Package underlay carries sealed datagrams between nodes: over UDP, on one port for IPv4 and IPv6, and over relays. It
// finds out where others may reach this node, and knows nothing about what is inside the datagrams.
package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/underlay/portmap"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

// Path is one way for datagrams to travel. It is a plain value: compare it with ==.
type Path struct {
	Remote netip.AddrPort // the peer's address; over a relay: its overlay address, port 0
	Local  netip.Addr     // our address that the peer talks to; zero: the kernel's choice
	Socket uint16         // 0: the node's port; others: a socket of Fan
	Relay  uint32         // identity.RelayID; 0: direct
}

// String returns the path as people read it.
func (p Path) String() string {
	if p.Relay != 0 {
		return fmt.Sprintf("relay %d, %s", p.Relay, p.Remote)
	}
	return p.Remote.String()
}

// ErrNoRelay is returned for a path over a relay that is not known, or that this node may not use.
var ErrNoRelay = errors.New("underlay: no such relay")

// ErrFamily is returned for a path of an address family that this host does not have.
var ErrFamily = errors.New("underlay: the host has no socket of this address family")

// ErrTooBig is returned for a datagram that is longer than the host's own interface lets pass. That a narrower link further
// on dropped one is never told: it has to be probed for.
var ErrTooBig = errors.New("underlay: the datagram is too long for the interface")

// Burst is datagrams that travel one path together, one after another in one buffer.
type Burst struct {
	Path Path
	Data []byte // the datagrams
	Size int    // length of each of them but the last, which may be shorter
	// Class is the octet of the outer header with DSCP and ECN bits (RFC 2474, RFC 3168). A system that can't set it, or
	// tell it, leaves it 0.
	Class uint8
}

const (
	// MaxBurst is how many bytes a Burst may hold for Send: the largest UDP payload over IPv4.
	MaxBurst = 65507
	// MaxSegments is how many datagrams it may hold: Linux takes no more at once.
	MaxSegments = 64
	// ReceiveSize is the capacity that Receive wants of a Burst, in bytes.
	ReceiveSize = 65535
)

// Each returns the datagrams of a burst, in their order.
func (b *Burst) Each(yield func([]byte) bool) {
	for d := b.Data; len(d) > 0; {
		n := min(len(d), max(1, b.Size))
		if !yield(d[:n:n]) {
			return
		}
		d = d[n:]
	}
}

// Options of New.
type Options struct {
	Port uint16 // UDP port to listen on; 0, or one that is taken: a free one is chosen
	// Dial makes TCP connections, through a proxy where there is one; such a connection has a method Proxied() bool that
	// returns true. nil: net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Proxy tells by which proxy Dial reaches host:port; nil: by none.
	Proxy func(addr string) string
	// Gateway returns the router for IPv4, which is asked to forward the port; nil: none is asked.
	Gateway func() (netip.Addr, error)
	Log     *slog.Logger
}

// Underlay is the node's UDP sockets. Send and Receive are safe for concurrent use; neither waits for a lock nor allocates.
type Underlay struct {
	log     *slog.Logger
	port    uint16
	v4, v6  *socket // either may be nil, not both
	sockets []*socket
	ring    *ring // the last loop's
	fan     *fan
	relays  *relays
	stun    *stun.Client
	mapper  *portmap.Mapper // nil: no gateway is asked
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	proxy   func(addr string) string
	closed  chan struct{}
	once    sync.Once

	found      atomic.Pointer[findings]
	regather   chan struct{} // one slot
	state      atomic.Pointer[State]
	status     atomic.Pointer[Status]
	publishing sync.Mutex // one at a time makes a new status
	changes    chan struct{}
	gone       chan Path
}

// New opens the sockets: IPv4 and IPv6 on the same port, or on one family alone where the host has only that. If the
// port is taken, a free one is used: Port tells which.
func New(o Options) (*Underlay, error) {
	u := &Underlay{
		log: o.Log, dial: o.Dial, proxy: o.Proxy,
		closed: make(chan struct{}), changes: make(chan struct{}, 1), regather: make(chan struct{}, 1),
		gone: make(chan Path, maxGone),
	}
	u.state.Store(&State{})
	u.found.Store(&findings{})
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	if u.dial == nil {
		u.dial = (&net.Dialer{KeepAlive: -1}).DialContext
	}
	var err error
	if u.ring, err = newRing(); err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	if u.fan, err = newFan(); err != nil {
		return nil, errors.Join(fmt.Errorf("underlay: %w", err), u.ring.close())
	}
	if err = u.open(o.Port); err != nil {
		if o.Port != 0 {
			u.log.Warn("UDP port is taken, using a free one", "port", o.Port, "error", err)
		}
		if err = u.openFree(); err != nil {
			return nil, errors.Join(err, u.ring.close(), u.fan.close())
		}
	}
	for _, s := range []*socket{u.v4, u.v6} {
		if s != nil {
			u.sockets = append(u.sockets, s)
		}
	}
	u.status.Store(&Status{Port: u.port})
	if o.Gateway != nil {
		u.mapper = portmap.New(portmap.Options{Port: u.port, Gateway: o.Gateway, Changed: u.publish, Log: u.log})
	}
	u.relays = newRelays(relayOptions{
		dial: u.dial, send: u.sendDirect, deliver: u.ring.put, changed: u.publish, elsewhere: u.poke, gone: u.putGone, log: u.log,
	})
	u.stun = stun.NewClient(func(to netip.AddrPort, d []byte) error {
		return u.sendDirect(&Burst{Path: Path{Remote: to}, Data: d, Size: len(d)})
	})
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
			_ = v4.close()
		}
		return fmt.Errorf("underlay: %w", errors.Join(err4, err6))
	default:
		u.log.Info("no IPv6 on this host", "error", err6)
	}
	u.v4, u.v6, u.port = v4, v6, port
	return nil
}

// Run does what the underlay does by itself until ctx ends or Close is called, and closes it. It returns nil then.
func (u *Underlay) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return u.Close()
		case <-u.closed:
			cancel()
			return nil
		}
	})
	group.Go(func() error { u.fan.read(ctx, u.ring.put); return nil })
	group.Go(func() error { u.relays.run(ctx); return nil })
	group.Go(func() error { u.gather(ctx); return nil })
	if u.mapper != nil {
		group.Go(func() error { u.mapper.Run(ctx); return nil })
	}
	return group.Wait()
}

// Close closes the sockets: Receive returns net.ErrClosed from then on. It may be called more than once.
func (u *Underlay) Close() error {
	var err error
	u.once.Do(func() {
		close(u.closed)
		for _, s := range u.sockets {
			err = errors.Join(err, s.close())
		}
		err = errors.Join(err, u.fan.close(), u.ring.close())
	})
	return err
}

// Port returns the UDP port that the sockets listen on.
func (u *Underlay) Port() uint16 { return u.port }

// Loops returns how many goroutines may call Receive: one for each socket, and the last for all other ways.
func (u *Underlay) Loops() int { return len(u.sockets) + 1 }

// Send sends the datagrams along one path, in order. It sends all of them even if some fail, and returns the first
// error. The datagrams may be reused when it returns.
func (u *Underlay) Send(p Path, datagrams [][]byte) error {
	var first error
	for _, d := range datagrams {
		b := Burst{Path: p, Data: d, Size: len(d)}
		if err := u.SendBurst(&b); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// SendBurst sends the datagrams of a burst, of at most MaxBurst bytes and MaxSegments datagrams: in one system call, where
// the system can. It waits a little while the socket is full. The burst may be reused when it returns. With ErrTooBig those
// datagrams that are short enough have been sent.
func (u *Underlay) SendBurst(b *Burst) error {
	switch {
	case b.Path.Relay != 0:
		return u.relays.send(b)
	case b.Path.Socket != 0:
		return u.fan.send(b)
	}
	return u.sendDirect(b)
}

// SendBursts is SendBurst for several, with fewer system calls where the system has such. They leave in their order until one
// is refused: SendBursts returns how many it has dealt with, and an error is about the last of those.
func (u *Underlay) SendBursts(bursts []Burst) (done int, err error) {
	for done < len(bursts) && err == nil {
		if n := u.alike(bursts[done:]); n > 1 {
			n, err = u.socketFor(&bursts[done].Path).sendMany(bursts[done : done+n])
			done += n
			continue
		}
		err = u.SendBurst(&bursts[done])
		done++
	}
	return done, err
}

// SendEach is SendBursts by means of a SendBurst.
func SendEach(bursts []Burst, send func(*Burst) error) (int, error) {
	for i := range bursts {
		if err := send(&bursts[i]); err != nil {
			return i + 1, err
		}
	}
	return len(bursts), nil
}

// alike is how many of the first bursts one of the node's own sockets sends.
func (u *Underlay) alike(bursts []Burst) (n int) {
	s := u.socketFor(&bursts[0].Path)
	for n < len(bursts) && s != nil && u.socketFor(&bursts[n].Path) == s {
		n++
	}
	return n
}

// socketFor is the one of the node's own sockets that a path leaves from, or nil.
func (u *Underlay) socketFor(p *Path) *socket {
	switch a := p.Remote.Addr(); {
	case p.Relay != 0 || p.Socket != 0:
		return nil
	case a.Is4() || a.Is4In6():
		return u.v4
	}
	return u.v6
}

// sendDirect sends from the node's port.
func (u *Underlay) sendDirect(b *Burst) error {
	s := u.socketFor(&b.Path)
	if s == nil {
		return ErrFamily
	}
	remote, local := endsOf(&b.Path)
	return s.send(remote, local, b)
}

// endsOf returns a path's addresses, those of IPv4 written as such.
func endsOf(p *Path) (remote netip.AddrPort, local netip.Addr) {
	if !p.Remote.Addr().Is4In6() {
		return p.Remote, p.Local
	}
	return unmapped(p.Remote), p.Local.Unmap()
}

// Receive waits for datagrams of one of the loops. Each burst's Data must have a capacity of
// ReceiveSize; it is filled from its beginning. Receive returns how many bursts there were, at least one, or
// net.ErrClosed after Close. Errors of the network, such as an ICMP error about an earlier datagram, do not end it.
func (u *Underlay) Receive(loop int, bursts []Burst) (int, error) {
	return u.receive(loop, bursts, true)
}

func (u *Underlay) receive(loop int, bursts []Burst, wait bool) (int, error) {
	switch {
	case loop == len(u.sockets):
		return u.ring.receive(bursts, wait)
	case loop < 0 || loop > len(u.sockets):
		return 0, net.ErrClosed
	}
	s := u.sockets[loop]
	for failures := 0; ; failures++ {
		n, err := s.receive(bursts, wait)
		switch {
		case err == nil && (n > 0 || !wait):
			return n, nil
		case errors.Is(err, net.ErrClosed):
			return 0, net.ErrClosed
		case failures >= maxFailures:
			return 0, fmt.Errorf("underlay: receive: %w", err)
		}
	}
}

// maxFailures bounds how many errors in a row, with nothing received between them, count as errors of the network.
const maxFailures = 10_000

// isTaken reports whether the port, rather than the address family, is what could not be had.
func isTaken(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EACCES) || errors.Is(err, errAddressInUse)
}
