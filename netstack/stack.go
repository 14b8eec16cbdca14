// SPDX-License-Identifier: Apache-2.0

// Package netstack is an IP stack in user space, on gVisor. What runs on it gets the usual [net.Conn], [net.Listener] and
// [net.PacketConn], and needs neither a privilege nor an interface of the system.
//
// A Stack is an IPv6 host, never a router: it takes only unicast packets for its own addresses from senders inside its
// routes, sends only to its routes, forwards nothing, and takes part in neither neighbour discovery nor multicast
// listening. It answers ICMPv6 echo requests, resets connections to closed TCP ports and reports closed UDP ports. Its
// other end is either a [Device], which an overlay takes in place of a TUN interface, with bursts of TCP and checksums
// left alone; or Deliver and ReadPackets, packet by packet.
//
// A Gateway is what a sandbox sends to when it means the world outside: it takes connections to any address, asks about
// each, and refuses at once or hands over a [net.Conn] to be spliced. [ClassOf] tells which addresses are nobody's
// business.
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
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// prefixBits is the length of a network's prefix, the default route.
const prefixBits = 48

// ErrAddress means that an address is not one that this stack may use: not its
// own where an own one is needed, or outside of its routes where a remote one is.
var ErrAddress = errors.New("netstack: address not usable on this stack")

// Options says what a Stack is made of.
type Options struct {
	// Addresses are the stack's own addresses, at least one, unicast IPv6. The
	// first is the source of dialled connections. See Set for later changes.
	Addresses []netip.Addr
	// Routes are the prefixes that may be talked to. Empty: the /48 of each
	// own address, which is the network that it belongs to.
	Routes []netip.Prefix
	// MTU in bytes, 1280 to 65535; 0 means DefaultMTU.
	MTU int
	// Segments is how many full TCP segments a burst may have, up to 64. 0: there are no bursts, and Device leaves no
	// checksum to anybody. ReadPackets is for stacks without bursts.
	Segments int
	// Log may be nil.
	Log *slog.Logger
}

// Stack is a userspace IPv6 host. All methods may be called concurrently, but one goroutine reads packets.
type Stack struct {
	*core
	hosts    atomic.Pointer[hosts]
	setting  sync.Mutex // held by Set
	refusals refusals
	log      *slog.Logger
}

// hosts is who the stack is and whom it may talk to. It never changes.
type hosts struct {
	addresses []netip.Addr
	own       map[netip.Addr]struct{}
	routes    []netip.Prefix
}

// New makes a Stack that works at once; Close ends it. The protocol workers
// that gVisor starts are its only goroutines.
func New(o Options) (*Stack, error) {
	h, err := newHosts(o.Addresses, o.Routes)
	if err != nil {
		return nil, err
	}
	c, err := newCore(o.MTU, o.Segments, false)
	if err != nil {
		return nil, err
	}
	s := &Stack{core: c, log: o.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.apply(h); err != nil {
		s.Close()
		return nil, err
	}
	s.log.Debug("userspace stack is up", "addresses", o.Addresses, "mtu", c.mtu)
	return s, nil
}

// Set changes the stack's own addresses and its routes, under the rules of Options. Sockets on addresses that stay are not
// disturbed; those on others are heard by nobody any more.
func (s *Stack) Set(addresses []netip.Addr, routes []netip.Prefix) error {
	h, err := newHosts(addresses, routes)
	if err != nil {
		return err
	}
	s.setting.Lock()
	defer s.setting.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	return s.apply(h)
}

func newHosts(addresses []netip.Addr, routes []netip.Prefix) (*hosts, error) {
	if len(addresses) == 0 {
		return nil, fmt.Errorf("netstack: no address given: %w", ErrAddress)
	}
	h := &hosts{own: make(map[netip.Addr]struct{})}
	for _, a := range addresses {
		if !usable(a) {
			return nil, fmt.Errorf("netstack: own address %v: %w", a, ErrAddress)
		}
		if _, twice := h.own[a]; twice {
			continue
		}
		h.own[a] = struct{}{}
		h.addresses = append(h.addresses, a)
		if len(routes) == 0 {
			if p := netip.PrefixFrom(a, prefixBits).Masked(); !slices.Contains(h.routes, p) {
				h.routes = append(h.routes, p)
			}
		}
	}
	for _, p := range routes {
		if !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("netstack: route %v: %w", p, ErrAddress)
		}
		h.routes = append(h.routes, p.Masked())
	}
	return h, nil
}

// usable tells whether a may be an end of a packet on the overlay at all. It
// keeps out the addresses that mean "this host" or "this link", and IPv4 in any
// dress, whatever the routes say.
func usable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() &&
		!a.IsMulticast() && !a.IsLinkLocalUnicast()
}

func (h *hosts) isOwn(a netip.Addr) bool {
	_, ok := h.own[a]
	return ok
}

func (h *hosts) routed(a netip.Addr) bool {
	if !usable(a) {
		return false
	}
	for _, p := range h.routes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// apply makes gVisor's addresses and routes those of h.
func (s *Stack) apply(h *hosts) error {
	before := s.hosts.Load()
	if before == nil {
		before = &hosts{}
	}
	// The first address is the only one that gVisor may choose by itself. It is one or the other from the beginning.
	first := func(h *hosts, a netip.Addr) bool { return len(h.addresses) > 0 && h.addresses[0] == a }
	for _, a := range before.addresses {
		if h.isOwn(a) && first(h, a) == first(before, a) {
			continue
		}
		if err := s.stack.RemoveAddress(nic6, tcpip.AddrFrom16(a.As16())); err != nil {
			return fmt.Errorf("netstack: remove address %v: %w", a, stackError(err))
		}
	}
	for _, a := range h.addresses {
		if before.isOwn(a) && first(h, a) == first(before, a) {
			continue
		}
		behaviour := stack.NeverPrimaryEndpoint
		if first(h, a) {
			behaviour = stack.CanBePrimaryEndpoint
		}
		address := tcpip.ProtocolAddress{
			Protocol:          ipv6.ProtocolNumber,
			AddressWithPrefix: tcpip.AddrFrom16(a.As16()).WithPrefix(),
		}
		if err := s.stack.AddProtocolAddress(nic6, address, stack.AddressProperties{PEB: behaviour}); err != nil {
			return fmt.Errorf("netstack: add address %v: %w", a, stackError(err))
		}
	}
	table := make([]tcpip.Route, 0, len(h.routes))
	for _, p := range h.routes {
		subnet, err := tcpip.NewSubnet(tcpip.AddrFrom16(p.Addr().As16()), tcpip.MaskFromBytes(net.CIDRMask(p.Bits(), 128)))
		if err != nil {
			return fmt.Errorf("netstack: route %v: %w", p, err)
		}
		table = append(table, tcpip.Route{Destination: subnet, NIC: nic6})
	}
	s.stack.SetRouteTable(table)
	s.hosts.Store(h)
	return nil
}

// Deliver puts one IPv6 packet into the stack, as if it had come from the
// network. The bytes are copied. Whatever the stack has no use for (not IPv6,
// not for an own address, from outside of the routes, malformed) is ignored.
func (s *Stack) Deliver(packet []byte) {
	one := [1][]byte{packet}
	s.deliver(one[:], len(packet), false)
}

func (s *Stack) deliver(pieces [][]byte, size int, verified bool) {
	if !s.accepts(pieces[0], size) {
		return
	}
	view := gather(pieces, size)
	s.hear(view.AsSlice())
	s.inject(view, verified)
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
	if s.bursts {
		return 0, errBursts
	}
	for {
		n := 0
		for n < limit {
			pkt := s.queue.take()
			if pkt == nil {
				break
			}
			if size, ok := copyPacket(bufs[n], offset, pkt); ok {
				sizes[n] = size
				n++
			}
			pkt.DecRef()
		}
		if n > 0 {
			return n, nil
		}
		if !s.queue.wait(ctx.Done()) {
			if s.open() != nil {
				return 0, net.ErrClosed
			}
			return 0, ctx.Err()
		}
	}
}
