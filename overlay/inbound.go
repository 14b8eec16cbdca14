// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/burst"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/overlay/parts"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// A record's way in: receive in bursts, find the session by the record's index, open it where it lies, check that the
// packet inside is from the session's agent and for its local agent, ask the flow table, join what follows one another in a
// flow, give it to the device.

const (
	// receiveBurst is how many bursts are received at once, at most. Each may be 64 KiB long.
	receiveBurst = 64
	// firstBursts is for how many a loop has room until so many come at once: then it gets room for twice as many, a few
	// times in its life. More than enoughBursts serve only where datagrams come one by one.
	firstBursts  = 4
	enoughBursts = 16
)

// inbound is the state of a loop from underlay to device.
type inbound struct {
	o      *Overlay
	snap   *snapshot
	now    moment
	recent recent
	run    run
	device tun.Device // what join is for
	join   burst.Joiner
	one    [1][]byte
	// relayed is the path of a datagram that a relay forwarded: it lies here so that nothing is allocated.
	relayed underlay.Path
	// whole is a packet that came in parts.
	whole []byte
	err   error // the device is closed
}

// run is records in a row of one session that came along one path.
type run struct {
	s              *session
	path           underlay.Path
	newest         uint64 // highest counter
	packets, bytes uint64 // accepted
	data           bool   // there was a packet
}

func newInbound(o *Overlay) *inbound {
	return &inbound{o: o, device: o.device, join: burst.Joiner{Offloads: o.device.Offloads()}, whole: make([]byte, 0, parts.MaxPacket)}
}

func (o *Overlay) inboundLoop(ctx context.Context, loop int) error {
	b := newInbound(o)
	bursts := newBursts(firstBursts)
	for {
		n, err := o.under.Receive(loop, bursts)
		if err == nil {
			err = b.receive(bursts[:n])
			bursts = moreBursts(bursts, n)
		}
		if err != nil {
			if ended(ctx, err) {
				return nil
			}
			return fmt.Errorf("overlay: %w", err)
		}
	}
}

func newBursts(n int) []underlay.Burst {
	bursts := make([]underlay.Burst, n)
	for i, buf := range buffers(n, underlay.ReceiveSize) {
		bursts[i].Data = buf
	}
	return bursts
}

// moreBursts makes room for more after n came, if that is all there was room for.
func moreBursts(bursts []underlay.Burst, n int) []underlay.Burst {
	if n < len(bursts) || n >= receiveBurst {
		return bursts
	}
	for i := range bursts {
		if b := &bursts[i]; n >= enoughBursts && len(b.Data) > b.Size {
			return bursts
		}
	}
	return append(bursts, newBursts(min(n, receiveBurst-n))...)
}

// receive takes what came, and writes into it. Its error means that the device is closed.
func (b *inbound) receive(bursts []underlay.Burst) error {
	b.snap, b.now, b.recent = b.o.snap.Load(), b.o.now(), recent{}
	for i := range bursts {
		in := &bursts[i]
		if in.Path.Relay == 0 && b.snap.prefix.Contains(in.Path.Remote.Addr()) {
			// It came through a tunnel. The answer would go into the same tunnel, and its records into it again.
			b.o.counters.drop(DropDatagram)
			continue
		}
		for d := range in.Each {
			switch noise.Kind(d) {
			case noise.KindRecord:
				b.receiveRecord(d, &in.Path, in.Class)
			case noise.KindHandshake:
				b.o.offerHandshake(d, in.Path)
			default:
				b.receiveOther(d, in)
			}
		}
	}
	b.flush()
	b.settle()
	return b.err
}

// receiveOther lets the underlay unwrap what a relay forwarded, or take what is meant for itself.
func (b *inbound) receiveOther(d []byte, in *underlay.Burst) {
	inner, path, ok := b.o.under.Accept(d, in.Path)
	switch kind := noise.Kind(inner); {
	case ok && kind == noise.KindRecord:
		b.relayed = path
		b.receiveRecord(inner, &b.relayed, in.Class)
	case ok && kind == noise.KindHandshake:
		b.o.offerHandshake(inner, path)
	case ok || inner != nil:
		b.o.counters.drop(DropDatagram)
	}
}

func (b *inbound) receiveRecord(d []byte, path *underlay.Path, class uint8) {
	s := b.session(noise.RecordIndex(d))
	if s == nil {
		b.o.counters.drop(DropUnknownSession)
		return
	}
	p, flags, err := s.noise.Open(d[noise.HeaderSize:noise.HeaderSize], d)
	if err != nil {
		b.o.counters.drop(dropOfOpen(err))
		return
	}
	if s != b.run.s || b.run.path != *path {
		b.settle()
		b.run.s, b.run.path = s, *path
	}
	b.run.newest = max(b.run.newest, binary.BigEndian.Uint64(d[8:16]))
	if flags&noise.FlagControl != 0 {
		b.settle()
		b.o.receiveMessage(s, path, p, b.now)
		return
	}
	b.run.data = true
	if flags&noise.FlagPart != 0 {
		b.receivePart(s, p, flags&^noise.FlagPart, class)
		return
	}
	b.receivePacket(s, p, flags, class)
}

func (b *inbound) receivePacket(s *session, p []byte, flags noise.Flags, class uint8) {
	var info packet.Info
	if b.accept(s, p, flags, class, &info) {
		b.run.packets++
		b.run.bytes += uint64(len(p))
		b.deliver(p, flags, &info)
	}
}

// receivePart keeps a part until the packet is whole.
func (b *inbound) receivePart(s *session, part []byte, flags noise.Flags, class uint8) {
	lost := &b.o.counters.drops[DropParts]
	whole, class, err := s.sizes.assembler().Add(b.whole[:0], part, uint8(flags), class, b.now.at, lost)
	switch {
	case err != nil:
		b.o.counters.drop(DropPart)
	case len(whole) > 0:
		b.receivePacket(s, whole, flags, class)
		b.flush() // the next one goes into the same buffer
	}
}

// session finds the session of a record. Neighbours have the same one.
func (b *inbound) session(index uint32) *session {
	if s := b.run.s; s != nil && s.noise.LocalIndex() == index {
		return s
	}
	return b.o.sessions.get(index)
}

// settle tells the session what came in a row.
func (b *inbound) settle() {
	r := &b.run
	if r.s == nil {
		return
	}
	l := r.s.link
	l.heard(b.now.at, r.data)
	b.o.follow(r.s, r.newest, &r.path, b.now.at)
	if r.data && l.idle.Load() && l.idle.CompareAndSwap(true, false) {
		b.o.wakes.add(l)
	}
	if l.unconfirmed.Load() {
		l.unconfirmed.Store(false)
		b.o.wakes.add(l)
	}
	if r.packets > 0 {
		l.rxPackets.Add(r.packets)
		l.rxBytes.Add(r.bytes)
	}
	*r = run{}
}

// deliver gives a packet to the device, at once or with those that follow it.
func (b *inbound) deliver(p []byte, flags noise.Flags, info *packet.Info) {
	if device := b.o.deviceOf(b.snap, p); device != b.device {
		b.flush()
		b.device, b.join.Offloads = device, device.Offloads()
	}
	if flags&noise.FlagPartial != 0 && b.join.Offloads&tun.OffloadChecksum != 0 {
		if !b.join.Add(p, info) {
			b.flush()
			b.join.Add(p, info)
		}
		return
	}
	b.flush() // in the order in which they came
	if flags&noise.FlagPartial != 0 {
		packet.Complete(p, info)
	}
	b.one[0] = p
	b.write(nil, b.one[:])
}

// flush gives the device what was joined.
func (b *inbound) flush() {
	if !b.join.Empty() {
		b.write(b.join.Take())
	}
}

func (b *inbound) write(h *tun.Header, pieces [][]byte) {
	if err := b.device.Write(h, pieces); err != nil {
		b.o.counters.drop(DropDevice)
		if errors.Is(err, os.ErrClosed) {
			b.err = err
		}
	}
}

func dropOfOpen(err error) Drop {
	switch {
	case errors.Is(err, noise.ErrReplay):
		return DropReplay
	case errors.Is(err, noise.ErrAuth):
		return DropAuth
	case errors.Is(err, noise.ErrMalformed):
		return DropDatagram
	}
	return DropUnknownSession
}

// follow notices that the session's newest record came along another path than the one in use. Nothing is sent there before
// a ping proved it; an older record, which somebody may have held back or sent again, means nothing.
func (o *Overlay) follow(s *session, counter uint64, path *underlay.Path, at time.Duration) {
	for {
		newest := s.newest.Load()
		if counter < newest {
			return
		}
		if s.newest.CompareAndSwap(newest, counter+1) {
			break
		}
	}
	if sameWay(s.path.Load(), path) {
		return
	}
	if told := s.heard.Load(); told == nil || *told != *path {
		o.heard(s, *path, at)
	}
}

// accept decides about an opened packet.
func (b *inbound) accept(s *session, p []byte, flags noise.Flags, class uint8, info *packet.Info) bool {
	if err := packet.Parse(p, info); err != nil {
		b.o.counters.drop(dropOf(err))
		return false
	}
	if flags&noise.FlagPartial != 0 && !info.Transport() {
		b.o.counters.drop(DropMalformed)
		return false
	}
	l := s.link
	if key := packet.AddressesOf(p); key != l.in {
		if key.Source() != l.in.Source() {
			b.o.counters.drop(DropInnerSource)
		} else {
			b.o.counters.drop(DropInnerDest)
		}
		return false
	}
	r, ok := b.recent.route(b.snap, &l.out)
	if !ok || r.link != l {
		b.o.counters.drop(DropUnknownPeer)
		return false
	}
	if !b.recent.flow(info) {
		q := question{local: l.out, peer: l.addr, rules: r.rules, generation: b.snap.generation, now: b.now}
		if v := b.o.flows.permit(&q, p, info); v != policy.Allow {
			b.o.counters.deniedIn[v].Add(1)
			b.settle() // the answer goes where this came from
			b.o.refuse(s, v, p, info, b.now)
			return false
		}
		b.recent.permitted(info)
	}
	if !packet.Congest(p, class) {
		b.o.counters.drop(DropECN)
		return false
	}
	return true
}
