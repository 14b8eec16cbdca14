// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/magicdns"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/underlay"
)

// maxCandidates bounds the addresses that are tried for a peer: a record with many of them can't make this node send
// handshakes all over the internet.
const maxCandidates = 12

// plan is what the book means for the parts below: a value, made by a pure function and applied as a whole.
type plan struct {
	underlay underlay.State
	overlay  overlay.State
	self     []magicdns.Host
	hosts    []magicdns.Host
}

// planInput is what the plan depends on besides the book.
type planInput struct {
	tunnels   []tunnelKey
	connected bool // the coordinator is: what it says of presence is fresh
	now       time.Time
	key       identity.AgentKey
	hosts     []netip.Addr // of this host's interfaces
	here      underlay.Status
	avoid     []string // jurisdictions
}

// plan turns the book into the state of the parts below.
func (b *book) plan(in planInput) plan {
	prefix := identity.NetworkPrefix(b.network)
	local := noise.Local{Agent: b.self, Certificate: b.certificate.Raw()}
	for _, t := range in.tunnels {
		local.Keys = append(local.Keys, noise.TunnelIdentity{Key: t.key, Statement: t.statement.Raw()})
	}
	usable := b.usableRelays(in.avoid, in.now)
	relays := newRelayPlan(usable, in.here)
	p := plan{
		underlay: underlay.State{
			Network: b.network, Key: in.key, Pass: b.pass.Raw(), Prefix: prefix, Hosts: in.hosts,
			Relays: usable,
		},
		overlay: overlay.State{
			Prefix: prefix, Locals: []noise.Local{local}, Revoked: map[identity.AgentPublic]uint64{},
			Self: selfAddrs(in.here), SelfRelays: selfRelays(in.here), NAT: natKind(in.here, in.now),
		},
		self: []magicdns.Host{{Name: b.certificate.Name, Addr: identity.Address(b.network, b.self)}},
	}
	for agent, r := range b.revoked {
		p.overlay.Revoked[agent] = r.Serial
	}
	var rules []policy.Rule
	for _, agent := range b.sortedPeers() {
		known := b.peers[agent]
		if b.isRevoked(known.certificate) {
			continue
		}
		rule := b.rule(agent)
		rules = append(rules, rule)
		if b.trust(agent, in.now) != localapi.TrustMutual {
			continue
		}
		p.overlay.Peers = append(p.overlay.Peers, overlay.Peer{
			Agent: agent, Addr: rule.Addr, Tunnel: known.tunnel,
			Candidates: candidates(prefix, known), Relays: relays.of(known.record.Relays),
			Offline: in.connected && !known.online, Carrier: carrier(b.network, known.record),
		})
		if _, disputed := b.mismatches[known.certificate.Name]; !disputed {
			p.hosts = append(p.hosts, magicdns.Host{Name: known.certificate.Name, Addr: rule.Addr})
		}
	}
	p.overlay.Policy = map[identity.AgentPublic]*policy.Compiled{b.self: policy.Compile(rules)}
	return p
}

// carrier is the address at which relays know a peer's node, where it isn't the peer's own.
func carrier(network identity.AuthorityPublic, r identity.Record) (addr netip.Addr) {
	if r.Carrier.IsZero() {
		return addr
	}
	return identity.Address(network, r.Carrier)
}

// rule turns the two consents into what the policy decides by.
func (b *book) rule(agent identity.AgentPublic) policy.Rule {
	return policy.Rule{
		Peer: agent, Addr: identity.Address(b.network, agent),
		Inbound: granted(b.ours(agent)), Outbound: granted(b.theirs(agent)),
	}
}

func granted(c *identity.Consent) *policy.Grant {
	if c == nil || c.Withdrawn {
		return nil
	}
	return &policy.Grant{Ports: c.Ports, Expiry: c.Expiry}
}

// candidates lists where a peer may be reached: what it signed itself first, then what the coordinator saw.
func candidates(overlayPrefix netip.Prefix, p *peer) []netip.AddrPort {
	list := slices.Clone(p.record.Endpoints)
	if len(list) > 0 {
		port := list[0].Port()
		for _, o := range p.observed {
			list = append(list, netip.AddrPortFrom(o, port))
		}
	}
	return usableAddrs(overlayPrefix, list)
}

// usableAddrs leaves out of what a peer or the coordinator says what can't be a host, what is said twice, and what is too
// much.
func usableAddrs(overlayPrefix netip.Prefix, said []netip.AddrPort) (list []netip.AddrPort) {
	for _, a := range said {
		addr := a.Addr().Unmap()
		if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || overlayPrefix.Contains(addr) || a.Port() == 0 {
			continue
		}
		if a = netip.AddrPortFrom(addr, a.Port()); len(list) < maxCandidates && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// nextExpiry is when the first consent or relay that holds now will end; zero if none will. The plan changes then.
func (b *book) nextExpiry(now time.Time) (next time.Time) {
	ends := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	for _, g := range b.consents {
		if e := g.consent.Expiry; g.consent.ActiveAt(now) && !e.IsZero() {
			ends(e)
		}
	}
	for _, r := range b.relays {
		if now.Before(r.NotAfter) {
			ends(r.NotAfter)
		}
	}
	return next
}
