// SPDX-License-Identifier: Apache-2.0

// Package policy decides whether a flow between a local agent and a peer may exist.
//
// The whole rule is this: two agents talk when both consented and neither consent has expired; the side that opens a
// flow may open what the other side's consent lists. Everything else is denied, and the verdict says why. The package
// is pure: it does no I/O, has no clock and keeps nothing between calls.
package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// IP protocol numbers that the rules know (IANA "Assigned Internet Protocol Numbers").
const (
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// Grant is one active consent, as far as it matters here: what its receiver may open towards its giver.
type Grant struct {
	Ports  []identity.PortRange // destination ports at the giver; empty: every port of every protocol
	Expiry time.Time            // from then on it counts no more; zero: never
}

// Rule holds the two consents between a local agent and one peer. A nil grant is a consent that was not given.
type Rule struct {
	Peer     identity.AgentPublic
	Addr     netip.Addr // the peer's address in the overlay
	Inbound  *Grant     // our consent: what the peer may open towards us
	Outbound *Grant     // the peer's consent: what we may open towards the peer
}

// Flow is a question: may the opener send to this destination?
type Flow struct {
	Outbound  bool       // we open it; otherwise the peer does
	Peer      netip.Addr // the other agent, whoever opens
	Proto     uint8      // IP protocol number of the packet's upper layer
	Port      uint16     // destination port; 0 where the protocol has none
	PortKnown bool       // false: a fragment, or an upper layer that could not be read
}

// Verdict is the answer to a Flow. The zero value denies.
type Verdict uint8

// The verdicts. Their String forms are stable codes: they appear in status, metrics and on the wire.
const (
	DenyUnknown        Verdict = iota // no rule names this peer
	Allow                             //
	DenyNoConsentLocal                // we have not consented to the peer
	DenyNoConsentPeer                 // the peer has not consented to us
	DenyPort                          // the consent of the side that is asked does not list the port
	DenyExpired                       // one of the two consents has expired
)

var verdictCodes = [...]string{
	DenyUnknown:        "unknown-peer",
	Allow:              "allow",
	DenyNoConsentLocal: "no-consent-local",
	DenyNoConsentPeer:  "no-consent-peer",
	DenyPort:           "port-denied",
	DenyExpired:        "consent-expired",
}

// String returns the verdict's stable code.
func (v Verdict) String() string {
	if int(v) < len(verdictCodes) {
		return verdictCodes[v]
	}
	return fmt.Sprintf("verdict-%d", uint8(v))
}

// Compiled is an immutable set of rules for one local agent, safe for concurrent use. A nil *Compiled denies everything.
type Compiled struct {
	rules map[netip.Addr]Rule
}

// Compile takes a deep copy of the rules. Of two rules with the same address the later one counts; a rule whose address
// is not a plain IPv6 address never matches and is left out.
func Compile(rules []Rule) *Compiled {
	c := &Compiled{rules: make(map[netip.Addr]Rule, len(rules))}
	for _, r := range rules {
		if !r.Addr.Is6() || r.Addr.Is4In6() || r.Addr.Zone() != "" {
			continue
		}
		r.Inbound, r.Outbound = r.Inbound.clone(), r.Outbound.clone()
		c.rules[r.Addr] = r
	}
	return c
}

// Knows reports whether there is a rule for a peer, be it one that denies.
func (c *Compiled) Knows(peer netip.Addr) bool {
	if c == nil {
		return false
	}
	_, ok := c.rules[peer]
	return ok
}

// Decide answers for one flow at the time now. It does not allocate.
func (c *Compiled) Decide(f Flow, now time.Time) Verdict {
	r, v := c.trust(f.Peer, now)
	if v != Allow {
		return v
	}
	asked := r.Inbound // the consent of the side that is asked
	if f.Outbound {
		asked = r.Outbound
	}
	if !asked.covers(f) {
		return DenyPort
	}
	return Allow
}

// Trusted reports whether both consents are active, so that a session may exist.
func (c *Compiled) Trusted(peer netip.Addr, now time.Time) bool {
	_, v := c.trust(peer, now)
	return v == Allow
}

// Trust is Trusted with the reason: Allow, or why there is no trust.
func (c *Compiled) Trust(peer netip.Addr, now time.Time) Verdict {
	_, v := c.trust(peer, now)
	return v
}

func (c *Compiled) trust(peer netip.Addr, now time.Time) (Rule, Verdict) {
	if c == nil {
		return Rule{}, DenyUnknown
	}
	r, ok := c.rules[peer]
	switch {
	case !ok:
		return Rule{}, DenyUnknown
	case r.Inbound == nil:
		return Rule{}, DenyNoConsentLocal
	case r.Outbound == nil:
		return Rule{}, DenyNoConsentPeer
	case !r.Inbound.activeAt(now), !r.Outbound.activeAt(now):
		return Rule{}, DenyExpired
	}
	return r, Allow
}

func (g *Grant) clone() *Grant {
	if g == nil {
		return nil
	}
	return &Grant{Ports: slices.Clone(g.Ports), Expiry: g.Expiry}
}

func (g *Grant) activeAt(now time.Time) bool { return g.Expiry.IsZero() || now.Before(g.Expiry) }

// covers reports whether the grant lists the flow's destination. A grant without a list covers everything. One with a
// list covers what can be matched against it and nothing else, so a fragment or an unreadable upper layer is never
// covered. Echo requests have no port; who may open a port may also ask whether the agent is there.
func (g *Grant) covers(f Flow) bool {
	if len(g.Ports) == 0 {
		return true
	}
	if !f.PortKnown {
		return false
	}
	switch f.Proto {
	case protoICMPv6:
		return true
	case protoTCP, protoUDP:
	default:
		return false
	}
	for _, p := range g.Ports {
		if (p.Proto == 0 || p.Proto == f.Proto) && p.First <= f.Port && f.Port <= p.Last {
			return true
		}
	}
	return false
}
