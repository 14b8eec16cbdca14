// SPDX-License-Identifier: Apache-2.0

// Package target tells what an address that somebody wants to be connected to is: out in the world, or a part of this host
// or of the place where it stands that must not be reached through a proxy. It is pure, and knows addresses only: names are
// to be resolved before, once, and what is dialled is the address that was looked at.
package target

import (
	"fmt"
	"net/netip"
)

// Class is what an address is. The order is from harmless to harmful, but for the zero value, which is nothing at all.
type Class uint8

// The classes.
const (
	Invalid     Class = iota // not an address
	Public                   // unicast, in the world
	Private                  // of somebody's own network: RFC 1918, RFC 4193, RFC 6598, RFC 8215, fec0::/10
	Reserved                 // documentation, benchmarks, future use: nothing that one could want to talk to
	Multicast                // RFC 1112, RFC 4291, and the broadcast address
	Unspecified              // 0.0.0.0/8, ::
	LinkLocal                // RFC 3927, RFC 4291
	Loopback                 // 127.0.0.0/8, ::1
	Metadata                 // a cloud's service that gives out credentials to whoever asks from this host
)

// String returns one word.
func (c Class) String() string {
	switch c {
	case Invalid:
		return "invalid"
	case Public:
		return "public"
	case Private:
		return "private"
	case Reserved:
		return "reserved"
	case Multicast:
		return "multicast"
	case Unspecified:
		return "unspecified"
	case LinkLocal:
		return "link-local"
	case Loopback:
		return "loopback"
	case Metadata:
		return "metadata"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Never reports whether no rule can allow such an address. A private one needs a rule that names it; for a public one the
// rules decide.
func (c Class) Never() bool { return c != Public && c != Private }

type entry struct {
	prefix netip.Prefix
	class  Class
}

// special4 and special6 hold what is not Public, the narrower prefix first. Sources: IANA's special-purpose address
// registries (RFC 6890), and of Metadata the clouds' own documentation.
var (
	special4 = []entry{
		{netip.MustParsePrefix("169.254.169.254/32"), Metadata}, // AWS, Azure, Google, DigitalOcean, Oracle, OpenStack…
		{netip.MustParsePrefix("169.254.169.0/24"), Metadata},   // AWS: time, names
		{netip.MustParsePrefix("169.254.170.0/24"), Metadata},   // AWS: credentials of containers
		{netip.MustParsePrefix("169.254.42.42/32"), Metadata},   // Scaleway
		{netip.MustParsePrefix("169.254.0.23/32"), Metadata},    // Tencent
		{netip.MustParsePrefix("100.100.100.200/32"), Metadata}, // Alibaba
		{netip.MustParsePrefix("168.63.129.16/32"), Metadata},   // Azure's host agent
		{netip.MustParsePrefix("192.0.0.192/32"), Metadata},     // Oracle

		{netip.MustParsePrefix("0.0.0.0/8"), Unspecified},
		{netip.MustParsePrefix("10.0.0.0/8"), Private},
		{netip.MustParsePrefix("100.64.0.0/10"), Private},
		{netip.MustParsePrefix("127.0.0.0/8"), Loopback},
		{netip.MustParsePrefix("169.254.0.0/16"), LinkLocal},
		{netip.MustParsePrefix("172.16.0.0/12"), Private},
		{netip.MustParsePrefix("192.0.0.0/24"), Reserved},
		{netip.MustParsePrefix("192.0.2.0/24"), Reserved},
		{netip.MustParsePrefix("192.88.99.0/24"), Reserved}, // relays of 6to4, gone
		{netip.MustParsePrefix("192.168.0.0/16"), Private},
		{netip.MustParsePrefix("198.18.0.0/15"), Reserved},
		{netip.MustParsePrefix("198.51.100.0/24"), Reserved},
		{netip.MustParsePrefix("203.0.113.0/24"), Reserved},
		{netip.MustParsePrefix("224.0.0.0/4"), Multicast},
		{netip.MustParsePrefix("255.255.255.255/32"), Multicast},
		{netip.MustParsePrefix("240.0.0.0/4"), Reserved},
	}
	special6 = []entry{
		{netip.MustParsePrefix("fd00:ec2::/32"), Metadata},          // AWS
		{netip.MustParsePrefix("fd20:ce::/32"), Metadata},           // Google
		{netip.MustParsePrefix("fd00:42::42/128"), Metadata},        // Scaleway
		{netip.MustParsePrefix("fe80::a9fe:a9fe/128"), Metadata},    // OpenStack
		{netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), Metadata}, // Oracle

		{netip.MustParsePrefix("::/128"), Unspecified},
		{netip.MustParsePrefix("::1/128"), Loopback},
		{netip.MustParsePrefix("fe80::/10"), LinkLocal},
		{netip.MustParsePrefix("fec0::/10"), Private},
		{netip.MustParsePrefix("fc00::/7"), Private},
		{prefixLocalNAT64, Private},
		{netip.MustParsePrefix("ff00::/8"), Multicast},
	}
	// global6 is all of IPv6 that is in use in the world (RFC 4291, section 2.4; RFC 6052), and reserved6 what it has
	// that isn't.
	global6 = []netip.Prefix{netip.MustParsePrefix("2000::/3"), prefixNAT64}

	reserved6 = []netip.Prefix{
		netip.MustParsePrefix("2001:2::/48"),   // benchmarks
		netip.MustParsePrefix("2001:10::/28"),  // ORCHID
		netip.MustParsePrefix("2001:20::/28"),  // ORCHIDv2
		netip.MustParsePrefix("2001:db8::/32"), // documentation
		netip.MustParsePrefix("3fff::/20"),     // documentation
	}
)

// Prefixes of addresses that stand for an IPv4 address.
var (
	prefixCompatible = netip.MustParsePrefix("::/96")           // RFC 4291, section 2.5.5.1
	prefixTranslated = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765, section 2.1
	prefixNAT64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052, section 2.1
	prefixLocalNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215
	prefix6to4       = netip.MustParsePrefix("2002::/16")       // RFC 3056, section 2
	prefixTeredo     = netip.MustParsePrefix("2001::/32")       // RFC 4380, section 4
)

// ClassOf returns the worst of what an address is and of what the IPv4 addresses within it are. A zone is not looked at.
//
// A translator with a prefix of the network's own (RFC 6052, section 2.2) can't be told from any public address.
func ClassOf(a netip.Addr) Class {
	a = a.WithZone("")
	switch {
	case !a.IsValid():
		return Invalid
	case a.Is4():
		return lookUp(special4, a)
	}
	worst := Public
	if !a.Is4In6() {
		worst = class6(a)
	}
	inner, n := embedded(a)
	for _, v4 := range inner[:n] {
		worst = max(worst, lookUp(special4, v4))
	}
	return worst
}

// Real returns the address that is reached in the end, for rules to be matched against: the IPv4 address where one is
// mapped, translated or tunnelled, in other cases the address itself, without its zone.
func Real(a netip.Addr) netip.Addr {
	a = a.WithZone("")
	if inner, n := embedded(a); n > 0 && !isatap(a) {
		return inner[0]
	}
	return a
}

func class6(a netip.Addr) Class {
	if c := lookUp(special6, a); c != Public {
		return c
	}
	for _, p := range reserved6 {
		if p.Contains(a) {
			return Reserved
		}
	}
	for _, p := range global6 {
		if p.Contains(a) {
			return Public
		}
	}
	return Reserved
}

func lookUp(table []entry, a netip.Addr) Class {
	for _, e := range table {
		if e.prefix.Contains(a) {
			return e.class
		}
	}
	return Public
}

// forms is in how many places an IPv4 address may be hidden at once.
const forms = 4

// embedded returns the IPv4 addresses within an IPv6 address, the one that is reached first.
func embedded(a netip.Addr) (inner [forms]netip.Addr, n int) {
	if !a.Is6() {
		return inner, 0
	}
	b := a.As16()
	add := func(v4 ...byte) {
		inner[n] = netip.AddrFrom4([4]byte(v4))
		n++
	}
	switch {
	case a == netip.IPv6Unspecified(), a == netip.IPv6Loopback():
	case a.Is4In6(), prefixCompatible.Contains(a), prefixTranslated.Contains(a), prefixNAT64.Contains(a), isatap(a):
		add(b[12:]...)
	case prefixLocalNAT64.Contains(a):
		// A translator's prefix may have 96, 64, 56 or 48 bits here, and byte 8 is left out of what follows (RFC 6052,
		// section 2.2). What begins with a zero byte was not written that way.
		for _, v4 := range [forms][]byte{b[12:], b[9:13], {b[7], b[9], b[10], b[11]}, {b[6], b[7], b[9], b[10]}} {
			if n == 0 || v4[0] != 0 {
				add(v4...)
			}
		}
	case prefix6to4.Contains(a):
		add(b[2:6]...)
	case prefixTeredo.Contains(a):
		add(^b[12], ^b[13], ^b[14], ^b[15]) // the client
		add(b[4:8]...)                      // its server
	}
	return inner, n
}

// isatap tells whether the address is one that a tunnel's end has in any prefix (RFC 5214, section 6.1).
func isatap(a netip.Addr) bool {
	b := a.As16()
	return a.Is6() && b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}
