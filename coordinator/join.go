// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

const (
	// reservation is how long a name waits for an agent whose joining hasn't finished. It is longer than any request.
	reservation    = time.Minute
	maxSuggestions = 99
	maxName        = 63
)

// joining is a request to join whose statements have been checked.
type joining struct {
	caller
	name         string
	join         identity.JoinPublic
	acceptance   []byte
	tunnel       []byte
	record       []byte
	recordSerial uint64
	consent      *identity.Consent
	relay        bool
}

// join admits an agent. Steps that were done stay done when a later one fails: the name and the use of the join key are
// the agent's, so when it asks again it goes on from there, and nobody else gets in by what it has used.
func (r *registry) join(ctx context.Context, c caller, req api.JoinRequest) (api.Membership, error) {
	j, err := r.checkJoin(c, req)
	if err == nil {
		var m api.Membership
		if m, err = r.admit(ctx, j); err == nil {
			return m, r.audit(ctx, c, "join", j.join.String(), "name "+j.name, nil)
		}
	}
	return api.Membership{}, r.audit(ctx, c, "join", j.join.String(), "", err)
}

func (r *registry) checkJoin(c caller, req api.JoinRequest) (joining, error) {
	j := joining{caller: c, name: req.Name, acceptance: req.Acceptance, tunnel: req.Tunnel, record: req.Record, relay: req.Relay}
	a, err := identity.OpenAcceptance(req.Acceptance, r.network.Authority)
	if err != nil {
		return j, badStatement(err)
	}
	j.join = a.Join
	if a.Agent != c.agent {
		return j, fail(api.CodeForbidden, "", "the join key was used for another agent")
	}
	if j.recordSerial, err = r.checkRecord(c.agent, req.Tunnel, req.Record); err != nil {
		return j, err
	}
	if len(req.Consent) > 0 {
		consent, err := identity.OpenConsent(req.Consent, r.network.Authority)
		switch {
		case err != nil:
			return j, badStatement(err)
		case consent.From != c.agent || consent.ToJoin:
			return j, fail(api.CodeForbidden, "", "the consent isn't the joining agent's to its inviter")
		}
		j.consent = &consent
	}
	return j, nil
}

func (r *registry) admit(ctx context.Context, j joining) (api.Membership, error) {
	// The key comes first, so that without one nobody learns which names there are.
	invite, err := r.invite(ctx, j.join, j.agent)
	if err != nil {
		return api.Membership{}, err
	}
	if j.consent != nil && j.consent.To != [identity.KeySize]byte(invite.Inviter) {
		return api.Membership{}, fail(api.CodeBadRequest, "", "the consent isn't to the agent that made the invite")
	}
	if err := r.chooseName(ctx, &j); err != nil {
		return api.Membership{}, err
	}
	fresh, err := r.reserve(ctx, nameKey(j.name), j.agent)
	if errors.Is(err, store.ErrConflict) {
		err = r.nameTaken(ctx, j.name)
	}
	if err != nil {
		return api.Membership{}, err
	}
	if invite, err = r.use(ctx, j.join, j.agent); err != nil {
		if fresh {
			r.release(ctx, j.name, j.agent)
		}
		return api.Membership{}, err
	}
	if _, err := r.reserve(ctx, addressKey(identity.Address(r.network.Authority, j.agent)), j.agent); errors.Is(err, store.ErrConflict) {
		return api.Membership{}, fail(api.CodeConflict, "Make a new identity.", "another agent's key has the same address")
	} else if err != nil {
		return api.Membership{}, err
	}
	a, err := r.register(ctx, j, invite)
	if err != nil {
		return api.Membership{}, err
	}
	if err := r.consentByInvite(ctx, j, invite); err != nil {
		return api.Membership{}, err
	}
	if j.relay {
		return r.renewed(ctx, j.agent, a)
	}
	return r.membership(ctx, j.agent, invite.Inviter, a)
}

// invite returns the join key's entry if the agent may join by it.
func (r *registry) invite(ctx context.Context, join identity.JoinPublic, agent identity.AgentPublic) (inviteRecord, error) {
	v, _, err := read[inviteRecord](ctx, r.store.Invites, joinKey(join))
	if errors.Is(err, store.ErrNotFound) {
		return v, fail(api.CodeJoinKeyUnknown, "Ask for a new invite.", "this network doesn't know the join key")
	} else if err != nil {
		return v, err
	}
	if !v.Inviter.IsZero() {
		inviter, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(v.Inviter))
		if err != nil {
			return v, err
		}
		v.Revoked = v.Revoked || inviter.revoked()
	}
	return v, r.usable(v, agent)
}

func (r *registry) usable(v inviteRecord, agent identity.AgentPublic) error {
	switch {
	case v.Revoked:
		return fail(api.CodeJoinKeyRevoked, "Ask for a new invite.", "the join key was revoked")
	case slices.Contains(v.Used, agent):
		return nil
	case !r.now().Before(v.Expires):
		return fail(api.CodeJoinKeyExpired, "Ask for a new invite.", "the join key expired at %s", v.Expires.UTC().Format(time.RFC3339))
	case len(v.Used) >= v.Uses:
		return fail(api.CodeJoinKeyUsed, "Ask for a new invite, or one with more uses.", "the join key was used as often as it may be")
	}
	return nil
}

// use counts one use of the join key for the agent, once however often it asks.
func (r *registry) use(ctx context.Context, join identity.JoinPublic, agent identity.AgentPublic) (inviteRecord, error) {
	return update(ctx, r.updater, r.store.Invites, joinKey(join), func(v *inviteRecord, exists bool) error {
		if !exists {
			return store.ErrNotFound
		}
		if err := r.usable(*v, agent); err != nil {
			return err
		}
		if slices.Contains(v.Used, agent) {
			return errUnchanged
		}
		v.Used = append(v.Used, agent)
		return nil
	})
}

// chooseName checks the wished name. An agent that has one keeps it.
func (r *registry) chooseName(ctx context.Context, j *joining) error {
	a, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(j.agent))
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	case a.revoked():
		return errRevoked()
	case err == nil && j.name == "":
		j.name = a.Name
	case err == nil && j.name != a.Name:
		return fail(api.CodeConflict, fmt.Sprintf("Use --name %s, or a new identity.", a.Name), "this agent is a member already, with the name %q", a.Name)
	}
	if err := identity.ValidateName(j.name); err != nil {
		return fail(api.CodeNameInvalid, "Use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit.", "%v", err)
	}
	return nil
}

// reserve binds a name or an address to the agent and reports whether it wasn't bound to it before. It returns
// store.ErrConflict if it is another's: a member's, or that of one who began to join a moment ago.
func (r *registry) reserve(ctx context.Context, key string, agent identity.AgentPublic) (fresh bool, err error) {
	_, err = update(ctx, r.updater, r.store.Bindings, key, func(b *binding, exists bool) error {
		fresh = false
		if exists && b.Agent == agent {
			return errUnchanged
		}
		if exists {
			owned, err := r.owned(ctx, key, *b)
			if err != nil {
				return err
			}
			if owned {
				return store.ErrConflict
			}
		}
		*b, fresh = binding{Agent: agent, Since: r.now()}, true
		return nil
	})
	return fresh, err
}

// owned reports whether a binding still counts.
func (r *registry) owned(ctx context.Context, key string, b binding) (bool, error) {
	if r.now().Sub(b.Since) < reservation {
		return true, nil
	}
	a, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(b.Agent))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if key == nameKey(a.Name) {
		return !a.revoked(), nil
	}
	return key == addressKey(identity.Address(r.network.Authority, b.Agent)), nil
}

// release gives a name back, if it is the agent's and the agent isn't a member with it.
func (r *registry) release(ctx context.Context, name string, agent identity.AgentPublic) {
	a, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(agent))
	if err == nil && !a.revoked() && a.Name == name {
		return
	}
	b, revision, err := read[binding](ctx, r.store.Bindings, nameKey(name))
	if err == nil && b.Agent == agent {
		err = r.store.Bindings.Delete(ctx, nameKey(name), revision)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		r.log.Warn("a name stays reserved for a while", "name", name, "error", err)
	}
}

// nameTaken suggests the first of name-2, name-3 and so on that is free.
func (r *registry) nameTaken(ctx context.Context, name string) error {
	e := fail(api.CodeNameTaken, "Choose another name.", "the name %q belongs to another agent", name)
	for n := 2; n <= maxSuggestions; n++ {
		suffix := fmt.Sprintf("-%d", n)
		candidate := name[:min(len(name), maxName-len(suffix))] + suffix
		if identity.ValidateName(candidate) != nil {
			continue
		}
		b, _, err := read[binding](ctx, r.store.Bindings, nameKey(candidate))
		taken := err == nil
		if taken {
			if taken, err = r.owned(ctx, nameKey(candidate), b); err != nil {
				return err
			}
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if !taken {
			e.Suggestion, e.Hint = candidate, fmt.Sprintf("The name %q is free: --name %s.", candidate, candidate)
			break
		}
	}
	return e
}

// register makes the agent a member, or adds what the invite gives to one that is a member already.
func (r *registry) register(ctx context.Context, j joining, invite inviteRecord) (agentRecord, error) {
	return update(ctx, r.updater, r.store.Agents, agentKey(j.agent), func(a *agentRecord, exists bool) error {
		switch {
		case !exists:
			*a = agentRecord{Name: j.name, Joined: r.now()}
		case a.revoked():
			return errRevoked()
		case a.Name != j.name:
			return fail(api.CodeConflict, "", "this agent joined under another name just now")
		}
		a.Tags = slices.Compact(slices.Sorted(slices.Values(slices.Concat(a.Tags, invite.Tags))))
		if invite.Jurisdiction != "" {
			a.Jurisdiction = invite.Jurisdiction
		}
		if _, err := r.setRecord(a, j.tunnel, j.record, j.recordSerial); err != nil && !api.HasCode(err, api.CodeConflict) {
			return err // what is stored already and newer just stays
		}
		return r.issue(j.agent, a)
	})
}

// consentByInvite stores the joiner's acceptance and the consents between it and its inviter.
func (r *registry) consentByInvite(ctx context.Context, j joining, invite inviteRecord) error {
	if j.consent != nil {
		if err := r.putPair(ctx, j.agent, invite.Inviter, *j.consent, nil); err != nil && !api.HasCode(err, api.CodeConflict) {
			return err // a newer one just stays
		}
	}
	key := acceptanceKey(invite.Inviter, j.join, j.agent)
	if _, _, err := read[acceptanceRecord](ctx, r.store.Acceptances, key); errors.Is(err, store.ErrNotFound) {
		if err := put(ctx, r.store.Acceptances, key, acceptanceRecord{Acceptance: j.acceptance}); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// The inviter may have replaced its consent meanwhile. Who does that looks for acceptances after it has stored the
	// consent; here the acceptance is stored before the consent is read. So one of the two sees the other's.
	invite, _, err := read[inviteRecord](ctx, r.store.Invites, joinKey(j.join))
	if err != nil {
		return err
	}
	return r.applyInvite(ctx, invite.Consent, j.agent, j.acceptance)
}

// membership is the answer to an agent that has joined.
func (r *registry) membership(ctx context.Context, agent, inviter identity.AgentPublic, a agentRecord) (api.Membership, error) {
	m, err := r.renewed(ctx, agent, a)
	if err != nil || inviter.IsZero() {
		return m, err
	}
	p, err := r.peer(ctx, agent, inviter)
	if api.HasCode(err, api.CodeNotFound) {
		return m, nil
	} else if err != nil {
		return m, err
	}
	m.Inviter = &p
	for _, pair := range [][2]identity.AgentPublic{{inviter, agent}, {agent, inviter}} {
		c, _, err := read[consentRecord](ctx, r.store.Consents, pairKey(pair[0], pair[1]))
		if errors.Is(err, store.ErrNotFound) {
			continue
		} else if err != nil {
			return m, err
		}
		m.Consents = append(m.Consents, api.ConsentEntry{Consent: c.Consent, Acceptance: c.Acceptance, Other: p.Certificate})
	}
	return m, nil
}
