// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"github.com/pilot-protocol/pilot/underlay/relay"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

// Accept takes a datagram that is no record and no handshake. One that a relay forwarded is unwrapped: inner is the
// datagram inside, which lies within d, and path the way that it came. Answers to the underlay's own questions are
// consumed: ok is false, and inner is nil. What nobody knows is returned as inner, with ok false. It does not allocate for
// what relays forward.
func (u *Underlay) Accept(d []byte, from Path) (inner []byte, path Path, ok bool) {
	switch {
	case len(d) == 0 || from.Relay != 0: // a relay has nothing to say through a relay
	case d[0] == relay.TypeData || d[0] == relay.TypeControl:
		return u.relays.accept(d, from.Remote)
	case stun.Is(d):
		u.stun.Accept(d, unmapped(from.Remote))
		return nil, from, false
	}
	return d, from, false
}
