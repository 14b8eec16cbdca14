// SPDX-License-Identifier: Apache-2.0

package pilot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// Agent is who somebody is. All of it is proved by signatures of the network's authority and of the agent itself.
type Agent struct {
	Name    string     // in the network: "planner"
	FQDN    string     // with the network's zone: "planner.pilot.internal"
	Key     string     // "agent:…"; it outlives everything else
	Address netip.Addr // derived from the key
	Tags    []string   // what the authority says that it is
}

func agentOf(a *localapi.Agent) Agent {
	return Agent{Name: a.Name, FQDN: a.FQDN, Key: a.Key.String(), Address: a.Address, Tags: a.Tags}
}

// WhoIs says who is at the other end of a connection of this node's.
func (n *Node) WhoIs(conn net.Conn) (Agent, error) {
	return n.WhoIsAddr(conn.RemoteAddr().String())
}

// WhoIsAddr says who an address of the network is, with a port or without: as in http.Request.RemoteAddr, or of a datagram.
func (n *Node) WhoIsAddr(address string) (Agent, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return Agent{}, fmt.Errorf("pilot: %w", err)
	}
	a, err := n.node.Caller(addr)
	if err != nil {
		return Agent{}, err
	}
	return agentOf(&a), nil
}

// Status is how a node stands with its network.
type Status struct {
	Network     string   // its name
	Zone        string   // the domain of its names
	Self        Agent    // this agent
	Coordinator bool     // the coordinator is connected; without one known peers go on
	Peers       []Peer   // agents with whom there is, was or may be trust
	Problems    []string // what keeps the node from working fully
}

// Peer is another agent as a node sees it.
type Peer struct {
	Agent
	State         string        // "connected", "idle", "trying", "offline", "pending" or "refused"
	Problem       string        // why it can't be reached
	Path          string        // in use: "direct 192.0.2.7:7745", "relay eu-1"
	RTT           time.Duration // of that path
	LastHandshake time.Time
}

// Status tells how the node is.
func (n *Node) Status(ctx context.Context) (Status, error) {
	in, err := n.node.Status(ctx)
	if err != nil {
		return Status{}, err
	}
	out := Status{Network: in.Network, Zone: in.Zone, Self: n.self, Coordinator: in.Coordinator != nil && in.Coordinator.Connected}
	if in.Self != nil {
		out.Self.Tags = in.Self.Tags
	}
	for i := range in.Peers {
		p := &in.Peers[i]
		peer := Peer{
			Agent: Agent{Name: p.Name, FQDN: p.FQDN, Key: p.Key.String(), Address: p.Address}, State: p.State, Path: p.Path,
			RTT: time.Duration(p.RTT * float64(time.Millisecond)), LastHandshake: p.LastHandshake,
		}
		if p.Problem != nil {
			peer.Problem = p.Problem.Message
		}
		out.Peers = append(out.Peers, peer)
	}
	for _, p := range in.Problems {
		out.Problems = append(out.Problems, p.Message)
	}
	return out, nil
}

// Invite makes an invite for one more agent, valid for a day, which then trusts this one and is trusted by it. Only agents
// with the tag admin may, as the first of a network is. It is a secret.
func (n *Node) Invite(ctx context.Context) (string, error) {
	r, err := n.node.Invite(ctx, localapi.InviteRequest{})
	return r.Invite, err
}

// Trust consents to another agent, named by name, address or key, and asks for its consent unless that is there already.
// The reason is shown to it. The two reach each other when both have consented.
func (n *Node) Trust(ctx context.Context, agent, reason string) error {
	_, err := n.node.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRequest, Target: agent, Reason: reason})
	return err
}

// Revoke takes the consent to another agent back. Its connections end.
func (n *Node) Revoke(ctx context.Context, agent string) error {
	_, err := n.node.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRevoke, Target: agent})
	return err
}

// ErrorCode is the stable code of an error of this package's, such as "NOT_TRUSTED" or "INVITE_USED"; empty where it has
// none. The codes are those of the command line: pilot help.
func ErrorCode(err error) string {
	if e := (*localapi.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// ErrorHint is what a person can do about an error; empty where nothing is known.
func ErrorHint(err error) string {
	if e := (*localapi.Error)(nil); errors.As(err, &e) {
		return e.Hint
	}
	return ""
}
