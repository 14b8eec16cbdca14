// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/burst"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/overlay/parts"
	"github.com/pilot-protocol/pilot/overlay/pmtu"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// A packet's way out: read from the device, alone or as one of a burst that the kernel has not cut; find the link by source
// and destination; ask the flow table, once for a burst; seal each segment into the send buffer; send neighbours with the
// same path and length together. Small packets are collected as long as the device has more, and never waited for.

const (
	// minBuffer is room for an error about a packet.
	minBuffer = 2048
	// outBudget is after how many bytes others have their turn, and the clock and the snapshot are read again, though the
	// device has more. A packet counts for perPacket bytes besides its own.
	outBudget = 128 << 10
	perPacket = 1 << 10
	// maxReady is how many bursts, of small packets that do not fit one burst, are sent together at most: the first waits
	// until the others are sealed.
	maxReady = 16
)

// outbound is the state of the loop from device to underlay.
type outbound struct {
	o       *Overlay
	device  tun.Device
	answers answerer
	snap    *snapshot
	now     moment
	recent  recent

	in     []byte
	header tun.Header
	cutter burst.Cutter

	// The send buffer: bursts that are ready, and behind them the one that grows, of sealed records of one path, of one
	// length but for the last.
	buffer  []byte
	ready   [maxReady]underlay.Burst
	owners  [maxReady]*session // whose paths those are
	count   int
	burst   underlay.Burst
	path    *underlay.Path // what burst.Path is a copy of
	from    *session       // whose path it is
	records int
	full    bool // the last one was shorter

	// What was sealed since the counters were told.
	session        *session
	packets, bytes uint64

	part []byte // of a packet that fits no record
}

func newOutbound(o *Overlay, device tun.Device) *outbound {
	b := &outbound{o: o, device: device, in: make([]byte, tun.BufferSize)}
	b.buffer = make([]byte, 0, max(underlay.MaxBurst, o.mtu+noise.Overhead))
	b.burst.Data = b.buffer
	b.part = make([]byte, 0, parts.MaxPacket)
	b.answers.init(o)
	return b
}

func (o *Overlay) outboundLoop(ctx context.Context, device tun.Device) error {
	b := newOutbound(o, device)
	for {
		p, err := device.Read(b.in, &b.header, true)
		if err == nil {
			b.begin()
			b.send(p, &b.header)
			err = b.more(outBudget)
		}
		if err != nil {
			if ended(ctx, err) {
				return nil
			}
			return fmt.Errorf("overlay: %w", err)
		}
	}
}

// drain sends what the device has, without waiting for more, up to about budget bytes.
func (b *outbound) drain(budget int) error {
	b.begin()
	return b.more(budget)
}

func (b *outbound) more(budget int) error {
	defer b.flush()
	for budget > 0 {
		p, err := b.device.Read(b.in, &b.header, false)
		if len(p) == 0 || err != nil {
			return err
		}
		b.send(p, &b.header)
		budget -= len(p) + perPacket
	}
	return nil
}

// begin reads the clock and the state for the packets that follow.
func (b *outbound) begin() {
	b.snap, b.now, b.recent = b.o.snap.Load(), b.o.now(), recent{}
}

// send takes a packet or a burst from the device, and may write into it.
func (b *outbound) send(p []byte, h *tun.Header) {
	var info packet.Info
	if err := packet.Parse(p, &info); err != nil {
		b.o.counters.drop(dropOf(err))
		return
	}
	if h.Kind != tun.KindPacket && b.cutter.Reset(p, h, &info) != nil {
		b.o.counters.drop(DropMalformed)
		return
	}
	key := packet.AddressesOf(p)
	r, ok := b.recent.route(b.snap, &key)
	if !ok {
		b.elsewhere(p, h, &info, key)
		return
	}
	if b.longest(p, h) > b.o.mtu {
		b.o.counters.drop(DropTooBig)
		b.answers.tooBig(p, &info, b.o.mtu, b.snap, b.now)
		return
	}
	if !b.recent.flow(&info) {
		q := question{local: key, peer: r.link.addr, rules: r.rules, generation: b.snap.generation, now: b.now, outbound: true}
		if v := b.o.flows.permit(&q, p, &info); v != policy.Allow {
			b.o.counters.deniedOut[v].Add(1)
			b.answers.deny(p, &info, b.snap.service, b.now)
			return
		}
		b.recent.permitted(&info)
	}
	if r.link.lost.Load() && established(&info) {
		b.answers.unreachable(p, &info, packet.NoRoute, b.snap.service, b.now)
	}
	s := r.link.current.Load()
	if s == nil {
		for whole := range b.complete(p, h, &info) {
			b.o.enqueue(r.link, whole)
		}
		return
	}
	if f := s.sizes.found.Load(); b.longest(p, h) > f.limit-noise.Overhead {
		b.fit(s, p, h, &info, *f)
		return
	}
	b.sealAll(s, p, h, &info)
}

// longest is the length of the longest packet in a packet or burst.
func (b *outbound) longest(p []byte, h *tun.Header) int {
	if h.Kind == tun.KindPacket {
		return len(p)
	}
	return b.cutter.Longest()
}

func dropOf(err error) Drop {
	if errors.Is(err, packet.ErrRouting) {
		return DropRoutingHeader
	}
	return DropMalformed
}

// complete returns the packets of a packet or burst, each with its checksum, for those who want nothing less.
func (b *outbound) complete(p []byte, h *tun.Header, info *packet.Info) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if h.Kind == tun.KindPacket {
			if h.Partial {
				packet.CompleteAt(p, int(h.Start), int(h.Offset))
			}
			yield(p)
			return
		}
		for s := b.cutter.Next(); s != nil; s = b.cutter.Next() {
			packet.Complete(s, info)
			if !yield(s) {
				return
			}
		}
	}
}

// established reports whether a packet belongs to a TCP connection that is open already. While the peer does not answer
// each of its retransmissions is answered with "no route": Linux then takes back the doubling of its timer (RFC 6069;
// tcp_v6_err in net/ipv6/tcp_ipv6.c calls tcp_ld_RTO_revert for ICMPV6_NOROUTE, and for no other code), and so sends again
// within a second after the peer is back, however long it was away. It does not end the
// connection (RFC 5461), unless its program asked for errors with IPV6_RECVERR.
func established(info *packet.Info) bool {
	return info.Proto == packet.TCP && info.PortKnown && info.TCPFlags&packet.SYN == 0
}

// enqueue keeps a packet until control has made a session.
func (o *Overlay) enqueue(l *link, p []byte) {
	if !l.queue.push(p) {
		o.counters.drop(DropQueueFull)
	}
	o.wakes.add(l)
}

// sealAll seals a packet, or the segments of a burst.
func (b *outbound) sealAll(s *session, p []byte, h *tun.Header, info *packet.Info) {
	if h.Kind != tun.KindPacket {
		if b.count > 0 {
			b.flush() // it may need all of the buffer
		}
		for segment := b.cutter.Next(); segment != nil; segment = b.cutter.Next() {
			b.seal(s, segment, noise.FlagPartial)
		}
		b.flush() // nothing is won by waiting for more of this size
		return
	}
	b.seal(s, p, b.flags(p, h, info))
}

// flags are those of a packet's record. A checksum that the receiver could not complete is completed.
func (b *outbound) flags(p []byte, h *tun.Header, info *packet.Info) noise.Flags {
	switch {
	case !h.Partial:
		return 0
	case info.Transport() && int(h.Start) == info.Upper && int(h.Offset) == info.ChecksumOffset():
		return noise.FlagPartial
	}
	packet.CompleteAt(p, int(h.Start), int(h.Offset))
	return 0
}

// seal appends a record to the send buffer. The class of the packet goes to the outer header, as RFC 6040, section 4.1
// (normal mode) has it for ECN; a buffer has one class.
func (b *outbound) seal(s *session, p []byte, flags noise.Flags) {
	if b.record(s, p, flags, p[0]<<4|p[1]>>4) {
		b.packets++
		b.bytes += uint64(len(p))
	}
}

// record appends a record to the send buffer, and reports whether the session still seals.
func (b *outbound) record(s *session, plaintext []byte, flags noise.Flags, class uint8) bool {
	size, path := len(plaintext)+noise.Overhead, s.path.Load()
	u := &b.burst
	if len(u.Data) > 0 && (b.full || size > u.Size || path != b.path || class != u.Class ||
		b.records == underlay.MaxSegments || len(u.Data)+size > underlay.MaxBurst) {
		b.finish()
	}
	if len(u.Data)+size > cap(u.Data) {
		b.flush()
	}
	if s != b.session {
		b.tell()
		b.session = s
	}
	data, err := s.noise.Seal(u.Data, flags, plaintext)
	if err != nil {
		b.o.counters.drop(DropSeal)
		return false
	}
	if len(u.Data) == 0 {
		u.Path, u.Size, u.Class, b.path, b.from = *path, size, class, path, s
	}
	u.Data = data
	b.records++
	b.full = size < u.Size
	return true
}

// finish puts the burst that grows behind those that are ready.
func (b *outbound) finish() {
	if len(b.burst.Data) == 0 {
		return
	}
	if z := &b.from.sizes; b.burst.Size > pmtu.Least && !z.long.Load() {
		z.long.Store(true)
		b.o.wakes.add(b.from.link) // to see to it that something comes back
	}
	b.ready[b.count], b.owners[b.count] = b.burst, b.from
	b.count++
	b.burst.Data, b.records, b.full = b.burst.Data[len(b.burst.Data):], 0, false
	if b.count == maxReady {
		b.flush()
	}
}

// flush sends the send buffer.
func (b *outbound) flush() {
	b.tell()
	b.finish()
	for first := 0; first < b.count; {
		n, err := b.o.under.SendBursts(b.ready[first:b.count])
		if first += n; err != nil {
			b.refused(err, first-1)
		}
	}
	b.count, b.burst.Data = 0, b.buffer
}

// tell tells the link's counters what was sealed.
func (b *outbound) tell() {
	if b.session == nil {
		return
	}
	if l := b.session.link; b.packets > 0 {
		l.sent(b.now.at, true, true)
		if l.idle.Load() && l.idle.CompareAndSwap(true, false) {
			b.o.wakes.add(l)
		}
		l.txPackets.Add(b.packets)
		l.txBytes.Add(b.bytes)
	}
	b.session, b.packets, b.bytes = nil, 0, 0
}

// elsewhere handles a packet that is not from one of our agents to a peer.
func (b *outbound) elsewhere(p []byte, h *tun.Header, info *packet.Info, key packet.Addresses) {
	c, dst := &b.o.counters, key.Destination()
	if dst[0] == 0xff {
		c.drop(DropNotUnicast)
		return
	}
	local, ours := b.snap.locals[key.Source()]
	if !ours {
		c.drop(DropSourceNotLocal)
		return
	}
	if dst == b.snap.service && b.o.stack != nil {
		for whole := range b.complete(p, h, info) {
			b.o.stack.Deliver(whole)
		}
		return
	}
	addr := netip.AddrFrom16(dst)
	if dst == key.Source() || !b.snap.prefix.Contains(addr) || identity.Reserved(b.snap.prefix, addr) {
		c.drop(DropNoRoute)
		b.answers.unreachable(p, info, packet.NoRoute, b.snap.service, b.now)
		return
	}
	// Whether there is such an agent is not told: it looks like one without consent.
	c.drop(DropUnknownPeer)
	b.o.events.emitUnknown(UnknownPeer{Local: local, Addr: addr}, b.now.at)
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
	if r, ok := packet.AppendReset(a.buf[:0], p, info); ok {
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
	e := packet.AppendUnreachable(a.buf[:0], source, code, p)
	if info.Proto == packet.TCP && info.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN {
		a.o.echoes.add(e, now.at)
	}
	a.write(e)
}

// tooBig tells how long a packet may be, in bytes.
func (a *answerer) tooBig(p []byte, info *packet.Info, mtu int, snap *snapshot, now moment) {
	if packet.MayAnswer(p, info) && a.o.limiter.Allow([16]byte(p[24:40]), now.at) {
		a.write(packet.AppendTooBig(a.buf[:0], snap.service, uint32(mtu), p))
	}
}

func (a *answerer) write(p []byte) {
	a.one[0] = p
	if err := a.o.deviceOf(a.o.snap.Load(), p).Write(nil, a.one[:]); err != nil {
		a.o.counters.drop(DropDevice)
	}
}

// stackBurst is how many packets are taken from the userspace stack at once.
const stackBurst = 64

// stackLoop carries the userspace stack's packets to local programs, and to nobody else.
func (o *Overlay) stackLoop(ctx context.Context) error {
	bufs, sizes := buffers(stackBurst, max(minBuffer, o.mtu)), make([]int, stackBurst)
	one := make([][]byte, 1)
	for {
		n, err := o.stack.ReadPackets(ctx, bufs, sizes, 0)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("overlay: %w", err)
		}
		snap := o.snap.Load()
		for i := range n {
			one[0] = bufs[i][:sizes[i]]
			if !snap.fromService(one[0]) {
				o.counters.drop(DropStack)
				continue
			}
			if err := o.deviceOf(snap, one[0]).Write(nil, one); err != nil && !errors.Is(err, os.ErrClosed) {
				o.counters.drop(DropDevice)
			}
		}
	}
}

func buffers(n, size int) [][]byte {
	slab := make([]byte, n*size)
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = slab[i*size : (i+1)*size : (i+1)*size]
	}
	return bufs
}

// fromService reports whether a packet goes from the service address to a local agent.
func (s *snapshot) fromService(p []byte) bool {
	if len(p) < packet.HeaderSize || [16]byte(p[8:24]) != s.service {
		return false
	}
	_, local := s.locals[[16]byte(p[24:40])]
	return local
}
