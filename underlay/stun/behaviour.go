// SPDX-License-Identifier: Apache-2.0

// Package stun asks servers how they see this host (RFC 8489), and concludes from what several of them answer how the
// translators in between behave, in the words of RFC 4787 and after the ideas of RFC 5780.
package stun

// Behaviour is how a network address translator maps, or filters, depending on whom the host talks with (RFC 4787,
// sections 4.1 and 5).
type Behaviour uint8

const (
	// Unknown: nothing was found out.
	Unknown Behaviour = iota
	// None: there is no translator, or no filter.
	None
	// EndpointIndependent: one for all destinations that were tried. Where all of them are ports of one address, as in a
	// network with one relay, it may be dependent on the address nevertheless.
	EndpointIndependent
	// AddressDependent: another for each address.
	AddressDependent
	// AddressAndPortDependent: another for each address and port.
	AddressAndPortDependent
)

var names = [...]string{"unknown", "none", "endpoint-independent", "address-dependent", "address-and-port-dependent"}

// String returns the behaviour in RFC 4787's words.
func (b Behaviour) String() string {
	if int(b) < len(names) {
		return names[b]
	}
	return names[Unknown]
}

// MarshalText returns String.
func (b Behaviour) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText is MarshalText's inverse; words that it does not know mean Unknown.
func (b *Behaviour) UnmarshalText(text []byte) error {
	*b = Unknown
	for i, n := range names {
		if n == string(text) {
			*b = Behaviour(i)
		}
	}
	return nil
}

// Hard reports whether the mapping makes the address that a server sees useless to others.
func (b Behaviour) Hard() bool { return b == AddressDependent || b == AddressAndPortDependent }
