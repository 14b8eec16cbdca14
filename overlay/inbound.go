// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// A record's way in: receive in a burst, find the session by the record's index, open, check that the packet inside is
// from the session's agent and for its local agent, ask the flow table, write what is left to the device together.

const receiveBurst = 32

// inbound is the state of a loop from underlay to device.
type inbound struct {
	o     *Overlay
	snap  *snapshot
	now   moment
	plain [][]byte // buffers for opened packets, with headroom
	ready [][]byte // opened packets that go to the device
}

func newInbound(o *Overlay, burst int) *inbound {
	return &inbound{o: o, plain: buffers(burst, o.bufferSize()), ready: make([][]byte, 0, burst)}
}

func (o *Overlay) inboundLoop(ctx context.Context, loop int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b := newInbound(o, receiveBurst)
	bufs, sizes := buffers(receiveBurst, o.bufferSize()), make([]int, receiveBurst)
	paths := make([]underlay.Path, receiveBurst)
	for {
		n, err := o.under.Receive(loop, bufs, sizes, paths)
		if err != nil {
			if ended(ctx, err) {
				return nil
			}
			return fmt.Errorf("overlay: %w", err)
		}
		if err := b.receive(bufs[:n], sizes, paths); err != nil {
			if ended(ctx, err) {
				return nil
			}
			return fmt.Errorf("overlay: %w", err)
		}
	}
}

// receive takes a burst of datagrams. Its error means that the device is closed.
func (b *inbound) receive(bufs [][]byte, sizes []int, paths []underlay.Path) error {
	b.snap, b.now, b.ready = b.o.snap.Load(), b.o.now(), b.ready[:0]
	for i, buf := range bufs {
		d := buf[:sizes[i]]
		if b.snap.prefix.Contains(paths[i].Remote.Addr()) {
			// It came through a tunnel. The answer would go into the same tunnel, and its records into it again.
			b.o.counters.drop(DropDatagram)
			continue
		}
		switch noise.Kind(d) {
		case noise.KindRecord:
			b.receiveRecord(d, &paths[i])
		case noise.KindHandshake:
			b.o.offerHandshake(d, paths[i])
		default:
			b.o.counters.drop(DropDatagram)
		}
	}
	if len(b.ready) == 0 {
		return nil
	}
	if _, err := b.o.device.Write(b.ready, tun.Headroom); err != nil {
		b.o.counters.drop(DropDevice)
		if errors.Is(err, os.ErrClosed) {
			return err
		}
	}
	return nil
}

func (b *inbound) receiveRecord(d []byte, path *underlay.Path) {
	s := b.o.sessions.get(noise.RecordIndex(d))
	if s == nil {
		b.o.counters.drop(DropUnknownSession)
		return
	}
	buf := b.plain[len(b.ready)]
	opened, flags, err := s.noise.Open(buf[:tun.Headroom], d)
	if err != nil {
		b.o.counters.drop(dropOfOpen(err))
		return
	}
	p := opened[tun.Headroom:]
	control := flags&noise.FlagControl != 0
	s.link.heard(b.now.at, !control)
	b.o.follow(s, binary.BigEndian.Uint64(d[8:16]), path)
	if s.link.unconfirmed.Load() {
		s.link.unconfirmed.Store(false)
		b.o.wakes.add(s.link)
	}
	if control {
		b.o.receiveMessage(s, p, b.now)
		return
	}
	if b.accept(s, p) {
		b.ready = append(b.ready, opened)
		s.link.rxPackets.Add(1)
		s.link.rxBytes.Add(uint64(len(p)))
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

// follow moves the session's path to where its newest record came from. An older one, which somebody may have held back
// or sent again, moves nothing.
func (o *Overlay) follow(s *session, counter uint64, path *underlay.Path) {
	for {
		newest := s.newest.Load()
		if counter < newest {
			return
		}
		if s.newest.CompareAndSwap(newest, counter+1) {
			break
		}
	}
	if old := s.path.Load(); *old != *path {
		o.move(s, old, *path)
	}
}

// move is apart from follow so that only a path that changed is allocated.
func (o *Overlay) move(s *session, old *underlay.Path, path underlay.Path) {
	if s.path.CompareAndSwap(old, &path) && (old.Remote != path.Remote || old.Relay != path.Relay) {
		o.events.emit(PathChanged{Local: s.link.local, Agent: s.link.remote, Addr: s.link.addr, Path: path})
	}
}

// accept decides about an opened packet.
func (b *inbound) accept(s *session, p []byte) bool {
	var info packet.Info
	if err := packet.Parse(p, &info); err != nil {
		b.o.counters.drop(dropOf(err))
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
	r, ok := b.snap.routes[l.out]
	if !ok || r.link != l {
		b.o.counters.drop(DropUnknownPeer)
		return false
	}
	q := question{local: l.out, peer: l.addr, rules: r.rules, generation: b.snap.generation, now: b.now}
	if v := b.o.flows.permit(&q, p, &info); v != policy.Allow {
		b.o.counters.deniedIn[v].Add(1)
		b.o.refuse(s, v, p, &info, b.now)
		return false
	}
	return true
}
