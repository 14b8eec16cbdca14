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

	nextHeaderTCP    = 6
	nextHeaderUDP    = 17
	nextHeaderICMPv6 = 58

	icmpUnreachable = 1
	icmpEchoRequest = 128
	icmpEchoReply   = 129
	lastICMPError   = 127

	codeNoRoute     = 0
	codeProhibited  = 1
	codeBeyondScope = 2
	codeAddress     = 3
	codePortUnreach = 4
	codePolicy      = 5
	codeReject      = 6
)

// accepts tells whether a packet of size bytes may enter the stack, by its headers. It looks at nothing that
// the stack checks itself, except at what the stack would act on without need:
// multicast, neighbour discovery and multicast listener messages.
func (s *Stack) accepts(packet []byte, size int) bool {
	if len(packet) < ipv6HeaderLen || size > maxPacket || packet[0]>>4 != 6 {
		return false
	}
	h := s.hosts.Load()
	if !h.isOwn(netip.AddrFrom16([16]byte(packet[offDestination:ipv6HeaderLen]))) {
		return false
	}
	if !h.routed(netip.AddrFrom16([16]byte(packet[offSource:offDestination]))) {
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

// hear looks at an error about a packet of ours before the stack does: it remembers why a flow was refused, which gVisor
// has no words for, and says it in the words that gVisor acts on.
func (s *Stack) hear(packet []byte) {
	if packet[offNextHeader] != nextHeaderICMPv6 || packet[offICMPType] != icmpUnreachable {
		return
	}
	flow, ok := quoted(packet[ipv6HeaderLen+icmpHeaderLen:])
	if !ok {
		return
	}
	s.refusals.add(flow, packet[offICMPCode])
	plainUnreachable(packet, flow.protocol)
}

// plainUnreachable turns the "destination unreachable" codes (RFC 4443, section 3.1) that gVisor
// doesn't act on into one that fails a connection attempt at once, instead of leaving it to its time-out: "no route to
// destination" for TCP, "port unreachable" for UDP.
func plainUnreachable(packet []byte, protocol uint8) {
	code := packet[offICMPCode]
	plain := uint8(codeNoRoute)
	if code == codePortUnreach || protocol == nextHeaderUDP {
		plain = codePortUnreach
	}
	if code == plain {
		return
	}
	packet[offICMPCode] = plain
	// RFC 1624, equation 3, for the one 16-bit word that changed.
	before := uint32(icmpUnreachable)<<8 | uint32(code)
	after := uint32(icmpUnreachable)<<8 | uint32(plain)
	sum := uint32(^binary.BigEndian.Uint16(packet[offICMPChecksum:])) + (^before & 0xffff) + after
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(packet[offICMPChecksum:], ^uint16(sum))
}
