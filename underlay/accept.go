// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"errors"
	"net/netip"
)

// Accept takes a datagram that is no record and no handshake. One that a relay forwarded is unwrapped: inner is the
// datagram inside, which lies within d, and path the way that it came. Answers to the underlay's own questions are
// consumed: ok is false, and inner is nil. What nobody knows is returned as inner, with ok false.
func (u *Underlay) Accept(d []byte, from Path) (inner []byte, path Path, ok bool) {
	return d, from, false
}

// ErrFan is returned where no more sockets can be opened for hole punching.
var ErrFan = errors.New("underlay: no more sockets")

// Fan opens n more sockets for datagrams to remote, each on a port of its own, and returns the paths from them. What they
// receive comes out of Receive.
func (u *Underlay) Fan(netip.AddrPort, int) ([]Path, error) { return nil, ErrFan }

// Unfan closes the sockets of Fan that none of the paths needs.
func (u *Underlay) Unfan([]Path) {}
