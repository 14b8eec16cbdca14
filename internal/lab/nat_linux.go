// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Behaviour tells how much of a datagram's far end matters to a NAT: RFC 4787, section 4.1 for the choice of the
// outside port, section 5 for what is let in.
type Behaviour int

const (
	EndpointIndependent     Behaviour = iota // nothing of it
	AddressDependent                         // its address
	AddressAndPortDependent                  // its address and its port
)

func (b Behaviour) String() string {
	switch b {
	case EndpointIndependent:
		return "endpoint-independent"
	case AddressDependent:
		return "address-dependent"
	case AddressAndPortDependent:
		return "address-and-port-dependent"
	}
	return fmt.Sprintf("behaviour %d", int(b))
}

// Outbound is what a gateway lets its site send.
type Outbound int

const (
	AllTraffic Outbound = iota
	NoUDP               // all but UDP
	HTTPSOnly           // TCP to port 443 and nothing else
)

// Rules are what a [Gateway] does to packets besides forwarding them. The zero value forwards IPv4 and IPv6 as they
// are and lets in only answers.
//
// Three kinds of NAT are what the Linux kernel does by itself: EndpointIndependent mapping with
// AddressAndPortDependent filtering is plain masquerading, as most home routers have it, which keeps the port where
// it can; AddressAndPortDependent mapping and filtering is masquerading with the flag fully-random, as with strict
// corporate firewalls. The others are masked by a hash: the outside port is the hash of the inside address and port,
// and of as much of the far end as the mapping looks at, with a seed that changes whenever the gateway forgets. Since
// a rule can compute that hash before the kernel translates anything, it can note in an nftables map what inside
// address and port an outside port stands for; datagrams from strangers are led in by that map, and the forward chain
// drops those that the filtering does not allow, for which another set has what each inside address has sent to.
type Rules struct {
	NAT       bool // of IPv4
	Mapping   Behaviour
	Filtering Behaviour
	// Hairpin lets inside hosts reach each other by their outside addresses. It can't be had with
	// AddressAndPortDependent filtering.
	Hairpin bool
	// Timeout is how long a UDP mapping lasts without traffic, in whole seconds; 0 stands for 30 s.
	Timeout  time.Duration
	Outbound Outbound
}

// seconds is the life of a UDP mapping.
func (r Rules) seconds() int { return int(cmp.Or(r.Timeout, 30*time.Second) / time.Second) }

// mapped tells whether strangers are led in, which takes rules that know the outside ports.
func (r Rules) mapped() bool { return r.NAT && r.Filtering != AddressAndPortDependent }

// port is the nftables expression for a datagram's outside port.
func (r Rules) port(seed uint32) string {
	parts := "ip saddr . udp sport"
	switch r.Mapping {
	case AddressDependent:
		parts += " . ip daddr"
	case AddressAndPortDependent:
		parts += " . ip daddr . udp dport"
	}
	return fmt.Sprintf("jhash %s mod 40000 seed 0x%x offset 20000", parts, seed)
}

// ruleset is the nftables program of a gateway whose outside address is public. It replaces an earlier one, and
// forgets what that one knew.
func (r Rules) ruleset(inside, outside string, public netip.Addr, seed uint32) (string, error) {
	if r.Hairpin && !r.mapped() {
		return "", fmt.Errorf("no hairpin with %v filtering", r.Filtering)
	}
	var b strings.Builder
	line := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		text = strings.NewReplacer("INSIDE", `"`+inside+`"`, "OUTSIDE", `"`+outside+`"`, "PUBLIC", public.String(),
			"HASH", r.port(seed)).Replace(text)
		b.WriteString(text + "\n")
	}
	line("table inet gateway {}\ndelete table inet gateway\ntable inet gateway {")
	if r.mapped() {
		life := fmt.Sprintf("size 65535; flags dynamic,timeout; timeout %ds;", r.seconds())
		line("map mapped { type inet_service : ipv4_addr . inet_service; %s }", life)
		line("set met { type ipv4_addr . inet_service . ipv4_addr; %s }", life)
	}
	r.input(line)
	r.forward(line)
	if r.NAT {
		r.translate(line)
	}
	line("}")
	return b.String(), nil
}

func (r Rules) input(line func(string, ...any)) {
	line("chain input { type filter hook input priority filter; policy accept;")
	// Whoever comes too early must leave no trace: a connection that the kernel remembers as one to the gateway
	// itself would take the port away from the inside host that is about to answer.
	line("iifname OUTSIDE meta l4proto udp ct state new drop")
	if r.NAT {
		line("iifname INSIDE ip daddr PUBLIC meta l4proto udp ct state new drop")
	}
	line("}")
}

func (r Rules) forward(line func(string, ...any)) {
	line("chain forward { type filter hook forward priority filter; policy drop;")
	switch r.Outbound {
	case NoUDP:
		line("meta l4proto udp drop")
	case HTTPSOnly:
		line("meta l4proto != tcp drop")
		line("iifname INSIDE tcp dport != 443 drop")
	}
	line("ct state established,related accept")
	if r.Hairpin {
		if r.Filtering == AddressDependent {
			line("iifname INSIDE oifname INSIDE ct status dnat ip daddr . udp dport . ct original ip daddr @met accept")
		} else {
			line("iifname INSIDE oifname INSIDE ct status dnat accept")
		}
	}
	line("iifname INSIDE oifname INSIDE drop")
	line("iifname INSIDE accept")
	if r.mapped() {
		if r.Filtering == AddressDependent {
			line("ct status dnat ip daddr . udp dport . ip saddr @met accept")
		} else {
			line("ct status dnat accept")
		}
	}
	line("}")
}

func (r Rules) translate(line func(string, ...any)) {
	if r.mapped() {
		// Just before the translation. Each datagram renews what is known.
		line("chain learn { type filter hook postrouting priority srcnat - 1; policy accept;")
		line("iifname INSIDE oifname OUTSIDE meta nfproto ipv4 meta l4proto udp update @mapped { HASH : ip saddr . udp sport }")
		line("iifname INSIDE oifname OUTSIDE meta nfproto ipv4 meta l4proto udp update @met { ip saddr . udp sport . ip daddr }")
		if r.Hairpin {
			line("iifname INSIDE oifname INSIDE ct status dnat meta l4proto udp update @mapped { HASH : ip saddr . udp sport }")
		}
		line("}")
		if r.Hairpin {
			line("chain meet { type filter hook prerouting priority dstnat - 1; policy accept;")
			line("iifname INSIDE ip daddr PUBLIC meta l4proto udp update @met { ip saddr . udp sport . ip daddr }")
			line("}")
		}
		line("chain lead { type nat hook prerouting priority dstnat; policy accept;")
		line("iifname OUTSIDE ip daddr PUBLIC meta l4proto udp dnat ip to udp dport map @mapped")
		if r.Hairpin {
			line("iifname INSIDE ip daddr PUBLIC meta l4proto udp dnat ip to udp dport map @mapped")
		}
		line("}")
	}
	line("chain translate { type nat hook postrouting priority srcnat; policy accept;")
	const leaving = "iifname INSIDE oifname OUTSIDE meta nfproto ipv4 "
	switch {
	case r.mapped(), r.Mapping == AddressDependent:
		line(leaving + "meta l4proto udp snat ip to PUBLIC : HASH")
		if r.Hairpin {
			line("iifname INSIDE oifname INSIDE ct status dnat meta l4proto udp snat ip to PUBLIC : HASH")
		}
	case r.Mapping == AddressAndPortDependent:
		line(leaving + "meta l4proto udp masquerade fully-random")
	}
	line(leaving + "masquerade")
	line("}")
}
