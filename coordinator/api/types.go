// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// Limits and times of the protocol. A coordinator enforces the limits; a client may rely on the times.
const (
	// Version of the protocol, the v1 in each path.
	Version = 1
	// DefaultPort is the coordinator's TCP port.
	DefaultPort = 7745
	// MaxRequest is the largest request body in bytes.
	MaxRequest = 64 << 10
	// MaxUses is the most uses that one join key can have.
	MaxUses = 4096
	// MaxInviteLife is the longest life of a join key.
	MaxInviteLife = 366 * 24 * time.Hour
	// PingInterval is how often a coordinator sends a ping event on each stream. It is rare, for hosts that are idle, and still
	// below the minute after which some NATs forget a connection.
	PingInterval = 45 * time.Second
	// SilenceLimit is how long a stream may be silent before the client gives it up.
	SilenceLimit = 120 * time.Second
	// TagAdmin in a certificate allows its agent to invite and to revoke.
	TagAdmin = "admin"
	// TagRelay in a certificate allows its agent to be a relay.
	TagRelay = "relay"
)

// NetworkInfo says which network a coordinator serves. It is the only answer that needs no client certificate.
type NetworkInfo struct {
	Name      string                   `json:"name"`
	Authority identity.AuthorityPublic `json:"authority"`
	Zone      string                   `json:"zone"` // DNS zone of the agents' names, without a final dot
	Version   int                      `json:"version"`
}

// JoinRequest asks for membership. The agent is the one of the TLS handshake.
type JoinRequest struct {
	Acceptance []byte `json:"acceptance"`       // identity.Acceptance for this agent, signed by the join key
	Name       string `json:"name,omitempty"`   // the wished name; empty only for an agent that has one already
	Tunnel     []byte `json:"tunnel,omitempty"` // identity.TunnelStatement, may follow later by PutRecord
	Record     []byte `json:"record,omitempty"` // identity.Record, may follow later by PutRecord
	// Consent is the joiner's towards the inviter, signed; empty where the joiner gives none.
	Consent []byte `json:"consent,omitempty"`
	// Relay says that the joiner is a relay and nothing else. The answer tells it of no other agent, and so of no name.
	Relay bool `json:"relay,omitempty"`
}

// Membership is what an admitted agent gets. The answers to a renewal and to a relay have neither Inviter nor Consents.
type Membership struct {
	Certificate []byte `json:"certificate"` // identity.Certificate
	RelayPass   []byte `json:"relay_pass"`  // identity.RelayPass that lasts as long as the certificate
	Network     string `json:"network"`     // the network's name
	// Inviter is the agent that made the join key, nil if the coordinator's operator did.
	Inviter      *Peer          `json:"inviter,omitempty"`
	Consents     []ConsentEntry `json:"consents,omitempty"`     // those between the agent and its inviter
	Coordinators []string       `json:"coordinators,omitempty"` // host:port of the coordinators that are up, the answering one first
}

// RecordRequest publishes where an agent can be reached and under which tunnel key. An empty field leaves what is stored.
type RecordRequest struct {
	Tunnel []byte `json:"tunnel,omitempty"` // identity.TunnelStatement
	Record []byte `json:"record,omitempty"` // identity.Record, replaced only by one with a higher serial
}

// Peer is another agent as far as the caller may see it: the certificate always, the rest only while a consent of
// that agent to the caller is active.
type Peer struct {
	Certificate []byte       `json:"certificate"`        // identity.Certificate
	Tunnel      []byte       `json:"tunnel,omitempty"`   // identity.TunnelStatement
	Record      []byte       `json:"record,omitempty"`   // identity.Record
	Observed    []netip.Addr `json:"observed,omitempty"` // addresses from which coordinators saw the agent, newest first; unsigned hints
	Online      bool         `json:"online,omitempty"`   // it has a stream to some coordinator
	LastSeen    time.Time    `json:"last_seen,omitzero"` // when its latest stream began or ended
}

// Agents is the answer of GET /v1/agents.
type Agents struct {
	Agents []Peer `json:"agents"`
}

// ConsentEntry is a consent that concerns the caller, given or received.
type ConsentEntry struct {
	Consent    []byte `json:"consent"`              // identity.Consent
	Acceptance []byte `json:"acceptance,omitempty"` // identity.Acceptance, where the consent was given to a join key
	Other      []byte `json:"other,omitempty"`      // identity.Certificate of the party that isn't the caller
}

// ConsentRequest stores a consent or a withdrawal of the caller. One towards a join key replaces that invite's consent,
// for all agents that have joined by it and those still to come.
type ConsentRequest struct {
	Consent []byte `json:"consent"`
}

// RelayRequest says that the caller is a relay, and where. It is asked every PingInterval: a relay that is silent for three
// of them is no longer listed.
type RelayRequest struct {
	Name      string   `json:"name"`               // a label that no other relay has
	Region    string   `json:"region,omitempty"`   // see identity.ValidateRegion
	Addresses []string `json:"addresses"`          // host:port of its TLS port, 1 to 8
	UDPPort   uint16   `json:"udp_port,omitempty"` // 0: none
}

// RelayListing is the answer to it.
type RelayListing struct {
	Statement []byte `json:"statement"` // identity.RelayStatement
}

// Relays is the answer of GET /v1/relays.
type Relays struct {
	Relays [][]byte `json:"relays"` // identity.RelayStatement of each
}

// SignalRequest calls another agent, which consents to the caller and to which the caller consents.
type SignalRequest struct {
	Signal []byte `json:"signal"` // identity.Signal
}

// InviteRequest makes a join key known. Its secret half never reaches the coordinator.
type InviteRequest struct {
	Join         identity.JoinPublic `json:"join"`
	Uses         int                 `json:"uses"`    // 1 to MaxUses
	Expires      time.Time           `json:"expires"` // at most MaxInviteLife from now
	Tags         []string            `json:"tags,omitempty"`
	Jurisdiction string              `json:"jurisdiction,omitempty"`
	Consent      []byte              `json:"consent,omitempty"` // identity.Consent of the inviter to Join
}

// Invite is a join key as GET /v1/invites lists it.
type Invite struct {
	Join         identity.JoinPublic  `json:"join"`
	Inviter      identity.AgentPublic `json:"inviter,omitzero"` // zero: the coordinator's operator
	Uses         int                  `json:"uses"`
	Used         int                  `json:"used"`
	Created      time.Time            `json:"created"`
	Expires      time.Time            `json:"expires"`
	Tags         []string             `json:"tags,omitempty"`
	Jurisdiction string               `json:"jurisdiction,omitempty"`
	Consent      bool                 `json:"consent"` // it carries the inviter's consent
	Revoked      bool                 `json:"revoked"`
}

// Invites is the answer of GET /v1/invites.
type Invites struct {
	Invites []Invite `json:"invites"`
}

// RevokeRequest ends an agent's membership for good. Exactly one of Agent and Name is set.
type RevokeRequest struct {
	Agent  identity.AgentPublic `json:"agent,omitzero"`
	Name   string               `json:"name,omitempty"`
	Reason string               `json:"reason,omitempty"`
}

// The types of events.
const (
	EventPeer       = "peer"        // Peer is set: it is new or has changed
	EventConsent    = "consent"     // Consent is set: it is new, or has replaced an earlier one
	EventRevocation = "revocation"  // Revocation is set
	EventSynced     = "synced"      // the snapshot is complete; Observed is set
	EventPing       = "ping"        // the stream is alive
	EventInviteUsed = "invite-used" // Peer has joined by an invite of the caller
	EventRelays     = "relays"      // Relays is set: the whole list, when it has changed and in the snapshot
	EventSignal     = "signal"      // Signal is set: another agent calls the caller, and wants an answer now
)

// Event is one line of a stream.
type Event struct {
	Type       string        `json:"type"`
	Peer       *Peer         `json:"peer,omitempty"`
	Consent    *ConsentEntry `json:"consent,omitempty"`
	Revocation []byte        `json:"revocation,omitempty"` // identity.Revocation
	Relays     [][]byte      `json:"relays,omitempty"`     // identity.RelayStatement of each; empty: there are none
	Signal     []byte        `json:"signal,omitempty"`     // identity.Signal
	Observed   netip.Addr    `json:"observed,omitzero"`    // the caller's address as the coordinator sees it
}
