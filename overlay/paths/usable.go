// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"net/netip"
	"slices"
)

// Usable reports whether datagrams may be sent to an address that a peer or a coordinator named as one of the peer's:
// nothing on this host, on its link, or of its cloud's machinery, in no disguise, and nothing inside the overlay, since the
// tunnel would run through itself.
func Usable(a netip.AddrPort, overlay netip.Prefix) bool {
	return a.Port() != 0 && usable(a.Addr(), overlay)
}

func usable(a netip.Addr, overlay netip.Prefix) bool {
	a = a.Unmap()
	switch {
	case !a.IsValid(), a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), overlay.Contains(a), a.Zone() != "":
		return false
	case slices.Contains(metadata(), a):
		return false
	case a.Is4():
		// "This network" (RFC 1122, section 3.2.1.3), and all that is reserved, broadcast included (RFC 1112, section 4).
		b := a.As4()
		return b[0] != 0 && b[0] < 240
	}
	if inner, ok := embedded(a); ok {
		return usable(inner, overlay)
	}
	return true
}

// metadata lists the addresses at which clouds tell a machine's secrets to whoever asks from the machine. Those of AWS, Google
// and most others are link-local; these are not: AWS over IPv6, Google over IPv6, Alibaba, Oracle, Azure.
func metadata() []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x0e, 3: 0xc2, 14: 2, 15: 0x54}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x20, 3: 0xce, 14: 2, 15: 0x54}),
		netip.AddrFrom4([4]byte{100, 100, 100, 200}),
		netip.AddrFrom4([4]byte{192, 0, 0, 192}),
		netip.AddrFrom4([4]byte{168, 63, 129, 16}),
	}
}

// embedded finds the IPv4 address in an IPv6 one that a translator or a tunnel would take out: IPv4-compatible (RFC 4291,
// section 2.5.5.1), NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056).
func embedded(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case [12]byte(b[:12]) == [12]byte{}, [12]byte(b[:12]) == [12]byte{1: 0x64, 2: 0xff, 3: 0x9b},
		[6]byte(b[:6]) == [6]byte{1: 0x64, 2: 0xff, 3: 0x9b, 5: 1}:
		return netip.AddrFrom4([4]byte(b[12:])), true
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:])), true
	}
	return netip.Addr{}, false
}

// Public reports whether an address is an IPv4 one of the internet, as translators have.
func Public(a netip.Addr) bool {
	if a = a.Unmap(); !a.Is4() {
		return false
	}
	b := a.As4()
	return a.IsGlobalUnicast() && !a.IsPrivate() && !(b[0] == 100 && b[1]&0xc0 == 64) // RFC 6598
}
