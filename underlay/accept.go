// SPDX-License-Identifier: Apache-2.0

package underlay

// Accept takes a datagram that is no record and no handshake. One that a relay forwarded is unwrapped: inner is the
// datagram inside, which lies within d, and path the way that it came. Answers to the underlay's own questions are
// consumed: ok is false, and inner is nil. What nobody knows is returned as inner, with ok false.
func (u *Underlay) Accept(d []byte, from Path) (inner []byte, path Path, ok bool) {
	return d, from, false
}
