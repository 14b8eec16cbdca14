// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"math/bits"
)

// Offsets of the checksum in the headers (RFC 9293, section 3.1; RFC 768).
const (
	tcpChecksum = 16
	udpChecksum = 6
)

// ChecksumOffset is where a TCP or UDP header has its checksum. The packet must have passed Parse as one of them.
func (i *Info) ChecksumOffset() int {
	if i.Proto == UDP {
		return udpChecksum
	}
	return tcpChecksum
}

// Transport reports whether the packet is TCP or UDP with a header that could be read, so that its checksum may be left
// to others.
func (i *Info) Transport() bool { return i.PortKnown && (i.Proto == TCP || i.Proto == UDP) }

// SetPartial puts the sum over the pseudo header (RFC 8200, section 8.1) where the checksum of a Transport packet of
// length bytes belongs, for somebody who completes it: Complete, or a kernel. p may be only the first part of the packet.
func SetPartial(p []byte, info *Info, length int) {
	sum := sumBytes(uint64(length-info.Upper)+uint64(info.Proto), p[8:HeaderSize])
	binary.BigEndian.PutUint16(p[info.Upper+info.ChecksumOffset():], fold(sum))
}

// Complete computes the checksum of a Transport packet, whatever stands there.
func Complete(p []byte, info *Info) {
	SetPartial(p, info, len(p))
	CompleteAt(p, info.Upper, info.ChecksumOffset())
}

// CompleteAt finishes a partial checksum: the sum from byte start to the end, which covers what stands there already, is
// put at start+offset. It does nothing where that lies outside of the packet.
func CompleteAt(p []byte, start, offset int) {
	if start < 0 || offset < 0 || start+offset+2 > len(p) {
		return
	}
	sum := ^fold(sumBytes(0, p[start:]))
	if sum == 0 {
		sum = 0xffff // the same number in one's complement; for UDP, zero would mean none
	}
	binary.BigEndian.PutUint16(p[start+offset:], sum)
}

// sumBytes adds up 16-bit words, eight bytes at a time: the sum in one's complement does not depend on the width.
func sumBytes(sum uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 32 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), 0)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[24:]), carry)
		sum, carry = bits.Add64(sum, 0, carry)
		sum += carry
		b = b[32:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), 0)
		sum += carry
		b = b[8:]
	}
	var last [8]byte
	copy(last[:], b)
	sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(last[:]), 0)
	return sum + carry
}

func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}
