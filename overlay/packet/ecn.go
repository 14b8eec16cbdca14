// SPDX-License-Identifier: Apache-2.0

package packet

// ECN codepoints (RFC 3168, section 5).
const (
	notECT = 0
	ect1   = 1
	ect0   = 2
	ce     = 3
)

// Congest carries the ECN bits of the outer header's class to a packet that came out of a tunnel, by the table in RFC 6040,
// section 4.2. It reports false for a packet to be dropped: congestion was marked, and the packet can't say so.
func Congest(p []byte, class uint8) bool {
	outer, inner := class&3, p[1]>>4&3
	switch {
	case outer == ce && inner == notECT:
		return false
	case outer == ce, outer == ect1 && inner == ect0:
		p[1] = p[1]&^0x30 | outer<<4
	}
	return true
}
