// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

const (
	// maxCoordinators is how many addresses of coordinators are kept.
	maxCoordinators = 8
	// joinLimit bounds a join, with its retries of other addresses.
	joinLimit = 30 * time.Second
)

// join makes this agent a member by an invite, and saves that. listen is the address of the coordinator in this process
// where the invite founds its network, else empty.
func (n *Node) join(ctx context.Context, invite identity.Invite, name, listen string) (api.Membership, error) {
	client, err := api.NewClient(api.ClientOptions{Addresses: invite.Coordinators, Authority: invite.Authority, Key: n.key, Now: n.now})
	if err != nil {
		return api.Membership{}, err
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	request, tunnels, err := n.joinRequest(invite, name)
	if err != nil {
		return api.Membership{}, err
	}
	m, err := client.Join(ctx, request)
	for tries := 0; name == "" && tries < 3 && api.HasCode(err, api.CodeNameTaken); tries++ {
		request.Name = suggestion(err) // nobody asked for the host's own name: take one that is free
		m, err = client.Join(ctx, request)
	}
	if err != nil {
		return api.Membership{}, err
	}
	c, pass, err := openMembership(m, invite.Authority, n.key.Public())
	if err != nil {
		return api.Membership{}, err
	}
	if err := sameInviter(invite, m); err != nil {
		return api.Membership{}, fmt.Errorf("the coordinator's answer: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member != nil {
		return m, n.joinedAgainLocked(c, pass, m)
	}
	if err := n.folder.saveTunnelKeys(tunnels); err != nil {
		return api.Membership{}, err
	}
	former, next := n.saved, n.saved
	next.Name, next.Network, next.Authority, next.Certificate = c.Name, invite.NetworkName, invite.Authority, m.Certificate
	next.RelayPass = m.RelayPass
	if next.Coordinators = coordinatorsOf(m); len(next.Coordinators) == 0 {
		next.Coordinators = invite.Coordinators
	}
	if listen != "" {
		next.Hosted, next.Listen = true, listen
	}
	if m.Inviter != nil {
		next.Peers = append(slices.Clone(next.Peers), *m.Inviter)
	}
	next.Consents = slices.Concat(next.Consents, m.Consents)
	// What the next start would refuse must not get into the file.
	if err := newBook(next.Authority, n.key.Public()).load(next); err != nil {
		return api.Membership{}, fmt.Errorf("the coordinator's answer: %w", err)
	}
	n.saved = next
	if err := n.saveLocked(); err != nil {
		n.saved = former
		return api.Membership{}, err
	}
	return m, nil
}

// joinedAgainLocked takes in what an invite brings to an agent that is up already: trust, tags and addresses. Its tunnel
// keys stay as they are.
func (n *Node) joinedAgainLocked(c identity.Certificate, pass identity.RelayPass, m api.Membership) error {
	if list := coordinatorsOf(m); len(list) > 0 {
		n.saved.Coordinators = list
	}
	if err := n.connect(n.member); err != nil {
		return err
	}
	b := n.member.book
	if c.Serial > b.certificate.Serial {
		b.certificate, b.pass = c, pass
	}
	var failed error
	for _, c := range m.Consents {
		_, err := b.addConsent(c)
		failed = errors.Join(failed, err)
	}
	if m.Inviter != nil {
		_, err := b.addPeer(*m.Inviter)
		failed = errors.Join(failed, err)
	}
	return errors.Join(failed, n.applyLocked(), n.saveLocked())
}

// coordinatorsOf lists the addresses of an answer that can be called, at most as many as an invite can name. One that can't
// would be in the way at each start.
func coordinatorsOf(m api.Membership) (list []string) {
	for _, a := range m.Coordinators {
		_, _, err := net.SplitHostPort(a)
		if err == nil {
			_, err = api.NewClient(api.ClientOptions{Addresses: []string{a}})
		}
		if err == nil && len(list) < maxCoordinators {
			list = append(list, a)
		}
	}
	return list
}

// sameInviter refuses an inviter other than the one whose consent is in the invite.
func sameInviter(invite identity.Invite, m api.Membership) error {
	if len(invite.Consent) == 0 || m.Inviter == nil {
		return nil
	}
	consent, err := identity.OpenConsent(invite.Consent, invite.Authority)
	if err != nil {
		return err
	}
	c, err := identity.OpenCertificate(m.Inviter.Certificate, invite.Authority)
	if err == nil && c.Agent != consent.From {
		err = fmt.Errorf("the inviter is %s, not %s: %w", consent.From, c.Agent, identity.ErrWrongKey)
	}
	return err
}

func suggestion(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Suggestion
	}
	return ""
}

// joinRequest signs what a newcomer has to say: who it is, that it holds the join key, under which tunnel key and where it
// is reached, and its consent to the inviter.
func (n *Node) joinRequest(invite identity.Invite, name string) (api.JoinRequest, []tunnelKey, error) {
	network, now := invite.Authority, n.now()
	acceptance, err := identity.Acceptance{Network: network, Agent: n.key.Public()}.Sign(invite.Key)
	if err != nil {
		return api.JoinRequest{}, nil, err
	}
	tunnels, err := n.joinTunnels(network, now)
	if err != nil {
		return api.JoinRequest{}, nil, err
	}
	r := api.JoinRequest{Acceptance: acceptance.Raw(), Name: name, Tunnel: tunnels[0].statement.Raw()}
	if r.Name == "" {
		if r.Name = n.saved.Name; r.Name == "" {
			r.Name = hostName()
		}
	}
	if len(invite.Consent) > 0 {
		theirs, err := identity.OpenConsent(invite.Consent, network)
		if err != nil {
			return api.JoinRequest{}, nil, fmt.Errorf("the inviter's consent: %w", err)
		}
		if !theirs.ToJoin || theirs.To != [identity.KeySize]byte(invite.Key.Public()) {
			return api.JoinRequest{}, nil, &localapi.Error{Code: localapi.CodeInviteInvalid,
				Message: "the consent in the invite is for somebody else", Hint: "ask for a new one: pilot invite"}
		}
		if theirs.From == n.key.Public() {
			return api.JoinRequest{}, nil, errUsage("this agent made the invite itself", "use it on another host")
		}
		ours, err := identity.Consent{
			Network: network, To: theirs.From, Reason: "accepted the invite", Serial: uint64(now.UnixMilli()),
		}.Sign(n.key)
		if err != nil {
			return api.JoinRequest{}, nil, err
		}
		r.Consent = ours.Raw()
	}
	return r, tunnels, nil
}

// joinTunnels returns the tunnel keys to join with, the one to be told first.
func (n *Node) joinTunnels(network identity.AuthorityPublic, now time.Time) ([]tunnelKey, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member != nil {
		return n.member.tunnels, nil // those that answer
	}
	tunnels, err := n.folder.tunnelKeys(network, n.key.Public())
	if err != nil {
		return nil, err
	}
	if len(tunnels) == 0 || !usable(tunnels[0].statement, now) || !now.Before(renewAt(tunnels[0].statement.NotBefore, tunnels[0].statement.NotAfter)) {
		t, err := newTunnelKey(network, n.key, now)
		if err != nil {
			return nil, err
		}
		tunnels = slices.Insert(tunnels, 0, t)
	}
	return tunnels, nil
}

func inviterName(m api.Membership, network identity.AuthorityPublic) string {
	if m.Inviter == nil {
		return ""
	}
	c, err := identity.OpenCertificate(m.Inviter.Certificate, network)
	if err != nil {
		return ""
	}
	return c.Name
}

// hostName makes a valid agent's name of the host's.
func hostName() string {
	h, _ := os.Hostname()
	h, _, _ = strings.Cut(strings.ToLower(h), ".")
	name := strings.Trim(strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, h), "-")
	name = name[:min(len(name), 63)]
	if identity.ValidateName(name) != nil {
		return "agent"
	}
	return name
}
