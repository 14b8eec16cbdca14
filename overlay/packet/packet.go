// SPDX-License-Identifier: Apache-2.0

// Package packet reads the headers of IPv6 packets and builds the errors that answer them.
//
// The reader exists to decide port rules, so it is strict: what it reports as a port is a port at the place where the
// receiving kernel looks for one too. Fragments and upper layers it cannot read never have a known port.
package packet

import (
	"encoding/binary"
	"errors"
)

// Protocol and next-header numbers (IANA "Assigned Internet Protocol Numbers").
const (
	HopByHop    = 0
	TCP         = 6
	UDP         = 17
	Routing     = 43
	Fragment    = 44
	ICMPv6      = 58
	NoNext      = 59
	DestOptions = 60
)

// ICMPv6 types (RFC 4443).
const (
	TypeUnreachable = 1
	TypeTooBig      = 2
	TypeParameter   = 4
	TypeEchoRequest = 128
	TypeEchoReply   = 129
	typeRedirect    = 137
	firstInfoType   = 128 // types below are error messages
)

// TCP flags (RFC 9293).
const (
	FIN = 1 << iota
	SYN
	RST
	_
	ACK
)

// HeaderSize is the length of the fixed IPv6 header (RFC 8200, section 3), in bytes.
const HeaderSize = 40

// maxExtensions bounds the walk. RFC 8200, section 4.1 has each extension header once, destination options twice; what
// is longer is no honest packet.
const maxExtensions = 5

// Errors of Parse. All mean that the packet is to be dropped.
var (
	ErrVersion   = errors.New("not an IPv6 packet")
	ErrMalformed = errors.New("malformed IPv6 packet")
	// ErrRouting refuses every routing header: type 0 is deprecated (RFC 5095), and in a network in which everybody
	// is one hop away the others have no use but to arrive where the rules do not expect it.
	ErrRouting = errors.New("IPv6 packet with a routing header")
)

// Info is what Parse learns. Source and destination are not copied: see Addresses.
type Info struct {
	Proto     uint8  // upper layer; Fragment for a fragment; the first unreadable next header otherwise
	PortKnown bool   // the upper layer is TCP, UDP or ICMPv6, whole and readable
	SrcPort   uint16 // TCP and UDP; echo: the identifier
	DstPort   uint16 // TCP and UDP; echo: the identifier
	TCPFlags  uint8
	ICMPType  uint8 // ICMPv6 only
	Upper     int   // offset of the upper layer header
}

// Parse reads the headers of one packet into info. It checks that the packet is as long as it says, and that its
// transport header is whole. It does not check sums, does not allocate and does not keep p.
func Parse(p []byte, info *Info) error {
	*info = Info{}
	if len(p) == 0 || p[0]>>4 != 6 {
		return ErrVersion
	}
	if len(p) < HeaderSize || int(binary.BigEndian.Uint16(p[4:])) != len(p)-HeaderSize {
		return ErrMalformed
	}
	next, at := p[6], HeaderSize
	for range maxExtensions {
		switch next {
		case HopByHop:
			if at != HeaderSize {
				return ErrMalformed // RFC 8200, section 4.1: only first
			}
		case DestOptions:
		case Routing:
			return ErrRouting
		case Fragment:
			if len(p)-at < 8 {
				return ErrMalformed
			}
			info.Proto, info.Upper = Fragment, at
			return nil
		default:
			info.Proto, info.Upper = next, at
			return parseUpper(p[at:], info)
		}
		if len(p)-at < 8 {
			return ErrMalformed
		}
		size := (int(p[at+1]) + 1) * 8
		if len(p)-at < size {
			return ErrMalformed
		}
		next, at = p[at], at+size
	}
	return ErrMalformed
}

func parseUpper(u []byte, info *Info) error {
	switch info.Proto {
	case TCP:
		if len(u) < 20 || u[12]>>4 < 5 || int(u[12]>>4)*4 > len(u) {
			return ErrMalformed
		}
		info.TCPFlags = u[13]
	case UDP:
		if len(u) < 8 {
			return ErrMalformed
		}
	case ICMPv6:
		if len(u) < 8 {
			return ErrMalformed
		}
		info.ICMPType = u[0]
		info.PortKnown = true
		if u[0] == TypeEchoRequest || u[0] == TypeEchoReply {
			info.SrcPort = binary.BigEndian.Uint16(u[4:])
			info.DstPort = info.SrcPort
		}
		return nil
	default:
		return nil
	}
	info.PortKnown = true
	info.SrcPort = binary.BigEndian.Uint16(u)
	info.DstPort = binary.BigEndian.Uint16(u[2:])
	return nil
}

// IsError reports whether the packet is an ICMPv6 error message, which quotes the packet that it is about.
func (i *Info) IsError() bool { return i.Proto == ICMPv6 && i.ICMPType < firstInfoType }

// Addresses is a packet's source followed by its destination: a key that needs no copy of the header's order.
type Addresses [32]byte

// AddressesOf returns the addresses of a packet of at least HeaderSize bytes.
func AddressesOf(p []byte) Addresses { return Addresses(p[8:HeaderSize]) }

// Swap returns the addresses of a packet that goes the other way.
func (a Addresses) Swap() (b Addresses) {
	copy(b[:16], a[16:])
	copy(b[16:], a[:16])
	return b
}

// Source returns the first address.
func (a *Addresses) Source() [16]byte { return [16]byte(a[:16]) }

// Destination returns the second address.
func (a *Addresses) Destination() [16]byte { return [16]byte(a[16:]) }

// Quoted reads the packet that an ICMPv6 error quotes, which is usually cut. It reports whether the quote's addresses
// and, where they can be known, ports could be read; a quote with extension headers is not followed.
func Quoted(p []byte, outer *Info, inner *Info) (Addresses, bool) {
	*inner = Info{}
	if !outer.IsError() || len(p) < outer.Upper+8+HeaderSize+4 {
		return Addresses{}, false
	}
	q := p[outer.Upper+8:]
	if q[0]>>4 != 6 {
		return Addresses{}, false
	}
	inner.Proto, inner.Upper = q[6], HeaderSize
	u := q[HeaderSize:]
	switch inner.Proto {
	case TCP, UDP:
		inner.PortKnown = true
		inner.SrcPort = binary.BigEndian.Uint16(u)
		inner.DstPort = binary.BigEndian.Uint16(u[2:])
	case ICMPv6:
		inner.ICMPType = u[0]
		if len(u) < 8 || (u[0] != TypeEchoRequest && u[0] != TypeEchoReply) {
			return Addresses{}, false // RFC 4443, section 2.4 (e): no error about an error
		}
		inner.PortKnown = true
		inner.SrcPort = binary.BigEndian.Uint16(u[4:])
		inner.DstPort = inner.SrcPort
	default:
		return Addresses{}, false
	}
	return AddressesOf(q), true
}
