// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// Code is a reason why a destination can't be reached (RFC 4443, section 3.1).
type Code uint8

// Codes of "destination unreachable". Linux reports them to programs as the errors in brackets.
const (
	NoRoute            Code = 0 // ENETUNREACH
	AdminProhibited    Code = 1 // EACCES
	AddressUnreachable Code = 3 // EHOSTUNREACH
)

// minMTU is the size that an error message must not exceed (RFC 4443, section 2.4 (c)).
const minMTU = 1280

const hopLimit = 64

// MayAnswer reports whether an error may be sent about the packet: never about an error, a redirect, or what was not
// sent from one address to one address (RFC 4443, section 2.4 (e)). The packet must have passed Parse.
func MayAnswer(p []byte, info *Info) bool {
	switch {
	case p[8] == 0xff || p[24] == 0xff:
		return false
	case [16]byte(p[8:24]) == [16]byte{}:
		return false
	case info.IsError(), info.Proto == ICMPv6 && info.ICMPType == typeRedirect:
		return false
	case info.Proto == Fragment && p[info.Upper] == ICMPv6:
		return false // it may be an error
	}
	return true
}

// AppendUnreachable appends "destination unreachable" about the packet, from the given source to the packet's source.
func AppendUnreachable(dst []byte, source [16]byte, code Code, about []byte) []byte {
	return appendError(dst, source, TypeUnreachable, uint8(code), 0, about)
}

// AppendTooBig appends "packet too big" with the MTU that would have fitted, in bytes.
func AppendTooBig(dst []byte, source [16]byte, mtu uint32, about []byte) []byte {
	return appendError(dst, source, TypeTooBig, 0, mtu, about)
}

func appendError(dst []byte, source [16]byte, typ, code uint8, value uint32, about []byte) []byte {
	quote := about[:min(len(about), minMTU-HeaderSize-8)]
	at := len(dst)
	dst = appendHeader(dst, ICMPv6, 8+len(quote), source, [16]byte(about[8:24]))
	dst = append(dst, typ, code, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, value)
	dst = append(dst, quote...)
	binary.BigEndian.PutUint16(dst[at+HeaderSize+2:], upperChecksum(dst[at:]))
	return dst
}

// AppendReset appends the TCP reset with which the destination would end the connection of the segment (RFC 9293,
// section 3.10.7.1). It reports false, and appends nothing, where a reset has no place: the segment is itself one, or
// opens a connection (an ICMPv6 error says more), or acknowledges nothing.
func AppendReset(dst []byte, segment []byte, info *Info) ([]byte, bool) {
	if info.Proto != TCP || !info.PortKnown || info.TCPFlags&(RST|SYN|ACK) != ACK {
		return dst, false
	}
	at, u := len(dst), segment[info.Upper:]
	dst = appendHeader(dst, TCP, 20, [16]byte(segment[24:40]), [16]byte(segment[8:24]))
	dst = append(dst, u[2], u[3], u[0], u[1]) // ports, swapped
	dst = append(dst, u[8:12]...)             // the sequence number that the sender expects
	dst = append(dst, 0, 0, 0, 0, 5<<4, RST, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(dst[at+HeaderSize+16:], upperChecksum(dst[at:]))
	return dst, true
}

func appendHeader(dst []byte, proto uint8, payload int, source, destination [16]byte) []byte {
	dst = append(dst, 0x60, 0, 0, 0, byte(payload>>8), byte(payload), proto, hopLimit)
	dst = append(dst, source[:]...)
	return append(dst, destination[:]...)
}

// upperChecksum is the checksum over the pseudo-header and the upper layer of a packet without extension headers
// (RFC 8200, section 8.1).
func upperChecksum(p []byte) uint16 {
	return ^fold(sumBytes(uint64(len(p)-HeaderSize)+uint64(p[6]), p[8:]))
}
