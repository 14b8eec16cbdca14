// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// createInvite makes a join key known, for an admin or the operator. The same request again changes nothing.
func (r *registry) createInvite(ctx context.Context, c caller, req api.InviteRequest) error {
	v, err := r.checkInvite(c, req)
	if err == nil {
		var data []byte
		if data, err = json.Marshal(v); err == nil {
			err = r.store.Invites.Create(ctx, joinKey(req.Join), data)
		}
		if errors.Is(err, store.ErrConflict) {
			err = r.sameInvite(ctx, req.Join, v)
		}
	}
	return r.audit(ctx, c, "invite", req.Join.String(), "", err)
}

func (r *registry) checkInvite(c caller, req api.InviteRequest) (inviteRecord, error) {
	v := inviteRecord{
		Inviter: c.agent, Uses: req.Uses, Created: r.now().UTC(), Expires: req.Expires.UTC(), Jurisdiction: req.Jurisdiction,
		Tags: slices.Compact(slices.Sorted(slices.Values(req.Tags))), Consent: req.Consent,
	}
	now := r.now()
	switch {
	case req.Join.IsZero():
		return v, fail(api.CodeBadRequest, "", "the invite has no join key")
	case req.Uses < 1 || req.Uses > api.MaxUses:
		return v, fail(api.CodeBadRequest, "", "an invite has 1 to %d uses, not %d", api.MaxUses, req.Uses)
	case !req.Expires.After(now) || req.Expires.After(now.Add(api.MaxInviteLife)):
		return v, fail(api.CodeBadRequest, "Check this host's clock.", "an invite expires in the future, within %d days", int(api.MaxInviteLife.Hours()/24))
	}
	// A trial issue finds every reason for which the joiners' certificates could not be made.
	longest := identity.Certificate{Agent: identity.AgentPublic{1}, Name: longestName, Tags: v.Tags, Jurisdiction: v.Jurisdiction, Serial: 1}
	if _, err := r.ca.Issue(longest, now); err != nil {
		return v, fail(api.CodeBadRequest, "A tag has 1 to 32 of a-z, 0-9, '-', '.', ':'; so has a jurisdiction.", "%v", err)
	}
	if len(req.Consent) == 0 {
		return v, nil
	}
	consent, err := identity.OpenConsent(req.Consent, r.network.Authority)
	switch {
	case err != nil:
		return v, badStatement(err)
	case !consent.ToJoin || consent.To != [identity.KeySize]byte(req.Join):
		return v, fail(api.CodeBadRequest, "", "the consent isn't to the invite's join key")
	case c.agent.IsZero():
		v.Inviter = consent.From // the operator invites on behalf of the agent that signed
	case consent.From != c.agent:
		return v, fail(api.CodeForbidden, "", "the consent is another agent's")
	}
	return v, nil
}

const longestName = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijk"

// sameInvite returns CONFLICT unless the stored invite is what was asked for.
func (r *registry) sameInvite(ctx context.Context, join identity.JoinPublic, want inviteRecord) error {
	have, _, err := read[inviteRecord](ctx, r.store.Invites, joinKey(join))
	if err != nil {
		return err
	}
	if have.Inviter == want.Inviter && have.Uses == want.Uses && have.Expires.Equal(want.Expires) && !have.Revoked &&
		have.Jurisdiction == want.Jurisdiction && slices.Equal(have.Tags, want.Tags) && slices.Equal(have.Consent, want.Consent) {
		return nil
	}
	return fail(api.CodeConflict, "Make a new join key.", "there is another invite with this join key")
}

// invites lists all join keys, the newest first.
func (r *registry) invites(ctx context.Context) (api.Invites, error) {
	list := api.Invites{Invites: []api.Invite{}}
	entries, err := r.store.Invites.List(ctx, "*")
	if err != nil {
		return list, err
	}
	for _, e := range entries {
		keys, ok := parseKeys(e.Key, 1)
		var v inviteRecord
		if !ok || decodeEntry(e.Value, &v) != nil {
			r.log.Error("a damaged entry in the registry", "bucket", "invites", "key", e.Key)
			continue
		}
		list.Invites = append(list.Invites, api.Invite{
			Join: identity.JoinPublic(keys[0]), Inviter: v.Inviter, Uses: v.Uses, Used: len(v.Used), Created: v.Created, Expires: v.Expires,
			Tags: v.Tags, Jurisdiction: v.Jurisdiction, Consent: len(v.Consent) > 0, Revoked: v.Revoked,
		})
	}
	slices.SortStableFunc(list.Invites, func(a, b api.Invite) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// deleteInvite revokes a join key. Its entry stays, so that who uses it is told why it doesn't work.
func (r *registry) deleteInvite(ctx context.Context, c caller, q string) error {
	join, err := identity.ParseJoinPublic(q)
	if err != nil {
		return fail(api.CodeBadRequest, "", "%v", err)
	}
	_, err = update(ctx, r.updater, r.store.Invites, joinKey(join), func(v *inviteRecord, exists bool) error {
		if !exists {
			return fail(api.CodeNotFound, "", "there is no invite with this join key")
		}
		if v.Revoked {
			return errUnchanged
		}
		v.Revoked = true
		return nil
	})
	return r.audit(ctx, c, "revoke-invite", join.String(), "", err)
}

// revoke ends an agent's membership. Doing it again changes nothing.
func (r *registry) revoke(ctx context.Context, c caller, req api.RevokeRequest) error {
	agent, err := r.revokeTarget(ctx, req)
	subject := req.Name
	if subject == "" || err == nil {
		subject = agent.String()
	}
	if err == nil {
		err = r.revokeAgent(ctx, agent, req.Reason)
	}
	return r.audit(ctx, c, "revoke", subject, req.Reason, err)
}

func (r *registry) revokeTarget(ctx context.Context, req api.RevokeRequest) (identity.AgentPublic, error) {
	if req.Agent.IsZero() == (req.Name == "") {
		return req.Agent, fail(api.CodeBadRequest, "", "a revocation names either an agent's key or its name")
	}
	if req.Name != "" {
		return r.resolve(ctx, req.Name)
	}
	return req.Agent, nil
}

// leave ends the caller's own membership. It is a revocation like any other: what it signed and was given counts no more,
// and its name is free.
func (r *registry) leave(ctx context.Context, c caller) error {
	return r.audit(ctx, c, "leave", c.agent.String(), "", r.revokeAgent(ctx, c.agent, reasonLeft))
}

// reasonLeft is why an agent that left is out.
const reasonLeft = "it left"

func (r *registry) revokeAgent(ctx context.Context, agent identity.AgentPublic, reason string) error {
	a, err := update(ctx, r.updater, r.store.Agents, agentKey(agent), func(a *agentRecord, exists bool) error {
		if !exists {
			return errHidden(agent.String())
		}
		if a.revoked() {
			return errUnchanged
		}
		a.Serial = nextSerial(r.now(), a.Serial) // no certificate up to now has a higher one
		revocation, err := r.ca.Revoke(agent, a.Serial, reason, r.now())
		if err != nil {
			return badStatement(err)
		}
		a.Revocation = revocation.Raw()
		return nil
	})
	if err != nil {
		return err
	}
	r.release(ctx, a.Name, agent)
	return nil
}
