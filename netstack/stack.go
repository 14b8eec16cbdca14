// SPDX-License-Identifier: Apache-2.0

// Package netstack is an IPv6 stack in user space, on gVisor: packets go in
// and come out as bytes, and what runs on it gets the usual [net.Conn],
// [net.Listener] and [net.PacketConn].
//
// The stack is a host, never a router: it takes only unicast packets for its
// own addresses from senders inside its routes, sends only to its routes,
// forwards nothing, and takes part in neither neighbour discovery nor multicast
// listening. It answers ICMPv6 echo requests, resets connections to closed TCP
// ports and reports closed UDP ports.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	// DefaultMTU is the overlay's MTU in bytes, used where Options.MTU is 0.
	DefaultMTU = 1420
	minMTU     = 1280 // RFC 8200, section 5
	maxMTU     = 65535

	nicID = 1
	// queueLength is how many packets may wait for ReadPackets before new ones
	// are dropped: more than the largest TCP window below has segments.
	queueLength = 4096
	// prefixBits is the length of a network's prefix, the default route.
	prefixBits = 48

	minBuffer     = 4 << 10
	defaultBuffer = 512 << 10
	maxBuffer     = 4 << 20
)

// ErrAddress means that an address is not one that this stack may use: not its
// own where an own one is needed, or outside of its routes where a remote one is.
var ErrAddress = errors.New("netstack: address not usable on this stack")

// Options says what a Stack is made of.
type Options struct {
	// Addresses are the stack's own addresses, at least one, unicast IPv6. The
	// first is the source of dialled connections.
	Addresses []netip.Addr
	// Routes are the prefixes that may be talked to. Empty: the /48 of each
	// own address, which is the network that it belongs to.
	Routes []netip.Prefix
	// MTU in bytes, 1280 to 65535; 0 means DefaultMTU.
	MTU int
	// Log may be nil.
	Log *slog.Logger
}

// Stack is a userspace IPv6 host. All methods may be called concurrently.
type Stack struct {
	stack  *stack.Stack
	link   *channel.Endpoint
	own    map[netip.Addr]struct{} // immutable
	routes []netip.Prefix          // immutable
	log    *slog.Logger

	closing   chan struct{}
	closeOnce sync.Once
}

// New makes a Stack that works at once; Close ends it. The protocol workers
// that gVisor starts are its only goroutines.
func New(o Options) (*Stack, error) {
	s := &Stack{own: make(map[netip.Addr]struct{}), log: o.Log, closing: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if o.MTU < minMTU || o.MTU > maxMTU {
		return nil, fmt.Errorf("netstack: MTU %d is not in [%d, %d]", o.MTU, minMTU, maxMTU)
	}
	if err := s.setAddresses(o); err != nil {
		return nil, err
	}
	s.link = channel.New(queueLength, uint32(o.MTU), "")
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol6},
		HandleLocal:        true,
	})
	if err := s.configure(o); err != nil {
		s.Close()
		return nil, err
	}
	s.log.Debug("userspace stack is up", "addresses", o.Addresses, "mtu", o.MTU)
	return s, nil
}

func (s *Stack) setAddresses(o Options) error {
	if len(o.Addresses) == 0 {
		return fmt.Errorf("netstack: no address given: %w", ErrAddress)
	}
	for _, a := range o.Addresses {
		if !usable(a) {
			return fmt.Errorf("netstack: own address %v: %w", a, ErrAddress)
		}
		s.own[a] = struct{}{}
		if len(o.Routes) == 0 {
			if p := netip.PrefixFrom(a, prefixBits).Masked(); !slices.Contains(s.routes, p) {
				s.routes = append(s.routes, p)
			}
		}
	}
	for _, p := range o.Routes {
		if !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() {
			return fmt.Errorf("netstack: route %v: %w", p, ErrAddress)
		}
		s.routes = append(s.routes, p.Masked())
	}
	return nil
}

// usable tells whether a may be an end of a packet on the overlay at all. It
// keeps out the addresses that mean "this host" or "this link", and IPv4 in any
// dress, whatever the routes say.
func usable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() &&
		!a.IsMulticast() && !a.IsLinkLocalUnicast()
}

func (s *Stack) isOwn(a netip.Addr) bool {
	_, ok := s.own[a]
	return ok
}

func (s *Stack) routed(a netip.Addr) bool {
	if !usable(a) {
		return false
	}
	for _, p := range s.routes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// configure sets gVisor's stack up: options, interface, addresses, routes.
func (s *Stack) configure(o Options) error {
	sack := tcpip.TCPSACKEnabled(true)
	cubic := tcpip.CongestionControlOption("cubic")
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer}
	// Loss is recovered by SACK (RFC 6675) alone: with gVisor's RACK (RFC 8985)
	// a transfer over a lossy path can stop for good, see TestTCPTransferWithLoss.
	rack := tcpip.TCPRecovery(0)
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer}
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &cubic, &moderate, &rcv, &snd, &rack} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("netstack: set TCP option %T: %w", opt, stackError(err))
		}
	}
	if err := s.stack.CreateNIC(nicID, s.link); err != nil {
		return fmt.Errorf("netstack: create interface: %w", stackError(err))
	}
	for i, a := range o.Addresses {
		behaviour := stack.NeverPrimaryEndpoint
		if i == 0 {
			behaviour = stack.CanBePrimaryEndpoint
		}
		if slices.Contains(o.Addresses[:i], a) {
			continue
		}
		address := tcpip.ProtocolAddress{
			Protocol:          ipv6.ProtocolNumber,
			AddressWithPrefix: tcpip.AddrFrom16(a.As16()).WithPrefix(),
		}
		if err := s.stack.AddProtocolAddress(nicID, address, stack.AddressProperties{PEB: behaviour}); err != nil {
			return fmt.Errorf("netstack: add address %v: %w", a, stackError(err))
		}
	}
	for _, p := range s.routes {
		mask := tcpip.MaskFromBytes(net.CIDRMask(p.Bits(), 128))
		subnet, err := tcpip.NewSubnet(tcpip.AddrFrom16(p.Addr().As16()), mask)
		if err != nil {
			return fmt.Errorf("netstack: route %v: %w", p, err)
		}
		s.stack.AddRoute(tcpip.Route{Destination: subnet, NIC: nicID})
	}
	return nil
}

// Close ends every connection and listener, and returns when all goroutines of
// the stack have ended. It may be called more than once; the error is always nil.
func (s *Stack) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		s.link.Close()
		s.stack.Destroy()
	})
	return nil
}

// Deliver puts one IPv6 packet into the stack, as if it had come from the
// network. The bytes are copied. Whatever the stack has no use for (not IPv6,
// not for an own address, from outside of the routes, malformed) is ignored.
func (s *Stack) Deliver(packet []byte) {
	if !s.accepts(packet) {
		return
	}
	view := buffer.NewViewWithData(packet)
	plainUnreachable(view.AsSlice())
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	s.link.InjectInbound(ipv6.ProtocolNumber, pkt)
	pkt.DecRef()
}

// ReadPackets takes packets that the stack sends: it waits for the first, then
// takes as many more as are there without waiting, at most len(bufs). Packet i
// is written to bufs[i][offset:], its length to sizes[i]. A packet that doesn't
// fit its buffer is dropped. It fails with the context's error, or with
// net.ErrClosed once the stack is closed.
func (s *Stack) ReadPackets(ctx context.Context, bufs [][]byte, sizes []int, offset int) (int, error) {
	limit := min(len(bufs), len(sizes))
	if limit == 0 {
		return 0, io.ErrShortBuffer
	}
	n := 0
	for n == 0 {
		pkt := s.link.ReadContext(ctx)
		for pkt != nil {
			if size, ok := copyPacket(bufs[n], offset, pkt); ok {
				sizes[n] = size
				n++
			}
			pkt.DecRef()
			if n == limit {
				return n, nil
			}
			pkt = s.link.Read()
		}
		if n > 0 {
			break
		}
		select {
		case <-s.closing:
			return 0, net.ErrClosed
		default:
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// copyPacket copies a packet piece by piece, without joining it first.
func copyPacket(buf []byte, offset int, pkt *stack.PacketBuffer) (int, bool) {
	size := pkt.Size()
	if offset < 0 || offset > len(buf) || size > len(buf)-offset {
		return 0, false
	}
	out := buf[offset:]
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		piece := v.AsSlice()
		if skip >= len(piece) {
			skip -= len(piece)
			continue
		}
		out = out[copy(out, piece[skip:]):]
		skip = 0
	}
	return size, true
}
