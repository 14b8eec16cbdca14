// SPDX-License-Identifier: Apache-2.0

package simnet

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/underlay"
)

// Port is the UDP port of each host.
const Port = 7745

// typeRelayed begins a datagram from a relay: then 4 of relay and 16 of the sender's overlay address.
const (
	typeRelayed   = 0x25
	relayedHeader = 21
	firstFanPort  = 20000
)

// Host is a node's place in the internet. It has the methods that package overlay wants of an underlay.
type Host struct {
	net     *Internet
	segment *Segment
	addr    netip.Addr
	overlay netip.Addr
	asleep  bool
	sockets map[uint16]bool // of a fan
	next    uint16
	in      chan underlay.Burst
	gone    chan underlay.Path
	closed  chan struct{}
	once    sync.Once
}

// Host puts a host on a segment. Relays know it by its overlay address.
func (s *Segment) Host(addr, overlay netip.Addr) *Host {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	h := &Host{
		net: s.net, segment: s, addr: addr, overlay: overlay, sockets: make(map[uint16]bool),
		in: make(chan underlay.Burst, 8192), gone: make(chan underlay.Path, 16), closed: make(chan struct{}),
	}
	s.join(h)
	return h
}

// join gives a host its address. Behind routers that only filter it is known outside, too.
func (s *Segment) join(h *Host) {
	s.members[h.addr] = h
	for ; s.gateway != nil && s.gateway.Mapping == None; s = s.gateway.outside {
		s.gateway.outside.members[h.addr] = s.gateway
	}
}

// Move takes the host to another segment.
func (h *Host) Move(to *Segment, addr netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	delete(h.segment.members, h.addr)
	h.segment, h.addr = to, addr
	to.join(h)
}

// Sleep cuts the host off, and Wake brings it back.
func (h *Host) Sleep() { h.sleep(true) }

// Wake undoes Sleep.
func (h *Host) Wake() { h.sleep(false) }

func (h *Host) sleep(asleep bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.asleep = asleep
}

// Attach connects the host to relays: it can be reached there, home first.
func (h *Host) Attach(relays ...uint32) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, id := range relays {
		h.net.relays[id].hosts[h.overlay] = h
	}
}

// Detach ends the connection to a relay, for good until Attach.
func (h *Host) Detach(relay uint32) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.net.relays[relay].hosts[h.overlay] = nil
}

// Gone delivers paths over relays that told that nobody was there.
func (h *Host) Gone() <-chan underlay.Path { return h.gone }

// Observe asks two servers from which address they see the host. It returns the host's own address, and what they see where
// that is one address; and the kind of translator that follows from it.
func (h *Host) Observe() ([]netip.AddrPort, paths.NAT) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	own := netip.AddrPortFrom(h.addr, Port)
	one, ok := h.trace(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 88, 99, 1}), 3478))
	two, ok2 := h.trace(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 88, 99, 2}), 3479))
	switch {
	case !ok || !ok2:
		return []netip.AddrPort{own}, paths.NATBlocked
	case one == own:
		return []netip.AddrPort{own}, paths.NATNone
	case one == two:
		return []netip.AddrPort{own, one}, paths.NATEasy
	}
	return []netip.AddrPort{own, one}, paths.NATHard
}

// trace finds the address that a datagram has when it arrives in the middle.
func (h *Host) trace(to netip.AddrPort) (netip.AddrPort, bool) {
	d, ok := datagram{from: netip.AddrPortFrom(h.addr, Port), to: to}, !h.asleep
	for s := h.segment; s.gateway != nil && ok; s = s.gateway.outside {
		d, ok = s.gateway.translate(d)
	}
	return d.from, ok
}

// Send sends datagrams along a path.
func (h *Host) Send(p underlay.Path, datagrams [][]byte) error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, d := range datagrams {
		h.net.sent++
		port := uint16(Port)
		if p.Socket != 0 {
			if !h.sockets[p.Socket] {
				return net.ErrClosed
			}
			port = firstFanPort + p.Socket
		}
		switch {
		case h.asleep:
		case p.Relay != 0:
			r := h.net.relays[p.Relay]
			if r == nil {
				return underlay.ErrNoRelay
			}
			r.send(h, p.Remote.Addr(), bytes.Clone(d))
		default:
			h.segment.send(datagram{from: netip.AddrPortFrom(h.addr, port), to: p.Remote, data: bytes.Clone(d)})
		}
	}
	return nil
}

// SendBursts sends the datagrams of bursts.
func (h *Host) SendBursts(bursts []underlay.Burst) (int, error) {
	return underlay.SendEach(bursts, h.SendBurst)
}

// SendBurst sends the datagrams of a burst.
func (h *Host) SendBurst(b *underlay.Burst) error {
	var all [][]byte
	for d := range b.Each {
		all = append(all, d)
	}
	return h.Send(b.Path, all)
}

// receive implements member.
func (h *Host) receive(d datagram) {
	p := underlay.Path{Remote: d.from, Local: h.addr}
	switch to := d.to.Port(); {
	case to == Port:
	case to > firstFanPort && h.sockets[to-firstFanPort]:
		p.Socket = to - firstFanPort
	default:
		return
	}
	h.arrive(p, d.data)
}

func (h *Host) relayed(relay uint32, from netip.Addr, d []byte) {
	b := binary.BigEndian.AppendUint32([]byte{typeRelayed}, relay)
	a := from.As16()
	h.arrive(underlay.Path{Remote: netip.AddrPortFrom(netip.IPv6Unspecified(), 1)}, append(append(b, a[:]...), d...))
}

func (h *Host) arrive(p underlay.Path, d []byte) {
	if h.asleep {
		return
	}
	select {
	case h.in <- underlay.Burst{Path: p, Data: d, Size: len(d)}:
	default: // as a socket does
	}
}

// Receive waits for datagrams. There is one loop.
func (h *Host) Receive(_ int, bursts []underlay.Burst) (int, error) {
	select {
	case <-h.closed:
		return 0, net.ErrClosed
	case b := <-h.in:
		bursts[0].Data = append(bursts[0].Data[:0], b.Data...)
		bursts[0].Size, bursts[0].Path, bursts[0].Class = b.Size, b.Path, 0
		return 1, nil
	}
}

// Loops is 1.
func (h *Host) Loops() int { return 1 }

// Close ends Receive.
func (h *Host) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Accept unwraps what came over a relay.
func (h *Host) Accept(d []byte, _ underlay.Path) ([]byte, underlay.Path, bool) {
	if len(d) < relayedHeader || d[0] != typeRelayed {
		return nil, underlay.Path{}, false
	}
	from := netip.AddrPortFrom(netip.AddrFrom16([16]byte(d[5:relayedHeader])), 0)
	return d[relayedHeader:], underlay.Path{Remote: from, Relay: binary.BigEndian.Uint32(d[1:])}, true
}

// Fan opens n sockets towards a host, and returns a path through each.
func (h *Host) Fan(remote netip.AddrPort, n int) ([]underlay.Path, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	fan := make([]underlay.Path, n)
	for i := range fan {
		h.next++
		h.sockets[h.next] = true
		fan[i] = underlay.Path{Remote: remote, Socket: h.next}
	}
	return fan, nil
}

// Unfan closes all sockets of fans but those of some paths.
func (h *Host) Unfan(keep []underlay.Path) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	clear(h.sockets)
	for _, p := range keep {
		if p.Socket != 0 {
			h.sockets[p.Socket] = true
		}
	}
}

// Sockets is how many sockets of fans are open.
func (h *Host) Sockets() int {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return len(h.sockets)
}

// KeepAlive makes the host ask its servers now and then, as a node does, so that its main mapping stays: until stop is closed.
func (h *Host) KeepAlive(stop <-chan struct{}, changed func()) {
	last, kind := h.Observe()
	tick := time.NewTicker(25 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		now, k := h.Observe()
		if k != kind || len(now) != len(last) || now[len(now)-1] != last[len(last)-1] {
			last, kind = now, k
			changed()
		}
	}
}
