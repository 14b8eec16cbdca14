// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/sha256"
	"net/netip"
)

const (
	networkDomain = "pilot network v1"
	addressDomain = "pilot address v1"

	// PrefixBits is the length of a network's prefix.
	PrefixBits = 48
	// serviceHost is the host part of the node's own DNS and service address.
	serviceHost = 0x53
)

// NetworkPrefix returns the network's /48: the byte 0xfd (RFC 4193, locally assigned), then the first 40 bits of
// SHA-256("pilot network v1" ‖ authority).
func NetworkPrefix(authority AuthorityPublic) netip.Prefix {
	sum := sha256.Sum256(append([]byte(networkDomain), authority[:]...))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], sum[:5])
	return netip.PrefixFrom(netip.AddrFrom16(a), PrefixBits)
}

// Address returns the agent's address in the network: the prefix, then the first 80 bits of
// SHA-256("pilot address v1" ‖ agent). Compare whole addresses only: a shared prefix proves nothing.
func Address(authority AuthorityPublic, agent AgentPublic) netip.Addr {
	a := NetworkPrefix(authority).Addr().As16()
	sum := sha256.Sum256(append([]byte(addressDomain), agent[:]...))
	copy(a[6:], sum[:10])
	return netip.AddrFrom16(a)
}

// PrefixOf returns the prefix of the network that an agent's address is in; the zero Prefix for what is no IPv6 address.
func PrefixOf(addr netip.Addr) netip.Prefix {
	if !addr.Is6() || addr.Is4In6() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(addr.WithZone(""), PrefixBits).Masked()
}

// ServiceAddress returns the network's address …::53, which each node answers itself.
func ServiceAddress(prefix netip.Prefix) netip.Addr {
	a := prefix.Masked().Addr().As16()
	a[15] = serviceHost
	return netip.AddrFrom16(a)
}

// Reserved reports whether the address lies in the prefix and its host part is below 2^16, where no agent lives.
func Reserved(prefix netip.Prefix, addr netip.Addr) bool {
	if !prefix.Contains(addr) {
		return false
	}
	a := addr.As16()
	for _, b := range a[6:14] {
		if b != 0 {
			return false
		}
	}
	return true
}
