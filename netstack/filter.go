// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"net/netip"
)

// Offsets in an IPv6 packet with its ICMPv6 header next (RFC 8200, section 3;
// RFC 4443, section 2.1).
const (
	ipv6HeaderLen   = 40
	offNextHeader   = 6
	offSource       = 8
	offDestination  = 24
	offICMPType     = 40
	offICMPCode     = 41
	offICMPChecksum = 42
	icmpHeaderLen   = 8

	nextHeaderICMPv6 = 58

	icmpUnreachable = 1
	icmpEchoRequest = 128
	icmpEchoReply   = 129
	lastICMPError   = 127

	codeNoRoute     = 0
	codePortUnreach = 4
)

// accepts tells whether a packet may enter the stack. It looks at nothing that
// the stack checks itself, except at what the stack would act on without need:
// multicast, neighbour discovery and multicast listener messages.
func (s *Stack) accepts(packet []byte) bool {
	if len(packet) < ipv6HeaderLen || len(packet) > maxMTU || packet[0]>>4 != 6 {
		return false
	}
	if !s.isOwn(netip.AddrFrom16([16]byte(packet[offDestination:ipv6HeaderLen]))) {
		return false
	}
	if !s.routed(netip.AddrFrom16([16]byte(packet[offSource:offDestination]))) {
		return false
	}
	if packet[offNextHeader] != nextHeaderICMPv6 {
		return true
	}
	if len(packet) < ipv6HeaderLen+icmpHeaderLen {
		return false
	}
	kind := packet[offICMPType]
	return kind <= lastICMPError || kind == icmpEchoRequest || kind == icmpEchoReply
}

// plainUnreachable turns the "destination unreachable" codes that gVisor
// doesn't act on (administratively prohibited, address unreachable, policy,
// reject route; RFC 4443, section 3.1) into "no route to destination", which
// fails a connection attempt at once, instead of leaving it to its time-out.
func plainUnreachable(packet []byte) {
	if packet[offNextHeader] != nextHeaderICMPv6 || packet[offICMPType] != icmpUnreachable {
		return
	}
	code := packet[offICMPCode]
	if code == codeNoRoute || code == codePortUnreach {
		return
	}
	packet[offICMPCode] = codeNoRoute
	// RFC 1624, equation 3, for the one 16-bit word that changed.
	before := uint32(icmpUnreachable)<<8 | uint32(code)
	after := uint32(icmpUnreachable) << 8
	sum := uint32(^binary.BigEndian.Uint16(packet[offICMPChecksum:])) + (^before & 0xffff) + after
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(packet[offICMPChecksum:], ^uint16(sum))
}
