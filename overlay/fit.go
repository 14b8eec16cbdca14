// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/overlay/parts"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// What to do with packets that fit no record on a narrow path. TCP is cut smaller, as its own sender would have done it: that
// goes unnoticed. Other programs are told, once the search has ended, so that their kernel sends what fits; but no link of
// IPv6 may ask for less than minMTU, and there are packets about which nobody may be told. They travel in parts.

// minMTU is what every IPv6 link carries (RFC 8200, section 5), in bytes.
const minMTU = 1280

// urgent is the TCP flag of a segment that has an urgent pointer (RFC 9293), which counts from where the segment begins.
const urgent = 1 << 5

// fit sends a packet or a burst whose longest packet is too long for the session's path, of which f was found.
func (b *outbound) fit(s *session, p []byte, h *tun.Header, info *packet.Info, f found) {
	if h.Kind == tun.KindPacket {
		flags := b.flags(p, h, info)
		// While its checksum is still to be computed it may be cut like a burst.
		as := tun.Header{Kind: tun.KindTCP, Segment: uint16(len(p)), Partial: true, Start: h.Start, Offset: h.Offset}
		if flags&noise.FlagPartial == 0 || info.TCPFlags&urgent != 0 || b.cutter.Reset(p, &as, info) != nil {
			b.sealPacket(s, p, flags, info, f)
			b.flush()
			return
		}
	}
	b.cutter.Shorten(f.limit - noise.Overhead)
	for segment := b.cutter.Next(); segment != nil; segment = b.cutter.Next() {
		if !b.sealPacket(s, segment, noise.FlagPartial, info, f) {
			break // its program was told, about all of them
		}
	}
	b.flush()
}

// sealPacket seals a packet in one record or in parts. It reports false if it told the sender that the packet is too long.
func (b *outbound) sealPacket(s *session, p []byte, flags noise.Flags, info *packet.Info, f found) bool {
	room := f.limit - noise.Overhead
	if len(p) <= room {
		b.seal(s, p, flags)
		return true
	}
	count := parts.Count(len(p), room)
	if tell := len(p) > minMTU && f.settled && packet.MayAnswer(p, info); tell || count == 0 {
		b.o.counters.drop(DropTooBig)
		b.answers.tooBig(p, info, max(room, minMTU), b.snap, b.now)
		return false
	}
	id, class := s.sizes.packet.Add(1), p[0]<<4|p[1]>>4
	for i := range count {
		b.part = parts.Append(b.part[:0], p, id, i, count)
		if !b.record(s, b.part, flags|noise.FlagPart, class) {
			return true
		}
	}
	b.packets++
	b.bytes += uint64(len(p))
	return true
}

// refused handles a burst that the underlay did not send.
func (b *outbound) refused(err error, i int) {
	b.o.counters.drop(DropSend)
	if errors.Is(err, underlay.ErrTooBig) {
		b.owners[i].sizes.refuse(b.ready[i].Size)
		b.o.wakes.add(b.owners[i].link)
	}
}
