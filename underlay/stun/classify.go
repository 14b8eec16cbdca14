// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"net/netip"
	"slices"
)

// Observation is where one server sees this host.
type Observation struct {
	Server netip.AddrPort
	Mapped netip.AddrPort
}

// Mapping concludes from observations of one socket and one address family how translators map it. own are the socket's
// addresses at the host's interfaces. It needs servers at two addresses, or at two ports of one, and can't tell more than
// they do: a translator that is seen from two ports of one address alone counts as independent of the address too.
func Mapping(own []netip.AddrPort, seen []Observation) Behaviour {
	if len(seen) == 0 {
		return Unknown
	}
	compared, differs, differsByPort := false, false, false
	for i, a := range seen {
		for _, b := range seen[:i] {
			if a.Server == b.Server {
				continue
			}
			compared = true
			if a.Mapped != b.Mapped {
				differs = true
				differsByPort = differsByPort || a.Server.Addr() == b.Server.Addr()
			}
		}
	}
	switch {
	case differsByPort:
		return AddressAndPortDependent
	case differs && twoPorts(seen):
		return AddressDependent
	case differs:
		return AddressAndPortDependent // nothing shows that the port plays no part, and that is what most do
	case slices.Contains(own, seen[0].Mapped):
		return None
	case compared:
		return EndpointIndependent
	}
	return Unknown
}

// twoPorts reports whether some server was asked at two ports.
func twoPorts(seen []Observation) bool {
	for i, a := range seen {
		for _, b := range seen[:i] {
			if a.Server.Addr() == b.Server.Addr() && a.Server.Port() != b.Server.Port() {
				return true
			}
		}
	}
	return false
}

// Filtering concludes from whether an answer came from a port that was never asked, of an address that was. Only a host that
// is not translated is known to have no filter then: others may still look at the address.
func Filtering(tried, came bool, mapping Behaviour) Behaviour {
	switch {
	case !tried:
		return Unknown
	case !came:
		return AddressAndPortDependent
	case mapping == None:
		return None
	}
	return AddressDependent
}
