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

// putConsent stores a consent or a withdrawal of the caller.
func (r *registry) putConsent(ctx context.Context, c caller, req api.ConsentRequest) error {
	consent, err := identity.OpenConsent(req.Consent, r.network.Authority)
	if err != nil {
		return badStatement(err)
	}
	if consent.From != c.agent {
		return fail(api.CodeForbidden, "", "the consent is another agent's")
	}
	action := "consent"
	if consent.Withdrawn {
		action = "withdraw"
	}
	subject := identity.AgentPublic(consent.To).String()
	if consent.ToJoin {
		subject = identity.JoinPublic(consent.To).String()
		err = r.replaceInviteConsent(ctx, c, consent)
	} else {
		err = r.consentTo(ctx, c, consent)
	}
	return r.audit(ctx, c, action, subject, consent.Reason, err)
}

func (r *registry) consentTo(ctx context.Context, c caller, consent identity.Consent) error {
	to := identity.AgentPublic(consent.To)
	a, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(to))
	if errors.Is(err, store.ErrNotFound) || a.revoked() {
		return errHidden(to.String())
	} else if err != nil {
		return err
	}
	return r.putPair(ctx, c.agent, to, consent, nil)
}

// putPair stores the consent for the pair, unless a newer one is there: then it returns CONFLICT. The same one again is fine.
func (r *registry) putPair(ctx context.Context, from, to identity.AgentPublic, consent identity.Consent, acceptance []byte) error {
	_, err := update(ctx, r.updater, r.store.Consents, pairKey(from, to), func(v *consentRecord, exists bool) error {
		if exists && slices.Equal(v.Consent, consent.Raw()) {
			return errUnchanged
		}
		if exists && consent.Serial <= v.Serial {
			return fail(api.CodeConflict, "Make a new one with a higher serial.", "a consent with the same or a higher serial is stored already")
		}
		*v = consentRecord{Consent: consent.Raw(), Acceptance: acceptance, Serial: consent.Serial}
		return nil
	})
	return err
}

// replaceInviteConsent stores a consent to a join key with its invite, and applies it to those who have joined by it.
func (r *registry) replaceInviteConsent(ctx context.Context, c caller, consent identity.Consent) error {
	join := identity.JoinPublic(consent.To)
	_, err := update(ctx, r.updater, r.store.Invites, joinKey(join), func(v *inviteRecord, exists bool) error {
		if !exists || v.Inviter != c.agent {
			return fail(api.CodeNotFound, "", "there is no invite of yours with this join key")
		}
		if slices.Equal(v.Consent, consent.Raw()) {
			return errUnchanged
		}
		if len(v.Consent) > 0 {
			have, err := identity.OpenConsent(v.Consent, r.network.Authority)
			if err != nil {
				return err
			}
			if consent.Serial <= have.Serial {
				return fail(api.CodeConflict, "Make a new one with a higher serial.", "a consent with the same or a higher serial is stored already")
			}
		}
		v.Consent = consent.Raw()
		return nil
	})
	if err != nil {
		return err
	}
	entries, err := r.store.Acceptances.List(ctx, agentKey(c.agent)+"."+joinKey(join)+".*")
	if err != nil {
		return err
	}
	for _, e := range entries {
		keys, ok := parseKeys(e.Key, 3)
		var a acceptanceRecord
		if !ok || decodeEntry(e.Value, &a) != nil {
			continue
		}
		if err := r.applyInvite(ctx, consent.Raw(), keys[2], a.Acceptance); err != nil {
			return err
		}
	}
	return nil
}

// applyInvite stores an invite's consent, if it has one, as the inviter's consent to an agent that accepted it. A newer one stays.
func (r *registry) applyInvite(ctx context.Context, raw []byte, agent identity.AgentPublic, acceptance []byte) error {
	if len(raw) == 0 {
		return nil
	}
	consent, err := identity.OpenConsent(raw, r.network.Authority)
	if err != nil {
		return err
	}
	if consent.From == agent {
		return nil
	}
	err = r.putPair(ctx, consent.From, agent, consent, acceptance)
	if api.HasCode(err, api.CodeConflict) {
		return nil
	}
	return err
}

// consent returns the stored consent of a pair, and whether it is active.
func (r *registry) consent(ctx context.Context, from, to identity.AgentPublic) (consentRecord, bool, error) {
	v, _, err := read[consentRecord](ctx, r.store.Consents, pairKey(from, to))
	if errors.Is(err, store.ErrNotFound) {
		return v, false, nil
	} else if err != nil {
		return v, false, err
	}
	active, err := r.active(v)
	return v, active, err
}

func (r *registry) active(v consentRecord) (bool, error) {
	c, err := identity.OpenConsent(v.Consent, r.network.Authority)
	return err == nil && c.ActiveAt(r.now()), err
}

func decodeEntry(data []byte, v any) error { return json.Unmarshal(data, v) }
