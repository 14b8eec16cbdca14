// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"encoding/binary"
	"errors"
)

// Offloads is a set of things that a Device's Write leaves to the kernel.
type Offloads uint8

// The offloads. OffloadTCP and OffloadUDP come with OffloadChecksum only.
const (
	OffloadChecksum Offloads = 1 << iota // complete a checksum
	OffloadTCP                           // take a burst of TCP
	OffloadUDP                           // take a burst of UDP
)

// Kind tells a burst from a packet.
type Kind uint8

// The kinds.
const (
	KindPacket Kind = iota // one packet
	KindTCP                // TCP segments under one header
	KindUDP                // UDP datagrams under one header
)

// MaxPieces is in how many pieces a packet may be given to Write: a header and each of the largest burst's segments.
const MaxPieces = 64

// Header says what is still to be done to a packet. The zero value: nothing.
type Header struct {
	Kind    Kind
	ECN     bool   // KindTCP: only the first segment has CWR (RFC 3168, section 6.1.2)
	Segment uint16 // KindTCP, KindUDP: bytes of payload in each segment but the last
	Length  uint16 // KindTCP, KindUDP: bytes of headers, as far as the writer of the header knew: a hint

	// Partial: the checksum is to be taken from byte Start to the end, and put at Start+Offset, where the sum over the
	// pseudo header stands already.
	Partial       bool
	Start, Offset uint16
}

// The virtio header (Virtual I/O Device specification 1.2, section 5.1.6), as a TUN has it: ten bytes in the order of the machine.
const (
	virtioSize      = 10
	virtioNeedsCsum = 1
	virtioNone      = 0
	virtioTCPv4     = 1
	virtioTCPv6     = 4
	virtioUDP       = 5
	virtioECN       = 0x80
)

var errPieces = errors.New("more than MaxPieces pieces")

// decode reads a header that came with a packet of n bytes. It reports false for one that contradicts itself or means
// nothing here. A burst of IPv4 is KindTCP too: the packet says what it is. None is ever written.
func (h *Header) decode(b *[virtioSize]byte, n int) bool {
	*h = Header{
		Partial: b[0]&virtioNeedsCsum != 0,
		Length:  binary.NativeEndian.Uint16(b[2:]),
		Segment: binary.NativeEndian.Uint16(b[4:]),
		Start:   binary.NativeEndian.Uint16(b[6:]),
		Offset:  binary.NativeEndian.Uint16(b[8:]),
	}
	switch b[1] {
	case virtioNone:
		h.Segment, h.Length = 0, 0
	case virtioTCPv4, virtioTCPv4 | virtioECN, virtioTCPv6, virtioTCPv6 | virtioECN:
		h.Kind, h.ECN = KindTCP, b[1]&virtioECN != 0
	case virtioUDP:
		h.Kind = KindUDP
	default:
		return false // fragmentation by the device, which nobody asked for
	}
	if !h.Partial {
		h.Start, h.Offset = 0, 0
	}
	switch {
	case h.Kind != KindPacket && (!h.Partial || h.Segment == 0):
		return false
	case h.Partial && int(h.Start)+int(h.Offset)+2 > n:
		return false
	}
	return n >= 0
}

func (h *Header) encode(b *[virtioSize]byte) {
	switch h.Kind {
	case KindTCP:
		b[1] = virtioTCPv6
		if h.ECN {
			b[1] |= virtioECN
		}
	case KindUDP:
		b[1] = virtioUDP
	}
	if h.Partial {
		b[0] = virtioNeedsCsum
	}
	binary.NativeEndian.PutUint16(b[2:], h.Length)
	binary.NativeEndian.PutUint16(b[4:], h.Segment)
	binary.NativeEndian.PutUint16(b[6:], h.Start)
	binary.NativeEndian.PutUint16(b[8:], h.Offset)
}
