// SPDX-License-Identifier: Apache-2.0

// Package burst cuts what a kernel hands over as one large send into packets, and joins packets into what a kernel takes
// as one. It moves no payload, allocates nothing, and computes no checksum.
package burst

import (
	"encoding/binary"
	"errors"

	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/tun"
)

const (
	// maxHead bounds the headers of a burst: a fixed header, extension headers, and TCP's own with options.
	maxHead = 256

	tcpHeader = 20
	udpHeader = 8
	psh       = 1 << 3
	cwr       = 1 << 7
)

// ErrMalformed means that a burst is not what its header says.
var ErrMalformed = errors.New("malformed burst")

// Cutter cuts one burst after the other. Segments are made one at a time and in place: the headers of the next one are
// written over payload of the one before, whose time is over then. The zero value is ready for Reset.
type Cutter struct {
	p    []byte
	kind tun.Kind
	info packet.Info
	head int // bytes of headers
	size int // payload of each segment but the last
	at   int // payload that was cut off
	save [maxHead]byte
}

// Reset begins a burst: a packet of h.Kind that has passed Parse. It keeps p until the last segment. The error is
// ErrMalformed.
func (c *Cutter) Reset(p []byte, h *tun.Header, info *packet.Info) error {
	c.p = nil
	head, ok := headOf(p, info)
	switch {
	case !ok, !h.Partial, h.Segment == 0:
		return ErrMalformed
	case h.Kind == tun.KindTCP && info.Proto != packet.TCP, h.Kind == tun.KindUDP && info.Proto != packet.UDP, h.Kind == tun.KindPacket:
		return ErrMalformed
	case int(h.Start) != info.Upper || int(h.Offset) != info.ChecksumOffset():
		return ErrMalformed
	case head > maxHead, head == len(p):
		return ErrMalformed
	case info.Proto == packet.TCP && info.TCPFlags&(packet.SYN|packet.RST) != 0:
		return ErrMalformed
	}
	c.p, c.kind, c.info, c.head, c.size, c.at = p, h.Kind, *info, head, int(h.Segment), 0
	copy(c.save[:], p[:head])
	return nil
}

// headOf returns the length of all headers of a TCP or UDP packet.
func headOf(p []byte, info *packet.Info) (int, bool) {
	if !info.Transport() {
		return 0, false
	}
	if info.Proto == packet.UDP {
		return info.Upper + udpHeader, true
	}
	return info.Upper + int(p[info.Upper+12]>>4)*4, true
}

// Longest returns the length of the longest segment, in bytes.
func (c *Cutter) Longest() int { return c.head + min(c.size, len(c.p)-c.head) }

// Shorten makes the segments of a TCP burst, which may be cut anywhere, no longer than longest bytes; there must be room for
// more than the headers. It has no effect on other bursts.
func (c *Cutter) Shorten(longest int) {
	if c.kind == tun.KindTCP && longest > c.head {
		c.size = min(c.size, longest-c.head)
	}
}

// Next returns the next segment: a packet without its checksum, nil after the last. It is the caller's until the next call.
func (c *Cutter) Next() []byte {
	left := len(c.p) - c.head - c.at
	if c.p == nil || left <= 0 {
		c.p = nil
		return nil
	}
	n, last := c.size, false
	if n >= left {
		n, last = left, true
	}
	s := c.p[c.at : c.at+c.head+n]
	copy(s, c.save[:c.head])
	binary.BigEndian.PutUint16(s[4:], uint16(c.head-packet.HeaderSize+n))
	u := s[c.info.Upper:]
	if c.kind == tun.KindTCP {
		binary.BigEndian.PutUint32(u[4:], binary.BigEndian.Uint32(u[4:])+uint32(c.at))
		if !last {
			u[13] &^= packet.FIN | psh
		}
		if c.at > 0 {
			u[13] &^= cwr
		}
	} else {
		binary.BigEndian.PutUint16(u[4:], uint16(udpHeader+n))
	}
	c.at += n
	return s
}
