// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/underlay"
)

// Status tells everything that pilot status shows.
func (n *Node) Status(context.Context) (localapi.Status, error) {
	s := localapi.Status{State: localapi.StateDown, Version: n.opts.Version, PID: os.Getpid(), Peers: []localapi.PeerStatus{}}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.saved.Up && n.saved.member() {
		s.State = localapi.StateStarting
	}
	m := n.member
	if n.opts.Egress != nil {
		e := n.opts.Egress.Status()
		s.Egress = &e
	}
	if m == nil {
		return s, nil
	}
	s.State, s.Network, s.Zone, s.Authority = localapi.StateUp, n.saved.Network, m.zone, m.book.network.String()
	c := m.book.certificate
	device, mode, why := m.seat.describe()
	s.Self = &localapi.Self{
		Name: c.Name, FQDN: c.Name + "." + m.zone, Address: identity.Address(m.book.network, m.book.self), Key: m.book.self, Tags: c.Tags,
		CertificateExpires: c.NotAfter, Interface: device, Port: m.engine.underlay.Port(), DNS: m.engine.dnsMode(),
		TUN: mode, TUNWhy: why,
	}
	s.Self.SOCKS5, s.Self.HTTPProxy = m.proxies.addrs()
	s.Self.ProxyDirect = m.proxies != nil && n.saved.Proxies.Direct
	n.statusPlace(s.Self, m)
	s.Coordinator = &localapi.CoordinatorState{
		Addresses: n.saved.Coordinators, Hosted: n.saved.Hosted, Connected: m.link.connected, Since: m.link.since, NextTry: m.link.nextTry,
	}
	if m.link.err != nil {
		explained := explain(m.link.err)
		s.Coordinator.Error = explained.Error()
		if e := (*localapi.Error)(nil); errors.As(explained, &e) {
			s.Coordinator.Code = e.Code
		}
	}
	if offset, known := m.client.Load().ClockOffset(); known {
		seconds := offset.Seconds()
		s.Coordinator.ClockOffset = &seconds
	}
	n.statusPeers(&s, m)
	s.Served = m.served.Status()
	n.statusProblems(&s, m)
	return s, nil
}

func (n *Node) statusProblems(s *localapi.Status, m *membership) {
	if !m.link.connected {
		s.Problems = append(s.Problems, localapi.Problem{Code: localapi.CodeUnavailable, Message: "the coordinator is not reachable",
			Hint: "known peers work meanwhile; changes and newcomers wait"})
	}
	if err := m.book.certificate.ValidAt(n.now()); err != nil {
		s.Problems = append(s.Problems, localapi.Problem{Code: localapi.CodeRevoked, Message: "this agent's certificate: " + err.Error(),
			Hint: "is the clock right? The coordinator renews it"})
	}
	for _, name := range slices.Sorted(maps.Keys(m.book.mismatches)) {
		e := n.mismatch(m, name)
		s.Problems = append(s.Problems, localapi.Problem{Code: e.Code, Message: e.Message, Hint: e.Hint})
	}
	if p := m.book.relayProblem(s.Self.Relays); p != nil {
		s.Problems = append(s.Problems, *p)
	}
	s.Problems = append(s.Problems, m.engine.warnings()...)
}

// statusPlace tells where this node is in the networks below.
func (n *Node) statusPlace(self *localapi.Self, m *membership) {
	here := m.engine.underlay.Status()
	for _, e := range here.Endpoints {
		self.Endpoints = append(self.Endpoints, localapi.Endpoint{Addr: e.Addr, Kind: string(e.Kind)})
	}
	if here.NAT != (underlay.NAT{}) {
		self.NAT = &localapi.NAT{Mapping: here.NAT.Mapping.String(), Filtering: here.NAT.Filtering.String()}
	}
	self.AvoidJurisdictions = n.saved.AvoidJurisdictions
	used := map[uint32]underlay.RelayStatus{}
	for _, r := range here.Relays {
		used[r.ID] = r
	}
	for _, r := range m.book.relays {
		u := used[r.ID()]
		s := localapi.RelayStatus{
			Name: r.Name, Region: r.Region, Jurisdiction: r.Jurisdiction, Home: u.Home, Connected: u.Connected, Transport: u.Transport,
			RTT: milliseconds(u.RTT), Since: u.Since, Avoided: avoids(n.saved.AvoidJurisdictions, r.Jurisdiction), Error: u.Err,
		}
		if s.Home {
			self.Relays = slices.Insert(self.Relays, 0, s)
		} else {
			self.Relays = append(self.Relays, s)
		}
	}
}

// relayProblem says why no relay forwards for this node; nil if one does, where the network has none, and while there is one
// that was not tried in vain yet.
func (b *book) relayProblem(relays []localapi.RelayStatus) *localapi.Problem {
	p := &localapi.Problem{Code: localapi.CodeNoRelay, Message: "every relay is under a jurisdiction that this node avoids",
		Hint: "peers that can't be reached directly are out of reach; to avoid others: pilot up --avoid-jurisdiction LABEL"}
	trying := false
	for _, r := range relays {
		if r.Connected {
			return nil
		}
		if !r.Avoided {
			trying = trying || r.Error == ""
			p.Message, p.Hint = "no relay is reachable", "peers that can't be reached directly are out of reach; is this host online, TCP out allowed?"
		}
	}
	if len(relays) == 0 || trying {
		return nil
	}
	return p
}

// describePath is how people see a path: the whole, its kind, and the relay's name. They are empty where there is no path.
func (b *book) describePath(p underlay.Path) (path, kind, relay string) {
	switch {
	case p.Relay != 0:
		if relay = b.relayName(p.Relay); relay == "" {
			relay = fmt.Sprintf("%08x", p.Relay) // the list has changed meanwhile
		}
		return localapi.PathRelay + " " + relay, localapi.PathRelay, relay
	case p.Remote.IsValid():
		return localapi.PathDirect + " " + p.Remote.String(), localapi.PathDirect, ""
	}
	return "", "", ""
}

func (b *book) describePaths(paths []overlay.PathStatus) (list []localapi.PathStatus) {
	for _, p := range paths {
		s := localapi.PathStatus{State: p.State, InUse: p.InUse, RTT: milliseconds(p.RTT), Proved: p.Proved}
		s.Path, s.Kind, s.Relay = b.describePath(p.Path)
		list = append(list, s)
	}
	return list
}

// statusPeers puts together what the book and the data path know of each peer.
func (n *Node) statusPeers(s *localapi.Status, m *membership) {
	carried := m.engine.overlay.Status()
	s.Drops = carried.Drops
	m.engine.addFenced(s.Drops)
	links := map[identity.AgentPublic]overlay.PeerStatus{}
	for _, l := range carried.Peers {
		if l.Local == m.book.self {
			links[l.Agent] = l
		}
	}
	now := n.now()
	for _, agent := range m.book.sortedPeers() {
		known, trust := m.book.peers[agent], m.book.trust(agent, now)
		if trust == localapi.TrustNone {
			continue
		}
		if trust == localapi.TrustPending {
			s.Pending++
		}
		l := links[agent]
		p := localapi.PeerStatus{
			Name: known.certificate.Name, FQDN: known.certificate.Name + "." + m.zone, Address: identity.Address(m.book.network, agent), Key: agent,
			Why: l.Why, Paths: m.book.describePaths(l.Paths), RTT: milliseconds(l.RTT), MTU: l.MTU, RxBytes: l.RxBytes, TxBytes: l.TxBytes, LastHandshake: l.LastHandshake,
		}
		p.Path, p.PathKind, p.Relay = m.book.describePath(l.Path)
		p.State, p.Problem = m.peerState(agent, known, trust, l, now)
		s.Peers = append(s.Peers, p)
	}
}

// peerState says how a peer can be reached, or why it can't.
func (m *membership) peerState(agent identity.AgentPublic, p *peer, trust string, l overlay.PeerStatus, now time.Time) (string, *localapi.Problem) {
	if m.book.isRevoked(p.certificate) {
		return localapi.PeerRefused, &localapi.Problem{Code: localapi.CodeRevoked, Message: "the authority revoked it"}
	}
	if e := m.book.requireTrust(agent, p.certificate.Name, now); e != nil {
		state := localapi.PeerPending
		if trust == localapi.TrustRejected || trust == localapi.TrustRevoked {
			state = localapi.PeerRefused
		}
		return state, &localapi.Problem{Code: e.Code, Message: e.Message, Hint: e.Hint}
	}
	switch {
	case l.State == overlay.StateUp:
		return localapi.PeerConnected, nil
	case l.State == overlay.StateHandshaking:
		return localapi.PeerTrying, nil
	case m.link.connected && !p.online:
		return localapi.PeerOffline, &localapi.Problem{Code: localapi.CodeOffline, Message: "its node is not connected to the coordinator",
			Hint: "is it up? last seen " + lastSeen(p.lastSeen)}
	case l.Failure != "":
		return localapi.PeerOffline, &localapi.Problem{Code: localapi.CodeOffline, Message: "the last handshake failed: " + string(l.Failure)}
	}
	return localapi.PeerIdle, nil
}

func lastSeen(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}
