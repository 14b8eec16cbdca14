// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"encoding/binary"
	"net/netip"
)

// What of STUN is spoken here (RFC 8489): the answer to a binding request, with the address that the request came from; and of
// its extension for finding out how translators and filters behave (RFC 5780): a second port.
const (
	stunHeader        = 20
	stunMagic         = 0x2112a442
	stunRequest       = 0x0001
	stunSuccess       = 0x0101
	stunXORMapped     = 0x0020
	stunOther         = 0x802c
	stunChange        = 0x0003
	stunChangePort    = 0x02
	stunFamily4       = 1
	stunFamily6       = 2
	stunAttributeHead = 4
)

// isSTUN reports whether a datagram is a STUN message: its first two bits are zero, and it has the magic cookie.
func isSTUN(d []byte) bool {
	return len(d) >= stunHeader && d[0]&0xc0 == 0 && binary.BigEndian.Uint32(d[4:]) == stunMagic
}

// answerSTUN appends the answer to a binding request to b: 32 bytes for IPv4, 44 for IPv6, and where there is a second port
// 12 or 24 more that tell it (other; RFC 5780, section 7.4). There is none for other messages, and none that would be longer
// than the request. Who asks pads the request (RFC 8489, section 14; an attribute that a server may ignore, with a type from
// 0x8000 on).
func answerSTUN(b, request []byte, from, other netip.AddrPort) []byte {
	if !isSTUN(request) || binary.BigEndian.Uint16(request) != stunRequest ||
		int(binary.BigEndian.Uint16(request[2:]))+stunHeader != len(request) || len(request)%4 != 0 {
		return nil
	}
	size := addressSTUN(from)
	if stunHeader+size > len(request) {
		return nil
	}
	told := other.IsValid() && stunHeader+size+addressSTUN(other) <= len(request)
	if told {
		size += addressSTUN(other)
	}
	b = binary.BigEndian.AppendUint16(b, stunSuccess)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, request[4:stunHeader]...) // magic and transaction
	b = appendSTUN(b, stunXORMapped, from, request[4:stunHeader])
	if told {
		b = appendSTUN(b, stunOther, other, make([]byte, 16))
	}
	return b
}

// addressSTUN is the length of an attribute with an address.
func addressSTUN(a netip.AddrPort) int {
	if a.Addr().Unmap().Is6() {
		return stunAttributeHead + 4 + 16
	}
	return stunAttributeHead + 4 + 4
}

// appendSTUN appends an attribute with an address, XORed with a mask of 16 bytes.
func appendSTUN(b []byte, attribute uint16, a netip.AddrPort, mask []byte) []byte {
	addr := a.Addr().Unmap()
	family, size := byte(stunFamily4), 4
	if addr.Is6() {
		family, size = stunFamily6, 16
	}
	b = binary.BigEndian.AppendUint16(b, attribute)
	b = binary.BigEndian.AppendUint16(b, uint16(4+size))
	b = append(b, 0, family)
	b = binary.BigEndian.AppendUint16(b, a.Port()^binary.BigEndian.Uint16(mask))
	ip := addr.As16()
	for i, x := range ip[16-size:] {
		b = append(b, x^mask[i])
	}
	return b
}

// changesPort reports whether a binding request wants the answer from the other port (RFC 5780, section 7.2).
func changesPort(request []byte) bool {
	for d := request[stunHeader:]; len(d) >= stunAttributeHead; {
		n := int(binary.BigEndian.Uint16(d[2:]))
		if binary.BigEndian.Uint16(d) == stunChange && n == 4 && len(d) >= stunAttributeHead+4 {
			return d[stunAttributeHead+3]&stunChangePort != 0
		}
		d = d[min(len(d), stunAttributeHead+(n+3)&^3):]
	}
	return false
}
