// SPDX-License-Identifier: Apache-2.0

package node

import (
	"iter"
	"maps"
	"os"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/underlay"
)

func pid() int { return os.Getpid() }

func mapKeys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }

// describePath is how people see a path.
func describePath(p underlay.Path) string {
	if !p.Remote.IsValid() {
		return ""
	}
	return "direct " + p.Remote.String()
}

// statusPeers puts together what the book and the data path know of each peer.
func (n *Node) statusPeers(s *localapi.Status, m *membership) {
	carried := m.engine.overlay.Status()
	s.Drops = carried.Drops
	links := map[identity.AgentPublic]overlay.PeerStatus{}
	for _, l := range carried.Peers {
		links[l.Agent] = l
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
			Name: known.certificate.Name, FQDN: known.certificate.Name + "." + m.zone, Address: addressOf(m.book, agent), Key: agent,
			Path: describePath(l.Path), RTT: milliseconds(l.RTT), RxBytes: l.RxBytes, TxBytes: l.TxBytes, LastHandshake: l.LastHandshake,
		}
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
