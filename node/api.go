// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

const (
	defaultInviteLife = 24 * time.Hour
	defaultPing       = 5 * time.Second
	maxPing           = time.Minute
)

// mayControl admits root, the daemon's own user and the group "pilot".
func mayControl(c net.Conn) error {
	caller, err := platform.PeerCaller(c)
	if err == nil && caller.MayControl() {
		return nil
	}
	return &localapi.Error{Code: localapi.CodePermission, Message: "you may not control this daemon",
		Hint: "run as root, or ask to be added to the group pilot"}
}

// lookUp finds the agent that q names, asking the coordinator about one that is not known yet.
func (n *Node) lookUp(ctx context.Context, q string) (agent identity.AgentPublic, err error) {
	if q == "" {
		return agent, errUsage("no agent is named", "give a name, an address or an agent key")
	}
	var m *membership
	found := false
	if err := n.view(func(v *membership) error {
		m = v
		if _, disputed := v.book.mismatches[plainName(q, v.zone)]; disputed {
			return n.mismatch(v, plainName(q, v.zone))
		}
		agent, found = v.book.find(q, v.zone)
		return nil
	}); err != nil || found {
		return agent, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	p, err := m.client.Load().Agent(ctx, plainName(q, m.zone))
	if err != nil {
		return agent, err
	}
	err = n.change(func(m *membership) error {
		if _, err := m.book.addPeer(p); err != nil {
			_ = n.saveLocked() // a mismatch is remembered too
			if _, disputed := m.book.mismatches[plainName(q, m.zone)]; disputed {
				return n.mismatch(m, plainName(q, m.zone))
			}
			return err
		}
		if agent, found = m.book.find(q, m.zone); !found {
			return &localapi.Error{Code: localapi.CodeNotFound, Message: fmt.Sprintf("the coordinator answered about another agent than %q", q)}
		}
		return nil
	})
	return agent, err
}

// mismatch is the loud refusal of a name whose key has changed.
func (n *Node) mismatch(m *membership, name string) *localapi.Error {
	c := m.book.mismatches[name]
	return &localapi.Error{
		Code:    localapi.CodeKeyMismatch,
		Message: fmt.Sprintf("%s is known under the key %s, and now another key is shown: %s", name, m.book.pins[name], c.Agent),
		Hint: fmt.Sprintf("ask the owner of %s out of band whether its key changed; then: pilot trust approve %s --accept-key %s",
			name, name, c.Agent),
	}
}

// Ping sends one echo inside the tunnel.
func (n *Node) Ping(ctx context.Context, r localapi.PingRequest) (localapi.PingResult, error) {
	agent, err := n.lookUp(ctx, r.Target)
	if err != nil {
		return localapi.PingResult{}, explain(err)
	}
	var m *membership
	var result localapi.PingResult
	if err := n.view(func(v *membership) error {
		m = v
		if agent == v.book.self {
			return errUsage("that is this agent itself", "name another one: pilot agents")
		}
		p := v.book.peers[agent]
		if v.book.isRevoked(p.certificate) {
			return fmt.Errorf("%s: %w", p.certificate.Name, errRevoked)
		}
		result.Name, result.Address = p.certificate.Name, identity.Address(v.book.network, agent)
		if missing := v.book.requireTrust(agent, p.certificate.Name, n.now()); missing != nil {
			return missing
		}
		return nil
	}); err != nil {
		return localapi.PingResult{}, explain(err)
	}
	if r.Timeout <= 0 {
		r.Timeout = defaultPing
	}
	ctx, cancel := context.WithTimeout(ctx, min(r.Timeout, maxPing))
	defer cancel()
	echo, err := m.engine.overlay.Ping(ctx, m.book.self, result.Address)
	if ctx.Err() != nil && err != nil {
		return localapi.PingResult{}, &localapi.Error{Code: localapi.CodeTimeout,
			Message: fmt.Sprintf("%s did not answer within %s", result.Name, r.Timeout), Hint: "pilot status says how it was last reached"}
	}
	if err != nil {
		return localapi.PingResult{}, explain(err)
	}
	result.RTT = milliseconds(echo.RTT)
	carried := m.engine.overlay.Status()
	err = n.view(func(m *membership) error {
		result.Path, result.PathKind, result.Relay = m.book.describePath(echo.Path)
		for _, l := range carried.Peers {
			if l.Agent == agent && l.Local == m.book.self && result.PathKind == localapi.PathRelay {
				result.Why = l.Why
			}
		}
		return nil
	})
	return result, err
}

// requireTrust says which consent is missing, and what gives it.
func (b *book) requireTrust(agent identity.AgentPublic, name string, now time.Time) *localapi.Error {
	e := &localapi.Error{Code: localapi.CodeNotTrusted}
	switch b.trust(agent, now) {
	case localapi.TrustMutual:
		return nil
	case localapi.TrustRequested:
		e.Message, e.Hint = name+" has not consented yet", "there: pilot trust approve "+b.certificate.Name
	case localapi.TrustPending:
		e.Message, e.Hint = name+" asks for trust and waits for you", "run: pilot trust approve "+name
	case localapi.TrustRejected:
		e.Message, e.Hint = "trust with "+name+" was rejected", "to ask again: pilot trust "+name
	case localapi.TrustRevoked:
		e.Message, e.Hint = "trust with "+name+" was revoked or has expired", "to ask again: pilot trust "+name
	default:
		e.Message, e.Hint = "you and "+name+" do not trust each other yet", "to ask for it: pilot trust "+name
	}
	return e
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Invite makes a join key, tells the coordinator its public half, and returns the invite.
func (n *Node) Invite(ctx context.Context, r localapi.InviteRequest) (localapi.InviteResult, error) {
	result, err := n.invite(ctx, r)
	return result, explain(err)
}

func (n *Node) invite(ctx context.Context, r localapi.InviteRequest) (result localapi.InviteResult, err error) {
	if r.Uses == 0 {
		r.Uses = 1
	}
	if r.Expires == 0 {
		r.Expires = defaultInviteLife
	}
	if r.Uses < 0 || r.Uses > api.MaxUses || r.Expires < 0 || r.Expires > api.MaxInviteLife {
		return result, errUsage(fmt.Sprintf("an invite has 1 to %d uses and lasts up to %d days", api.MaxUses, int(api.MaxInviteLife.Hours()/24)), "")
	}
	for _, t := range r.Tags {
		if err := identity.ValidateTag(t); err != nil {
			return result, err
		}
	}
	key, err := identity.NewJoinKey(rand.Reader)
	if err != nil {
		return result, err
	}
	now := n.now()
	invite := identity.Invite{Key: key, Expires: now.Add(r.Expires)}
	var m *membership
	if err := n.view(func(v *membership) error {
		m = v
		if !v.book.certificate.HasTag(api.TagAdmin) {
			return &localapi.Error{Code: localapi.CodeForbidden, Message: "only agents with the tag admin may invite",
				Hint: "ask one of them; an admin's invite made with --tag admin gives the tag"}
		}
		invite.NetworkName, invite.Authority, invite.Coordinators = n.saved.Network, v.book.network, n.saved.Coordinators
		if n.saved.Hosted {
			invite.Coordinators = n.advertised(n.saved.Authority, n.saved.Listen)
		}
		if len(invite.Coordinators) == 0 {
			invite.Coordinators = n.coordinators()
		}
		if r.NoTrust {
			return nil
		}
		c, err := identity.Consent{
			Network: v.book.network, To: key.Public(), ToJoin: true, Reason: "invited", Serial: uint64(now.UnixMilli()),
		}.Sign(n.key)
		invite.Consent = c.Raw()
		return err
	}); err != nil {
		return result, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if err := m.client.Load().CreateInvite(ctx, api.InviteRequest{
		Join: key.Public(), Uses: r.Uses, Expires: invite.Expires, Tags: r.Tags, Jurisdiction: r.Jurisdiction, Consent: invite.Consent,
	}); err != nil {
		return result, err
	}
	text, err := invite.Text()
	return localapi.InviteResult{Invite: text, Uses: r.Uses, Expires: invite.Expires, Tags: r.Tags, Trust: !r.NoTrust}, err
}

// Agents lists this agent and those with whom there is or was a consent.
func (n *Node) Agents(context.Context) (localapi.AgentList, error) {
	list := localapi.AgentList{Agents: []localapi.Agent{}}
	err := n.view(func(m *membership) error {
		list.Agents = append(list.Agents, n.agent(m, m.book.self))
		for _, agent := range m.book.sortedPeers() {
			if a := n.agent(m, agent); a.Trust != localapi.TrustNone {
				list.Agents = append(list.Agents, a)
			}
		}
		return nil
	})
	return list, err
}

// agent describes one that the book knows.
func (n *Node) agent(m *membership, agent identity.AgentPublic) localapi.Agent {
	c, a := m.book.certificate, localapi.Agent{Online: true}
	if p := m.book.peers[agent]; p != nil {
		c = p.certificate
		a.Online, a.LastSeen = p.online && m.link.connected, p.lastSeen
	}
	a.Name, a.FQDN, a.Key = c.Name, c.Name+"."+m.zone, agent
	a.Address, a.Tags, a.Jurisdiction = identity.Address(m.book.network, agent), c.Tags, c.Jurisdiction
	a.Trust = m.book.trust(agent, n.now())
	return a
}

// WhoIs tells who a name, an address or a key is.
func (n *Node) WhoIs(ctx context.Context, q string) (a localapi.Agent, err error) {
	agent, err := n.lookUp(ctx, q)
	if err != nil {
		return a, explain(err)
	}
	err = n.view(func(m *membership) error {
		a = n.agent(m, agent)
		return nil
	})
	return a, err
}

// TrustList lists the consents given and received.
func (n *Node) TrustList(context.Context) (localapi.TrustList, error) {
	list := localapi.TrustList{Entries: []localapi.TrustEntry{}}
	err := n.view(func(m *membership) error {
		for _, agent := range m.book.sortedPeers() {
			if e := m.book.entry(agent, n.now()); e.State != localapi.TrustNone {
				list.Entries = append(list.Entries, e)
			}
		}
		return nil
	})
	return list, err
}

// entry describes the trust between this agent and another.
func (b *book) entry(agent identity.AgentPublic, now time.Time) localapi.TrustEntry {
	e := localapi.TrustEntry{Address: identity.Address(b.network, agent), Key: agent, State: b.trust(agent, now)}
	if p := b.peers[agent]; p != nil {
		e.Name = p.certificate.Name
	}
	e.Ours, e.Theirs = described(b.ours(agent), now), described(b.theirs(agent), now)
	return e
}

func described(c *identity.Consent, now time.Time) *localapi.Consent {
	if c == nil {
		return nil
	}
	return &localapi.Consent{
		Reason: c.Reason, Ports: c.Ports, Since: time.UnixMilli(int64(c.Serial)).UTC(), Expires: c.Expiry, Active: c.ActiveAt(now),
	}
}

// Trust changes what this agent consents to. It holds here at once; the coordinator is told now if it can be, and
// otherwise as soon as it is back.
func (n *Node) Trust(ctx context.Context, r localapi.TrustRequest) (entry localapi.TrustEntry, err error) {
	entry, err = n.trust(ctx, r)
	return entry, explain(err)
}

func (n *Node) trust(ctx context.Context, r localapi.TrustRequest) (entry localapi.TrustEntry, err error) {
	if r.Expires < 0 {
		return entry, errUsage("a consent can't end before it begins", "")
	}
	if !r.AcceptKey.IsZero() {
		if err := n.change(func(m *membership) error {
			return m.book.acceptKey(plainName(r.Target, m.zone), r.AcceptKey)
		}); err != nil {
			return entry, err
		}
		if r.Action == localapi.ActionApprove && !n.waits(r.AcceptKey) {
			r.Action = localapi.ActionRequest
		}
	}
	agent, err := n.lookUp(ctx, r.Target)
	if err != nil {
		return entry, err
	}
	var m *membership
	var signed identity.Consent
	if err := n.change(func(v *membership) error {
		m = v
		c, err := v.book.decide(r, agent, n.now())
		if err != nil {
			return err
		}
		if err := v.book.sign(n.key, c, n.now()); err != nil {
			return err
		}
		signed, entry = v.book.outbox[len(v.book.outbox)-1], v.book.entry(agent, n.now())
		return nil
	}); err != nil {
		return entry, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if err := n.deliver(ctx, m, signed); err != nil {
		n.log.Warn("the coordinator will get the consent later", "error", err)
		poke(m.republish)
		if r.Action == localapi.ActionRequest {
			return entry, err
		}
	}
	return entry, nil
}

// waits reports whether an agent asked for trust and has no answer.
func (n *Node) waits(agent identity.AgentPublic) (waiting bool) {
	_ = n.view(func(m *membership) error {
		waiting = m.book.trust(agent, n.now()) == localapi.TrustPending
		return nil
	})
	return waiting
}

// decide turns a request into the consent to be signed, or says why there is nothing to sign.
func (b *book) decide(r localapi.TrustRequest, agent identity.AgentPublic, now time.Time) (identity.Consent, error) {
	c := identity.Consent{To: agent, Reason: r.Reason, Ports: r.Ports}
	if r.Expires > 0 {
		c.Expiry = now.Add(r.Expires)
	}
	if agent == b.self {
		return c, errUsage("that is this agent itself", "")
	}
	if p := b.peers[agent]; b.isRevoked(p.certificate) {
		return c, fmt.Errorf("%s: %w", p.certificate.Name, errRevoked)
	}
	state, theirs := b.trust(agent, now), b.theirs(agent)
	switch r.Action {
	case localapi.ActionRequest:
	case localapi.ActionApprove:
		if theirs == nil || !theirs.ActiveAt(now) {
			return c, &localapi.Error{Code: localapi.CodeNotFound, Message: "no request of that agent waits", Hint: "see: pilot trust pending"}
		}
	case localapi.ActionReject:
		if state != localapi.TrustPending {
			return c, &localapi.Error{Code: localapi.CodeNotFound, Message: "no request of that agent waits", Hint: "see: pilot trust pending; to end trust: pilot trust revoke"}
		}
		c = identity.Consent{To: agent, Withdrawn: true, Reason: rejection}
	case localapi.ActionRevoke:
		if ours := b.ours(agent); ours == nil || ours.Withdrawn {
			return c, &localapi.Error{Code: localapi.CodeNotFound, Message: "there is no consent to take back", Hint: "see: pilot trust ls"}
		}
		c = identity.Consent{To: agent, Withdrawn: true, Reason: r.Reason}
	default:
		return c, errUsage("unknown action "+r.Action, "")
	}
	return c, nil
}
