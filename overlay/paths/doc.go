// SPDX-License-Identifier: Apache-2.0

// Package paths decides along which of its paths a session's datagrams travel. It is pure: no I/O, no clock, no goroutine;
// time is an argument, and what is to be done comes back as a value.
package paths

// State is what is known of a path.
type State uint8

// The states. Their String forms are stable codes.
const (
	Unknown State = iota // nothing was sent along it yet
	Probing              // a ping is under way, or was in vain and comes again
	Proved               // a pong came: it works both ways
	Suspect              // it was proved, and a pong is late
	Dead                 // it was proved, and then nothing came
)

// String returns the state's stable code.
func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Probing:
		return "probing"
	case Proved:
		return "proved"
	case Suspect:
		return "suspect"
	default:
		return "dead"
	}
}

// NAT is what a node knows of the address translation and firewall in front of it.
type NAT uint8

// The kinds.
const (
	NATUnknown NAT = iota
	NATNone        // others see the address that the host has
	NATEasy        // others see one address, wherever the host sends: endpoint-independent mapping (RFC 4787, section 4.1)
	NATHard        // others see another port or address for each destination
	NATBlocked     // UDP does not pass
)

// String returns the kind's stable code.
func (n NAT) String() string {
	switch n {
	case NATNone:
		return "none"
	case NATEasy:
		return "easy"
	case NATHard:
		return "hard"
	case NATBlocked:
		return "udp-blocked"
	default:
		return "unknown"
	}
}
