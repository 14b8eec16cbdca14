// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
)

// Gateway is a router between a site and the network outside of it, with a firewall and perhaps a NAT, made by
// nftables.
type Gateway struct {
	*Host
	Outside *Link // eth0
	Inside  *Link // eth1
	rules   Rules
	public  netip.Addr // the IPv4 address outside, if there is one
}

// Gateway makes a router that has an address on the bridge outside and one on the bridge inside, in CIDR form, and
// applies rules to what passes.
func (l *Lab) Gateway(name string, outside *Bridge, outsideAddress string, inside *Bridge, insideAddress string, rules Rules) *Gateway {
	l.tb.Helper()
	Programs(l.tb, "nft", "conntrack")
	g := &Gateway{Host: l.Router(name), rules: rules}
	g.Outside = g.Connect(outside, outsideAddress)
	g.Inside = g.Connect(inside, insideAddress)
	g.must("sysctl", "-q", "-w", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0",
		"net.ipv4.conf.eth1.send_redirects=0")
	g.setPublic(outsideAddress)
	g.load()
	return g
}

// Set changes the rules and forgets all mappings.
func (g *Gateway) Set(rules Rules) {
	g.lab.tb.Helper()
	g.rules = rules
	g.load()
}

// Flush forgets all mappings and connections, as a router does that was switched off and on. Where ports come from a
// hash or from chance, the next mappings have other ports.
func (g *Gateway) Flush() {
	g.lab.tb.Helper()
	g.load()
}

// Renumber gives the gateway another address outside, as when a provider's lease ends, and forgets all mappings.
func (g *Gateway) Renumber(address string) {
	g.lab.tb.Helper()
	g.Outside.Move(nil, address, g.Outside.gateway)
	g.setPublic(address)
	g.load()
}

// Deafen drops the UDP datagrams that come from an address outside, from now on: a path that carries in one direction
// only. The zero address ends that.
func (g *Gateway) Deafen(to netip.Addr) {
	g.lab.tb.Helper()
	rules := "table inet deaf {}\ndelete table inet deaf\n"
	if to.IsValid() {
		family := "ip"
		if to.Is6() {
			family = "ip6"
		}
		rules += fmt.Sprintf("table inet deaf { chain prerouting { type filter hook prerouting priority raw; policy accept;\n"+
			"iifname %q %s saddr %v meta l4proto udp drop\n}\n}\n", g.Outside.name, family, to)
	}
	g.nft(rules)
}

// Public is the gateway's IPv4 address outside; the zero value if it has none.
func (g *Gateway) Public() netip.Addr { return g.public }

func (g *Gateway) setPublic(address string) {
	if prefix, err := netip.ParsePrefix(address); err == nil && prefix.Addr().Is4() {
		g.public = prefix.Addr()
	}
}

// load puts the rules into the kernel, with a fresh seed, and drops what it remembers of connections.
func (g *Gateway) load() {
	g.lab.tb.Helper()
	rules, err := g.rules.ruleset(g.Inside.name, g.Outside.name, g.public, rand.Uint32()|1)
	if err != nil {
		g.lab.tb.Fatalf("lab: gateway %s: %v", g.name, err)
	}
	life := fmt.Sprint("=", g.rules.seconds())
	g.must("sysctl", "-q", "-w", "net.netfilter.nf_conntrack_udp_timeout"+life, "net.netfilter.nf_conntrack_udp_timeout_stream"+life)
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	g.nft(rules)
	// It tells on standard error how many it flushed.
	if r := g.Run(ctx, "conntrack", "-F"); !r.OK() || !strings.Contains(r.Stderr, "emptied") {
		g.lab.tb.Fatalf("lab: gateway %s: %v", g.name, r)
	}
}

// nft loads a program of nftables.
func (g *Gateway) nft(rules string) {
	g.lab.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	if r := g.RunInput(ctx, rules, "nft", "-f", "-"); !r.OK() {
		g.lab.tb.Fatalf("lab: gateway %s: %v\n%s", g.name, r, rules)
	}
}
