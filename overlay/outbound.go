// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// A packet's way out: read from the device in a burst, find the link by source and destination, ask the flow table, seal
// into the send buffer, send neighbours with the same path together.

// minBuffer is room for a packet of the usual MTU; larger MTUs get more.
const minBuffer = 2048

// outbound is the state of the loop from device to underlay.
type outbound struct {
	o       *Overlay
	answers answerer
	snap    *snapshot
	now     moment

	// The batch: sealed datagrams that share a path.
	path      underlay.Path
	datagrams [][]byte
	sealed    [][]byte // buffers, one for each packet of a burst
}

func newOutbound(o *Overlay, burst int) *outbound {
	b := &outbound{o: o, datagrams: make([][]byte, 0, burst), sealed: buffers(burst, o.bufferSize())}
	b.answers.init(o)
	return b
}

func (o *Overlay) bufferSize() int { return max(minBuffer, o.mtu+noise.Overhead+tun.Headroom) }

func buffers(n, size int) [][]byte {
	slab := make([]byte, n*size)
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = slab[i*size : (i+1)*size : (i+1)*size]
	}
	return bufs
}

func (o *Overlay) outboundLoop(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	burst := max(1, o.device.BatchSize())
	b := newOutbound(o, burst)
	bufs, sizes := buffers(burst, o.bufferSize()), make([]int, burst)
	for {
		n, err := o.device.Read(bufs, sizes, 0)
		if err != nil {
			if ended(ctx, err) {
				return nil
			}
			return fmt.Errorf("overlay: %w", err)
		}
		b.send(bufs[:n], sizes)
	}
}

// send takes a burst of packets from the device.
func (b *outbound) send(bufs [][]byte, sizes []int) {
	b.snap, b.now = b.o.snap.Load(), b.o.now()
	for i, buf := range bufs {
		b.sendOne(buf[:sizes[i]])
	}
	b.flush()
}

func (b *outbound) sendOne(p []byte) {
	var info packet.Info
	if err := packet.Parse(p, &info); err != nil {
		b.o.counters.drop(dropOf(err))
		return
	}
	key := packet.AddressesOf(p)
	r, ok := b.snap.routes[key]
	if !ok {
		b.elsewhere(p, &info, key)
		return
	}
	if len(p) > b.o.mtu {
		b.o.counters.drop(DropTooBig)
		b.answers.tooBig(p, &info, b.snap, b.now)
		return
	}
	q := question{local: key, peer: r.link.addr, rules: r.rules, generation: b.snap.generation, now: b.now, outbound: true}
	if v := b.o.flows.permit(&q, p, &info); v != policy.Allow {
		b.o.counters.deniedOut[v].Add(1)
		b.answers.deny(p, &info, b.snap.service, b.now)
		return
	}
	s := r.link.current.Load()
	if s == nil {
		b.o.enqueue(r.link, p)
		return
	}
	b.seal(s, p)
}

func dropOf(err error) Drop {
	if errors.Is(err, packet.ErrRouting) {
		return DropRoutingHeader
	}
	return DropMalformed
}

// enqueue keeps a packet until control has made a session.
func (o *Overlay) enqueue(l *link, p []byte) {
	if !l.queue.push(p) {
		o.counters.drop(DropQueueFull)
	}
	o.wakes.add(l)
}

func (b *outbound) seal(s *session, p []byte) {
	path := s.path.Load()
	if len(b.datagrams) > 0 && b.path != *path {
		b.flush()
	}
	b.path = *path
	record, err := s.noise.Seal(b.sealed[len(b.datagrams)][:0], 0, p)
	if err != nil {
		b.o.counters.drop(DropSeal)
		return
	}
	b.datagrams = append(b.datagrams, record)
	s.link.sent(b.now.at, true, true)
	s.link.txPackets.Add(1)
	s.link.txBytes.Add(uint64(len(p)))
	if len(b.datagrams) == len(b.sealed) {
		b.flush()
	}
}

func (b *outbound) flush() {
	if len(b.datagrams) == 0 {
		return
	}
	if err := b.o.under.Send(b.path, b.datagrams); err != nil {
		b.o.counters.drop(DropSend)
	}
	b.datagrams = b.datagrams[:0]
}

// elsewhere handles a packet that is not from one of our agents to a peer.
func (b *outbound) elsewhere(p []byte, info *packet.Info, key packet.Addresses) {
	c, dst := &b.o.counters, key.Destination()
	if dst[0] == 0xff {
		c.drop(DropNotUnicast)
		return
	}
	if _, local := b.snap.locals[key.Source()]; !local {
		c.drop(DropSourceNotLocal)
		return
	}
	if dst == b.snap.service && b.o.stack != nil {
		b.o.stack.Deliver(p)
		return
	}
	addr := netip.AddrFrom16(dst)
	_, own := b.snap.locals[dst]
	if own || !b.snap.prefix.Contains(addr) || identity.Reserved(b.snap.prefix, addr) {
		c.drop(DropNoRoute)
		b.answers.unreachable(p, info, packet.NoRoute, b.snap.service, b.now)
		return
	}
	// Whether there is such an agent is not told: it looks like one without consent.
	c.drop(DropUnknownPeer)
	b.o.events.emitUnknown(UnknownPeer{Addr: addr}, b.now.at)
	b.answers.deny(p, info, b.snap.service, b.now)
}

// answerer gives errors to local programs. Each goroutine has its own.
type answerer struct {
	o   *Overlay
	buf []byte
	one [1][]byte
}

func (a *answerer) init(o *Overlay) {
	a.o, a.buf = o, make([]byte, minBuffer)
}

// deny answers a packet that the policy does not allow: a running TCP connection is reset, everything else learns that it
// is administratively prohibited.
func (a *answerer) deny(p []byte, info *packet.Info, source [16]byte, now moment) {
	if !packet.MayAnswer(p, info) || !a.o.limiter.Allow([16]byte(p[24:40]), now.at) {
		return
	}
	if r, ok := packet.AppendReset(a.buf[:tun.Headroom], p, info); ok {
		a.write(r)
		return
	}
	a.writeUnreachable(p, info, packet.AdminProhibited, source, now)
}

func (a *answerer) unreachable(p []byte, info *packet.Info, code packet.Code, source [16]byte, now moment) {
	if packet.MayAnswer(p, info) && a.o.limiter.Allow([16]byte(p[24:40]), now.at) {
		a.writeUnreachable(p, info, code, source, now)
	}
}

func (a *answerer) writeUnreachable(p []byte, info *packet.Info, code packet.Code, source [16]byte, now moment) {
	e := packet.AppendUnreachable(a.buf[:tun.Headroom], source, code, p)
	if info.Proto == packet.TCP && info.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN {
		a.o.echoes.add(e[tun.Headroom:], now.at) // before write, which may change it
	}
	a.write(e)
}

func (a *answerer) tooBig(p []byte, info *packet.Info, snap *snapshot, now moment) {
	if packet.MayAnswer(p, info) && a.o.limiter.Allow([16]byte(p[24:40]), now.at) {
		a.write(packet.AppendTooBig(a.buf[:tun.Headroom], snap.service, uint32(a.o.mtu), p))
	}
}

func (a *answerer) write(p []byte) {
	a.one[0] = p
	if _, err := a.o.device.Write(a.one[:], tun.Headroom); err != nil {
		a.o.counters.drop(DropDevice)
	}
}

// stackLoop carries the userspace stack's packets to local programs, and to nobody else.
func (o *Overlay) stackLoop(ctx context.Context) error {
	burst := max(1, o.device.BatchSize())
	size := o.bufferSize()
	bufs, sizes := buffers(burst, size), make([]int, burst)
	ready := make([][]byte, 0, burst)
	for {
		n, err := o.stack.ReadPackets(ctx, bufs, sizes, tun.Headroom)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("overlay: %w", err)
		}
		snap := o.snap.Load()
		ready = ready[:0]
		for i := range n {
			p := bufs[i][:tun.Headroom+sizes[i]]
			if !snap.fromService(p[tun.Headroom:]) {
				o.counters.drop(DropStack)
				continue
			}
			ready = append(ready, p)
		}
		if len(ready) == 0 {
			continue
		}
		if _, err := o.device.Write(ready, tun.Headroom); err != nil && !errors.Is(err, os.ErrClosed) {
			o.counters.drop(DropDevice)
		}
	}
}

// fromService reports whether a packet goes from the service address to a local agent.
func (s *snapshot) fromService(p []byte) bool {
	if len(p) < packet.HeaderSize || [16]byte(p[8:24]) != s.service {
		return false
	}
	_, local := s.locals[[16]byte(p[24:40])]
	return local
}
