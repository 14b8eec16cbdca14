// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// backlog is how many connections may wait to be accepted, as many as on Linux (net.core.somaxconn).
	backlog = 4096
	// bindAttempts is how often a dial from a given address tries another port, when the one it got is in use towards
	// the same peer.
	bindAttempts = 16
)

func fullAddress(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{Addr: tcpip.AddrFromSlice(ap.Addr().AsSlice()), Port: ap.Port()}
}

func addrPort(full tcpip.FullAddress) netip.AddrPort {
	a, _ := netip.AddrFromSlice(full.Addr.AsSlice())
	if !a.IsValid() {
		a = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(a, full.Port)
}

// local checks an address to listen on; the unspecified one means all own ones.
func (s *Stack) local(ap netip.AddrPort) (tcpip.FullAddress, error) {
	switch {
	case ap.Addr() == netip.IPv6Unspecified():
		return tcpip.FullAddress{NIC: nic6, Port: ap.Port()}, nil
	case s.hosts.Load().isOwn(ap.Addr()):
		full := fullAddress(ap)
		full.NIC = nic6
		return full, nil
	}
	return tcpip.FullAddress{}, fmt.Errorf("listen on %v: %w", ap, ErrAddress)
}

// remote checks an address to send to.
func (s *Stack) remote(ap netip.AddrPort) (tcpip.FullAddress, error) {
	if !s.hosts.Load().routed(ap.Addr()) || ap.Port() == 0 {
		return tcpip.FullAddress{}, fmt.Errorf("%v: %w", ap, ErrAddress)
	}
	full := fullAddress(ap)
	full.NIC = nic6
	return full, nil
}

// ListenTCP listens on an own address, or on all of them for [::]. Port 0
// chooses one. After the listener's or the stack's Close, Accept fails with
// net.ErrClosed. ErrAddress is for an address that isn't the stack's.
// The connections have CloseRead and CloseWrite, and keep themselves alive: see DialContext.
func (s *Stack) ListenTCP(ap netip.AddrPort) (net.Listener, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	full, err := s.local(ap)
	if err != nil {
		return nil, err
	}
	wq := new(waiter.Queue)
	ep, e := s.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, wq)
	if e == nil {
		if e = ep.Bind(full); e == nil {
			e = ep.Listen(backlog)
		}
		if e != nil {
			ep.Close()
		}
	}
	if e != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(ap), Err: stackError(e)}
	}
	return newListener(s, ep, wq), nil
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
	wq := new(waiter.Queue)
	ep, e := s.stack.NewEndpoint(udp.ProtocolNumber, ipv6.ProtocolNumber, wq)
	if e == nil {
		if e = ep.Bind(full); e != nil {
			ep.Close()
		}
	}
	if e != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(ap), Err: stackError(e)}
	}
	return newPacketConn(s.core, ep, wq, s), nil
}

// DialContext connects to a literal IPv6 address and port inside the routes, from the stack's first address;
// network is "tcp", "tcp6", "udp" or "udp6". Names are not resolved, and
// everything else (IPv4, mapped, loopback, link-local, foreign) is ErrAddress.
//
// A refused connection is syscall.ECONNREFUSED, a prohibited one EACCES, and where no way leads there ENETUNREACH or
// EHOSTUNREACH; all of these come at once. TCP connections notice after some minutes that the other end is gone
// (ETIMEDOUT).
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		if err := s.open(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("dial %q: %w", address, ErrAddress)
	}
	return s.Dial(ctx, network, netip.Addr{}, ap)
}

// Dial is DialContext from one of the stack's own addresses; the zero one means the first.
func (s *Stack) Dial(ctx context.Context, network string, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	full, err := s.remote(to)
	if err != nil {
		return nil, fmt.Errorf("dial %w", err)
	}
	h := s.hosts.Load()
	if from.IsValid() && !h.isOwn(from) {
		return nil, fmt.Errorf("dial from %v: %w", from, ErrAddress)
	}
	if from == h.addresses[0] {
		from = netip.Addr{} // the stack's own choice, which doesn't take a port away from all others
	}
	switch network {
	case "tcp", "tcp6":
		return s.dialTCP(ctx, from, to, full)
	case "udp", "udp6":
		return s.dialUDP(from, to, full)
	}
	return nil, fmt.Errorf("dial %v: %w", to, net.UnknownNetworkError(network))
}

func (s *Stack) dialTCP(ctx context.Context, from netip.Addr, to netip.AddrPort, full tcpip.FullAddress) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	var e tcpip.Error
	for range bindAttempts {
		wq := new(waiter.Queue)
		var ep tcpip.Endpoint
		if ep, e = s.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, wq); e != nil {
			return fail(stackError(e))
		}
		if from.IsValid() {
			// Connections from this port to others don't disturb.
			ep.SocketOptions().SetReuseAddress(true)
			if e = ep.Bind(tcpip.FullAddress{NIC: nic6, Addr: tcpip.AddrFrom16(from.As16())}); e != nil {
				ep.Close()
				return fail(stackError(e))
			}
		}
		entry, done := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
		wq.EventRegister(&entry)
		e = ep.Connect(full)
		if _, taken := e.(*tcpip.ErrPortInUse); taken && from.IsValid() {
			ep.Close()
			continue
		}
		local, _ := ep.GetLocalAddress()
		if _, started := e.(*tcpip.ErrConnectStarted); started {
			select {
			case <-done:
				e = ep.LastError()
			case <-ctx.Done():
				ep.Close()
				return fail(ctx.Err())
			case <-s.closing:
				ep.Close()
				return fail(net.ErrClosed)
			}
		}
		wq.EventUnregister(&entry)
		if e != nil {
			ep.Close()
			return fail(s.refusals.why(flow{nextHeaderTCP, addrPort(local), to}, stackError(e)))
		}
		return newConn(s.core, ep, wq), nil
	}
	return fail(stackError(e))
}

func (s *Stack) dialUDP(from netip.Addr, to netip.AddrPort, full tcpip.FullAddress) (net.Conn, error) {
	wq := new(waiter.Queue)
	ep, e := s.stack.NewEndpoint(udp.ProtocolNumber, ipv6.ProtocolNumber, wq)
	if e == nil {
		if from.IsValid() {
			e = ep.Bind(tcpip.FullAddress{NIC: nic6, Addr: tcpip.AddrFrom16(from.As16())})
		}
		if e == nil {
			e = ep.Connect(full)
		}
		if e != nil {
			ep.Close()
		}
	}
	if e != nil {
		return nil, &net.OpError{Op: "dial", Net: "udp", Addr: net.UDPAddrFromAddrPort(to), Err: stackError(e)}
	}
	return newPacketConn(s.core, ep, wq, s), nil
}
