// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"encoding/binary"
	"net/netip"
)

// What of STUN is spoken here (RFC 8489): the answer to a binding request, with the address that the request came from.
const (
	stunHeader        = 20
	stunMagic         = 0x2112a442
	stunRequest       = 0x0001
	stunSuccess       = 0x0101
	stunXORMapped     = 0x0020
	stunFamily4       = 1
	stunFamily6       = 2
	stunAttributeHead = 4
)

// isSTUN reports whether a datagram is a STUN message: its first two bits are zero, and it has the magic cookie.
func isSTUN(d []byte) bool {
	return len(d) >= stunHeader && d[0]&0xc0 == 0 && binary.BigEndian.Uint32(d[4:]) == stunMagic
}

// answerSTUN appends the answer to a binding request to b: 32 bytes for IPv4, 44 for IPv6. There is none for other
// messages, and none that would be longer than the request. Who asks pads the request (RFC 8489, section 14; an
// attribute that a server may ignore, with a type from 0x8000 on).
func answerSTUN(b, request []byte, from netip.AddrPort) []byte {
	if !isSTUN(request) || binary.BigEndian.Uint16(request) != stunRequest ||
		int(binary.BigEndian.Uint16(request[2:]))+stunHeader != len(request) || len(request)%4 != 0 {
		return nil
	}
	start := len(b)
	addr := from.Addr().Unmap()
	family, size := byte(stunFamily4), 4
	if addr.Is6() {
		family, size = stunFamily6, 16
	}
	value := 4 + size
	if stunHeader+stunAttributeHead+value > len(request) {
		return nil
	}
	b = binary.BigEndian.AppendUint16(b, stunSuccess)
	b = binary.BigEndian.AppendUint16(b, uint16(stunAttributeHead+value))
	b = append(b, request[4:stunHeader]...) // magic and transaction
	mask := b[start+4:]
	b = binary.BigEndian.AppendUint16(b, stunXORMapped)
	b = binary.BigEndian.AppendUint16(b, uint16(value))
	b = append(b, 0, family)
	b = binary.BigEndian.AppendUint16(b, from.Port()^stunMagic>>16)
	ip := addr.As16()
	for i, x := range ip[16-size:] {
		b = append(b, x^mask[i])
	}
	return b
}
