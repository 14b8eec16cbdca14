// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// peer returns the target as the caller may see it, or NOT_FOUND.
func (r *registry) peer(ctx context.Context, caller, target identity.AgentPublic) (api.Peer, error) {
	a, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(target))
	if errors.Is(err, store.ErrNotFound) || a.revoked() {
		return api.Peer{}, errHidden(target.String())
	} else if err != nil {
		return api.Peer{}, err
	}
	return r.view(ctx, caller, target, a)
}

// view shows a member's certificate, and the rest if it consents to the caller.
func (r *registry) view(ctx context.Context, caller, target identity.AgentPublic, a agentRecord) (api.Peer, error) {
	p := api.Peer{Certificate: a.Certificate}
	if _, active, err := r.consent(ctx, target, caller); err != nil || !active {
		return p, err
	}
	p.Tunnel, p.Record = a.Tunnel, a.Record
	seen, _, err := read[seenRecord](ctx, r.store.Seen, agentKey(target))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return p, err
	}
	p.Observed, p.LastSeen = seen.Observed, seen.At
	_, err = r.store.Presence.Get(ctx, presenceAgent+agentKey(target))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return p, err
	}
	p.Online = err == nil
	return p, nil
}

// lookup finds an agent by its exact name, address or key.
func (r *registry) lookup(ctx context.Context, caller identity.AgentPublic, q string) (api.Peer, error) {
	agent, err := r.resolve(ctx, q)
	if err != nil {
		return api.Peer{}, err
	}
	p, err := r.peer(ctx, caller, agent)
	if api.HasCode(err, api.CodeNotFound) {
		return p, errHidden(q)
	}
	return p, err
}

// resolve turns a name, an address or a key into the key of the agent that has it.
func (r *registry) resolve(ctx context.Context, q string) (identity.AgentPublic, error) {
	if agent, err := identity.ParseAgentPublic(q); err == nil {
		return agent, nil
	}
	var key string
	if addr, err := netip.ParseAddr(q); err == nil && addr.Zone() == "" {
		key = addressKey(addr)
	} else if identity.ValidateName(q) == nil {
		key = nameKey(q)
	} else {
		return identity.AgentPublic{}, errHidden(q)
	}
	b, _, err := read[binding](ctx, r.store.Bindings, key)
	if errors.Is(err, store.ErrNotFound) {
		return identity.AgentPublic{}, errHidden(q)
	}
	return b.Agent, err
}

// relation is another agent with the latest consents between it and the caller.
type relation struct {
	other identity.AgentPublic
	pairs []consentRecord
}

// relations lists everybody with whom the caller ever had a consent, in either direction.
func (r *registry) relations(ctx context.Context, caller identity.AgentPublic) ([]relation, error) {
	var all []relation
	index := make(map[identity.AgentPublic]int)
	for side, filter := range []string{agentKey(caller) + ".*", "*." + agentKey(caller)} {
		entries, err := r.store.Consents.List(ctx, filter)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			keys, ok := parseKeys(e.Key, 2)
			var c consentRecord
			if !ok || decodeEntry(e.Value, &c) != nil {
				r.log.Error("a damaged entry in the registry", "bucket", "consents", "key", e.Key)
				continue
			}
			other := keys[1-side]
			n, known := index[other]
			if !known {
				n = len(all)
				index[other] = n
				all = append(all, relation{other: other})
			}
			all[n].pairs = append(all[n].pairs, c)
		}
	}
	return all, nil
}

// live reports whether one of the relation's consents is active.
func (r *registry) live(rel relation) bool {
	return slices.ContainsFunc(rel.pairs, func(c consentRecord) bool {
		active, err := r.active(c)
		return err == nil && active
	})
}

// related reports whether a consent between the two is active, in either direction.
func (r *registry) related(ctx context.Context, a, b identity.AgentPublic) (bool, error) {
	if _, active, err := r.consent(ctx, a, b); err != nil || active {
		return active, err
	}
	_, active, err := r.consent(ctx, b, a)
	return active, err
}

// agents lists those with whom the caller has a consent in either direction.
func (r *registry) agents(ctx context.Context, caller identity.AgentPublic) (api.Agents, error) {
	list := api.Agents{Agents: []api.Peer{}}
	relations, err := r.relations(ctx, caller)
	if err != nil {
		return list, err
	}
	for _, rel := range relations {
		if !r.live(rel) {
			continue
		}
		p, err := r.peer(ctx, caller, rel.other)
		if api.HasCode(err, api.CodeNotFound) {
			continue
		} else if err != nil {
			return list, err
		}
		list.Agents = append(list.Agents, p)
	}
	return list, nil
}
