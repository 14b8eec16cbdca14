// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

// prefix is the overlay's; the zero Prefix while no network is up.
func (f *Facts) prefix() netip.Prefix {
	if self := f.self(); self != nil {
		return identity.PrefixOf(self.Address)
	}
	return netip.Prefix{}
}

// routes: does the kernel send the overlay's packets to our interface?
func routes(f *Facts) []Finding {
	self, r, err := f.self(), f.Host.Routes.Value, f.Host.Routes.Err
	switch {
	case self == nil:
		return notUp()
	case f.userspace():
		return notNeeded()
	case err != nil:
		return f.unseen(err)
	}
	reason := "look at ip -6 rule and ip -6 route show table all"
	if len(r.Rules) > 0 {
		reason = "policy rules go first (" + strings.Join(r.Rules, ", ") + "), as VPNs add them that take all traffic: " +
			"exclude " + f.prefix().String() + " there, or: ip -6 rule add to " + f.prefix().String() + " lookup main pref 100"
	}
	var out []Finding
	switch {
	case r.Failure != nil:
		out = append(out, problem("ROUTE_MISSING", fmt.Sprintf("the kernel has no route to %s: %v", f.prefix(), r.Failure), "pilot down, then pilot up; if it goes again: "+reason))
	case r.Chosen != self.Interface:
		out = append(out, problem("ROUTE_TAKEN", fmt.Sprintf("packets for %s leave by %s and not by %s", f.prefix(), r.Chosen, self.Interface), reason))
	}
	for _, other := range r.Others {
		if other.Destination.Bits() < identity.PrefixBits && r.Chosen == self.Interface {
			continue // ours is longer
		}
		out = append(out, problem("ROUTE_CONFLICT", fmt.Sprintf("%s has a route to %s, which is in this network's %s", other.Interface, other.Destination, f.prefix()),
			"two programs want the same addresses: take that route away, or give one of the two a network namespace"))
	}
	if len(r.Ways) > 1 && len(r.Strict) > 0 {
		out = append(out, warning("RP_FILTER", fmt.Sprintf("this host has several ways out (%s), and %s drops what comes in by another one than the best",
			strings.Join(r.Ways, ", "), strings.Join(r.Strict, ", ")), "direct paths may fail: sysctl -w net.ipv4.conf.all.rp_filter=2"))
	}
	if len(out) == 0 {
		return well("packets for " + f.prefix().String() + " go to " + self.Interface)
	}
	return out
}

// vpn: is there another overlay beside this one? That is no problem by itself; what it takes away is in routes and resolver.
func vpn(f *Facts) []Finding {
	if f.Host.Links.Err != nil {
		return f.unseen(f.Host.Links.Err)
	}
	own := ""
	if self := f.self(); self != nil {
		own = self.Interface
	}
	var out []Finding
	for _, l := range f.Host.Links.Value {
		if name := vpnName(l, own); name != "" {
			finding := Finding{Result: OK, Message: fmt.Sprintf("%s is up beside it (%s)", name, l.Name)}
			for _, a := range l.Addresses {
				if p := f.prefix(); p.IsValid() && p.Contains(a.Addr()) {
					finding = problem("VPN_ADDRESS", fmt.Sprintf("%s (%s) has %s, an address of this network", l.Name, name, a.Addr()),
						"end that program, or give one of the two a network namespace")
				}
			}
			out = append(out, finding)
		}
	}
	if len(out) == 0 {
		return well("no other VPN is up")
	}
	return out
}

// firewall: is there a rule that drops what pilot sends and receives? Rules with more conditions than are understood are
// nothing to go by.
func firewall(f *Facts) []Finding {
	if f.Host.Firewall.Err != nil {
		return f.unseen(f.Host.Firewall.Err)
	}
	self := f.self()
	if self == nil {
		return notUp()
	}
	var out []Finding
	for _, c := range f.Host.Firewall.Value {
		where := fmt.Sprintf("the firewall's chain %s %s %s", c.Family, c.Table, c.Name)
		if c.Family != "ip" && !f.userspace() {
			if i := slices.IndexFunc(c.Refusals, func(r inspect.Refusal) bool { return takesOverlay(r.Match, self.Interface, f.prefix()) }); i >= 0 {
				out = append(out, problem("FIREWALL_OVERLAY", where+" drops packets of the network", "take that rule out, or accept before it: "+acceptRule(c, self.Interface)))
			} else if c.Drops && c.Hook == "input" && !accepts(c, self.Interface, f.prefix()) {
				out = append(out, warning("FIREWALL_CLOSED", where+" drops what no rule accepts: agents reach only what it accepts",
					"to let in what consents allow: "+acceptRule(c, self.Interface)))
			}
		}
		if slices.ContainsFunc(c.Refusals, func(r inspect.Refusal) bool { return r.UDPPort == self.Port && !r.Other && r.Interface == "" }) {
			out = append(out, problem("FIREWALL_UDP", fmt.Sprintf("%s drops UDP port %d", where, self.Port), "take that rule out: without it direct paths are rare"))
		}
	}
	if len(out) == 0 {
		return well("no rule of this host's firewall is seen to drop the network's packets")
	}
	return out
}

// fence: does this host keep out what comes past the tunnel? The daemon sees to that, and says if it can't.
func fence(f *Facts) []Finding {
	switch {
	case f.self() == nil:
		return notUp()
	case f.userspace():
		return notNeeded()
	case f.Host.OS != "linux":
		return well("left to the system, which takes packets for a tunnel by the tunnel only, unless it was told otherwise")
	}
	for _, p := range f.Status.Problems {
		if p.Code == localapi.CodeUnfenced {
			return []Finding{warning("UNFENCED", p.Message, p.Hint)}
		}
	}
	return well("nothing for this agent gets in past the tunnel")
}

func acceptRule(c inspect.Chain, own string) string {
	key := "iifname"
	if c.Hook == "output" {
		key = "oifname"
	}
	return fmt.Sprintf("nft insert rule %s %s %s %s %s accept", c.Family, c.Table, c.Name, key, own)
}

// takesOverlay says whether a match takes all packets of the overlay.
func takesOverlay(m inspect.Match, own string, prefix netip.Prefix) bool {
	if m.Other || m.UDPPort != 0 || m.Interface == "" && !m.Prefix.IsValid() {
		return false
	}
	return (m.Interface == "" || sameInterface(m.Interface, own)) && (!m.Prefix.IsValid() || m.Prefix.Bits() <= prefix.Bits() && m.Prefix.Overlaps(prefix))
}

// accepts says whether a chain takes packets of the overlay in without further conditions.
func accepts(c inspect.Chain, own string, prefix netip.Prefix) bool {
	return slices.ContainsFunc(c.Accepts, func(m inspect.Match) bool {
		return !m.Other && m.UDPPort == 0 && (m.Interface == "" && !m.Prefix.IsValid() || takesOverlay(m, own, prefix))
	})
}

// sameInterface compares with a name in a rule, which may end in a star.
func sameInterface(pattern, name string) bool {
	if begin, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, begin)
	}
	return pattern == name
}

// coordinator: is it reached?
func coordinator(f *Facts) []Finding {
	if f.Status == nil || f.Status.Coordinator == nil {
		return notUp()
	}
	switch c := f.Status.Coordinator; {
	case c.Connected:
		return well("connected")
	case c.Code == localapi.CodeKeyMismatch:
		return []Finding{problem("COORDINATOR_KEY", "whoever answers at "+strings.Join(c.Addresses, ", ")+" is not this network's coordinator: "+c.Error,
			"is this host's clock right? Does a login page or a filter that opens TLS stand in between? Was the coordinator moved?")}
	default:
		return []Finding{problem("COORDINATOR_UNREACHABLE", strings.Join(c.Addresses, ", ")+" does not answer: "+c.Error,
			"is it up, is TCP to it allowed, is a proxy needed (HTTPS_PROXY)? Known peers go on meanwhile")}
	}
}

const (
	certificateLow  = 6 * time.Hour // it is renewed at 8 h before its end
	certificateLate = time.Hour
)

// certificate: how long is this agent a member?
func certificate(f *Facts) []Finding {
	self := f.self()
	if self == nil {
		return notUp()
	}
	left := self.CertificateExpires.Sub(f.Now)
	const hint = "only the coordinator renews it: see coordinator and clock; an agent that was revoked needs a new invite"
	switch {
	case left <= 0:
		return []Finding{problem("CERTIFICATE_EXPIRED", "this agent's certificate has expired: no new session comes about", hint)}
	case left < certificateLate:
		return []Finding{problem("CERTIFICATE_EXPIRES", fmt.Sprintf("this agent's certificate ends in %s", left.Round(time.Minute)), hint)}
	case left < certificateLow:
		return []Finding{warning("CERTIFICATE_LATE", fmt.Sprintf("this agent's certificate should have been renewed; it ends in %s", left.Round(time.Minute)), hint)}
	}
	return well(fmt.Sprintf("it is valid for %s", left.Round(time.Minute)))
}

// relays: does one forward for this node?
func relays(f *Facts) []Finding {
	self := f.self()
	switch {
	case self == nil:
		return notUp()
	case len(self.Relays) == 0:
		return []Finding{warning("NO_RELAYS", "this network has no relay", "agents behind NATs may not reach each other: run one, see pilot help relay")}
	}
	avoided := 0
	for _, r := range self.Relays {
		if r.Connected {
			return well(r.Name + " forwards for this node")
		}
		if r.Avoided {
			avoided++
		}
	}
	if avoided == len(self.Relays) {
		return []Finding{problem("NO_RELAY", "every relay is under a jurisdiction that this node avoids", "avoid fewer: pilot up --avoid-jurisdiction LABEL")}
	}
	return []Finding{problem("NO_RELAY", "no relay is reached", "is this host online, is TCP to them allowed, is a proxy needed (HTTPS_PROXY)?")}
}

// underlay: what does the network let through that this host is in?
func underlay(f *Facts) []Finding {
	n := f.Netcheck
	if n == nil {
		if f.NetcheckErr != nil {
			return unknown(f.NetcheckErr.Message, f.NetcheckErr.Hint)
		}
		return notUp()
	}
	switch n.Code {
	case "captive":
		return []Finding{problem("CAPTIVE", "somebody else answers in the relays' place", "log in at the page that this network shows in a browser; or a filter opens TLS: have it leave the relays alone")}
	case "offline":
		return []Finding{problem("OFFLINE", "no relay answers, neither over UDP nor over TCP", "is this host online? does it need a proxy (HTTPS_PROXY)?")}
	case "udp-blocked":
		if n.Proxy != "" {
			return []Finding{warning("PROXY_ONLY", "only the proxy "+n.Proxy+" leads out: everything goes over relays", "it works, and slower; ask for UDP out for direct paths")}
		}
		return []Finding{warning("UDP_BLOCKED", "UDP does not get out: everything goes over relays by TCP", "it works, and slower; allow UDP out, and port 7745 in if that can be")}
	case "hard-nat":
		return []Finding{warning("HARD_NAT", n.Verdict, "forward a UDP port to this host, or switch PCP or UPnP on in the gateway")}
	case "no-relays", "unclear":
		return unknown(n.Verdict, "")
	}
	return well(n.Verdict)
}

// leastPacket is what IPv6 demands of a link.
const leastPacket = 1280

// mtu: do full packets get through?
func mtu(f *Facts) []Finding {
	if f.self() == nil {
		return notUp()
	}
	var narrow []string
	for _, p := range f.Status.Peers {
		if p.State == localapi.PeerConnected && p.MTU > 0 && p.MTU < leastPacket {
			narrow = append(narrow, fmt.Sprintf("%s (%d bytes, %s)", p.Name, p.MTU, p.Path))
		}
	}
	if len(narrow) == 0 {
		return well("no path is known to be too narrow")
	}
	return []Finding{warning("MTU_NARROW", "long packets travel in parts to "+strings.Join(narrow, ", "),
		"something in between drops datagrams that are longer: a tunnel, PPPoE, or a firewall that drops ICMP; give that link or tunnel its right MTU")}
}

// other passes on what the daemon says of itself that no check above has looked at.
func other(f *Facts) (out []Finding) {
	if f.Status == nil {
		return nil
	}
	for _, p := range f.Status.Problems {
		if !slices.Contains([]string{localapi.CodeUnavailable, localapi.CodeRevoked, localapi.CodeNoRelay, localapi.CodeUnfenced}, p.Code) {
			out = append(out, problem(p.Code, p.Message, p.Hint))
		}
	}
	return out
}
