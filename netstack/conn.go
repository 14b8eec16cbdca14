// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
)

// stackError is gVisor's error as a Go error, under the number that the kernel
// would have given where programs commonly ask for it.
func stackError(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrTimeout:
		return os.ErrDeadlineExceeded
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	}
	return errors.New(err.String())
}

// known undoes what gonet does to errors: it keeps only their text.
func known(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	for _, k := range []tcpip.Error{
		&tcpip.ErrConnectionRefused{}, &tcpip.ErrConnectionReset{}, &tcpip.ErrNetworkUnreachable{},
		&tcpip.ErrHostUnreachable{}, &tcpip.ErrTimeout{}, &tcpip.ErrPortInUse{},
	} {
		if op.Err.Error() == k.String() {
			op.Err = stackError(k)
			break
		}
	}
	return err
}

// local checks an address to listen on; the unspecified one means all own ones.
func (s *Stack) local(ap netip.AddrPort) (tcpip.FullAddress, error) {
	full := tcpip.FullAddress{NIC: nicID, Port: ap.Port()}
	switch {
	case ap.Addr() == netip.IPv6Unspecified():
	case s.isOwn(ap.Addr()):
		full.Addr = tcpip.AddrFrom16(ap.Addr().As16())
	default:
		return full, fmt.Errorf("listen on %v: %w", ap, ErrAddress)
	}
	return full, nil
}

// remote checks an address to send to.
func (s *Stack) remote(ap netip.AddrPort) (tcpip.FullAddress, error) {
	if !s.routed(ap.Addr()) || ap.Port() == 0 {
		return tcpip.FullAddress{}, fmt.Errorf("%v: %w", ap, ErrAddress)
	}
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom16(ap.Addr().As16()), Port: ap.Port()}, nil
}

func (s *Stack) open() error {
	select {
	case <-s.closing:
		return fmt.Errorf("netstack: %w", net.ErrClosed)
	default:
		return nil
	}
}

// ListenTCP listens on an own address, or on all of them for [::]. Port 0
// chooses one. After the listener's or the stack's Close, Accept fails with
// net.ErrClosed. ErrAddress is for an address that isn't the stack's.
func (s *Stack) ListenTCP(ap netip.AddrPort) (net.Listener, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	full, err := s.local(ap)
	if err != nil {
		return nil, err
	}
	l, err := gonet.ListenTCP(s.stack, full, ipv6.ProtocolNumber)
	if err != nil {
		return nil, known(err)
	}
	return &listener{TCPListener: l, stack: s}, nil
}

// ListenUDP opens a UDP socket on an own address, or on all of them for [::].
// WriteTo takes *net.UDPAddr only and refuses addresses outside of the routes
// with ErrAddress. Reads after a Close fail with net.ErrClosed.
func (s *Stack) ListenUDP(ap netip.AddrPort) (net.PacketConn, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	full, err := s.local(ap)
	if err != nil {
		return nil, err
	}
	c, err := gonet.DialUDP(s.stack, &full, nil, ipv6.ProtocolNumber)
	if err != nil {
		return nil, known(err)
	}
	return &packetConn{UDPConn: c, stack: s}, nil
}

// DialContext connects to a literal IPv6 address and port inside the routes;
// network is "tcp", "tcp6", "udp" or "udp6". Names are not resolved, and
// everything else (IPv4, mapped, loopback, link-local, foreign) is ErrAddress.
// A refused connection is syscall.ECONNREFUSED, a prohibited one ENETUNREACH.
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", address, ErrAddress)
	}
	full, err := s.remote(ap)
	if err != nil {
		return nil, fmt.Errorf("dial %w", err)
	}
	switch network {
	case "tcp", "tcp6":
		c, err := gonet.DialContextTCP(ctx, s.stack, full, ipv6.ProtocolNumber)
		if err != nil {
			return nil, known(err)
		}
		return c, nil
	case "udp", "udp6":
		c, err := gonet.DialUDP(s.stack, nil, &full, ipv6.ProtocolNumber)
		if err != nil {
			return nil, known(err)
		}
		return c, nil
	}
	return nil, fmt.Errorf("dial %s: %w", address, net.UnknownNetworkError(network))
}

// listener makes gonet's listener end as the net package's do.
type listener struct {
	*gonet.TCPListener
	stack  *Stack
	closed atomic.Bool
}

func (l *listener) Close() error {
	if l.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: "tcp", Err: net.ErrClosed}
	}
	l.TCPListener.Shutdown() // wakes Accept, which Close alone doesn't
	return l.TCPListener.Close()
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err != nil && (l.closed.Load() || l.stack.open() != nil) {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: net.ErrClosed}
	}
	return c, err
}

// packetConn makes gonet's UDP socket end as the net package's do, and checks
// what it is told to send to.
type packetConn struct {
	*gonet.UDPConn
	stack  *Stack
	closed atomic.Bool
}

func (c *packetConn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: "udp", Err: net.ErrClosed}
	}
	return c.UDPConn.Close()
}

func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(b)
	if err != nil && (c.closed.Load() || c.stack.open() != nil) {
		return 0, nil, &net.OpError{Op: "read", Net: "udp", Err: net.ErrClosed}
	}
	return n, from, err
}

func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	ua, ok := to.(*net.UDPAddr)
	if !ok || ua == nil {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: ErrAddress}
	}
	if _, err := c.stack.remote(ua.AddrPort()); err != nil {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: ErrAddress}
	}
	return c.UDPConn.WriteTo(b, to)
}
