// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// stream shows one agent what concerns it, for as long as it listens.
type stream struct {
	*registry
	caller
	sub  *subscription
	id   string
	send func(api.Event) error
	bare bool // only revocations are shown, without their reasons
	// shown has a hash of what was last shown of each peer, so that a note without a visible change costs no line.
	shown map[identity.AgentPublic][sha256.Size]byte
}

// stream runs until the context or the membership ends, or until a line can't be sent. bare shows a relay revocations only.
func (r *registry) stream(ctx context.Context, h *hub, c caller, bare bool, send func(api.Event) error) error {
	s := &stream{
		registry: r, caller: c, sub: h.subscribe(c.agent), id: rand.Text(), send: send, bare: bare,
		shown: make(map[identity.AgentPublic][sha256.Size]byte),
	}
	defer s.sub.close()
	// Only now, when no change of it can be missed any more, does it count that the agent is a member.
	a, err := r.member(ctx, c.agent)
	if err != nil {
		return err
	}
	if bare && !a.relay() {
		return fail(api.CodeForbidden, "", "only agents with the tag %q are told of all revocations", api.TagRelay)
	}
	if err := s.arrive(ctx); err != nil {
		return err
	}
	defer s.leave(ctx)
	if a.relay() {
		s.sub.guard()
		if err := s.showRevocations(ctx); err != nil {
			return err
		}
	}
	if err := s.snapshot(ctx); err != nil {
		return err
	}
	ping := time.NewTimer(s.pulse.next(s.addr))
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.sub.wake:
			if err := s.changes(ctx); err != nil {
				return err
			}
		case <-ping.C:
			if err := s.ping(ctx); err != nil {
				return err
			}
			ping.Reset(s.pulse.next(s.addr))
		}
	}
}

// arrive makes the agent online.
func (s *stream) arrive(ctx context.Context) error {
	_, err := update(ctx, s.updater, s.store.Seen, agentKey(s.agent), func(v *seenRecord, _ bool) error {
		v.At = s.now().UTC()
		v.Observed = s.observed(v.Observed)
		return nil
	})
	if err != nil {
		return err
	}
	return s.heartbeat(ctx)
}

// observed puts the caller's address in front, if another host could use it.
func (s *stream) observed(before []netip.Addr) []netip.Addr {
	a := s.addr
	if !a.IsGlobalUnicast() || identity.NetworkPrefix(s.network.Authority).Contains(a) {
		return before
	}
	all := []netip.Addr{a}
	for _, b := range before {
		if b != a && len(all) < maxObserved {
			all = append(all, b)
		}
	}
	return all
}

func (s *stream) heartbeat(ctx context.Context) error {
	return put(ctx, s.store.Presence, presenceAgent+agentKey(s.agent), presenceRecord{Stream: s.id})
}

const leaveTimeout = 5 * time.Second

// leave makes the agent offline, unless a later stream of it has taken over. If the registry doesn't answer, the
// entry ends by itself after store.PresenceLife.
func (s *stream) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	key := presenceAgent + agentKey(s.agent)
	p, revision, err := read[presenceRecord](ctx, s.store.Presence, key)
	if err != nil || p.Stream != s.id {
		return
	}
	if _, err = update(ctx, s.updater, s.store.Seen, agentKey(s.agent), func(v *seenRecord, _ bool) error {
		v.At = s.now().UTC()
		return nil
	}); err == nil {
		err = s.store.Presence.Delete(ctx, key, revision)
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		s.log.Debug("an agent stays online for a while", "agent", s.agent, "error", err)
	}
}

// ping keeps the stream and the agent's presence alive. It also looks again whether the agent is a member, in case that a
// NATS which went away took the note with it.
func (s *stream) ping(ctx context.Context) error {
	if err := s.self(ctx); err != nil {
		return err
	}
	if err := s.heartbeat(ctx); err != nil {
		return err
	}
	return s.send(api.Event{Type: api.EventPing})
}

// snapshot sends everything that concerns the agent.
func (s *stream) snapshot(ctx context.Context) error {
	if s.bare {
		return s.send(api.Event{Type: api.EventSynced, Observed: s.addr})
	}
	relations, err := s.relations(ctx, s.agent)
	if err != nil {
		return err
	}
	for _, rel := range relations {
		s.sub.follow(rel.other) // before it is read, so that nothing falls in between
		other, err := s.showPeer(ctx, rel.other)
		if err != nil {
			return err
		}
		for _, c := range rel.pairs {
			if err := s.showConsent(c, other); err != nil {
				return err
			}
		}
	}
	if err := s.showRelays(ctx); err != nil {
		return err
	}
	return s.send(api.Event{Type: api.EventSynced, Observed: s.addr})
}

// changes handles the notes that wait: first the agent's own entry, since nothing is shown to one that was revoked, then
// consents, because they decide what may be seen.
func (s *stream) changes(ctx context.Context) error {
	if err := s.self(ctx); err != nil {
		return err
	}
	pending, signals := s.sub.take()
	notes := slices.Collect(maps.Keys(pending))
	slices.SortFunc(notes, func(a, b note) int { return int(b.kind) - int(a.kind) })
	for _, n := range notes {
		var err error
		switch {
		case n.agent == s.agent:
		case s.bare && n.kind != agentChanged:
		case n.kind == relaysChanged:
			err = s.showRelays(ctx)
		case n.kind == consentChanged:
			err = s.consentNote(ctx, n)
		case n.kind == inviteUsed:
			err = s.inviteNote(ctx, n)
		case n.kind == agentChanged:
			_, err = s.showPeer(ctx, n.agent)
		}
		if err != nil {
			return err
		}
	}
	for _, raw := range signals {
		if s.bare {
			break
		}
		if err := s.send(api.Event{Type: api.EventSignal, Signal: raw}); err != nil {
			return err
		}
	}
	return nil
}

// self ends the stream of an agent that was revoked, after it has been told.
func (s *stream) self(ctx context.Context) error {
	a, err := s.member(ctx, s.agent)
	if a.revoked() {
		if err := s.showRevocation(s.agent, a.Revocation); err != nil {
			return err
		}
	}
	return err
}

func (s *stream) consentNote(ctx context.Context, n note) error {
	from, to := n.agent, s.agent
	if n.given {
		from, to = to, from
	}
	c, _, err := read[consentRecord](ctx, s.store.Consents, pairKey(from, to))
	if err != nil {
		return err
	}
	s.sub.follow(n.agent)
	other, err := s.showPeer(ctx, n.agent)
	if err != nil {
		return err
	}
	return s.showConsent(c, other)
}

func (s *stream) inviteNote(ctx context.Context, n note) error {
	p, err := s.peer(ctx, s.agent, n.agent)
	if api.HasCode(err, api.CodeNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return s.send(api.Event{Type: api.EventInviteUsed, Peer: &p})
}

// showPeer sends a related peer as it is now, or its revocation, unless that was sent already. It returns its certificate,
// if the agent may see it.
func (s *stream) showPeer(ctx context.Context, agent identity.AgentPublic) (certificate []byte, err error) {
	a, _, err := read[agentRecord](ctx, s.store.Agents, agentKey(agent))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if a.revoked() {
		return nil, s.showRevocation(agent, a.Revocation)
	}
	if s.bare {
		return nil, nil
	}
	if related, err := s.related(ctx, s.agent, agent); err != nil || !related {
		return a.Certificate, err
	}
	p, err := s.view(ctx, s.agent, agent, a)
	if err != nil {
		return nil, err
	}
	return p.Certificate, s.sendOnce(agent, api.Event{Type: api.EventPeer, Peer: &p})
}

// showRelays sends the list of relays, unless that was sent already.
func (s *stream) showRelays(ctx context.Context) error {
	list, err := s.relays(ctx)
	if err != nil {
		return err
	}
	return s.sendOnce(identity.AgentPublic{}, api.Event{Type: api.EventRelays, Relays: list})
}

// showRevocations sends a relay those that concern certificates which may still be valid.
func (s *stream) showRevocations(ctx context.Context) error {
	entries, err := s.store.Agents.List(ctx, "*")
	if err != nil {
		return err
	}
	for _, e := range entries {
		keys, ok := parseKeys(e.Key, 1)
		var a agentRecord
		if !ok || decodeEntry(e.Value, &a) != nil || !a.revoked() {
			continue
		}
		r, err := identity.OpenRevocation(a.Revocation, s.network.Authority)
		if err != nil || s.now().Sub(r.Time) > 2*ca.Life {
			continue
		}
		if err := s.showRevocation(keys[0], a.Revocation); err != nil {
			return err
		}
	}
	return nil
}

// showRevocation sends a revocation, unless that was sent already. A relay gets it without its reason, which people wrote and
// which may name somebody.
func (s *stream) showRevocation(agent identity.AgentPublic, raw []byte) error {
	if s.bare {
		r, err := identity.OpenRevocation(raw, s.network.Authority)
		if err == nil {
			r, err = s.ca.Revoke(r.Agent, r.Serial, "", r.Time)
		}
		if err != nil {
			return err
		}
		raw = r.Raw()
	}
	return s.sendOnce(agent, api.Event{Type: api.EventRevocation, Revocation: raw})
}

func (s *stream) sendOnce(agent identity.AgentPublic, e api.Event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	if s.shown[agent] == sum {
		return nil
	}
	s.shown[agent] = sum
	return s.send(e)
}

func (s *stream) showConsent(c consentRecord, other []byte) error {
	return s.send(api.Event{Type: api.EventConsent, Consent: &api.ConsentEntry{
		Consent: c.Consent, Acceptance: c.Acceptance, Other: other,
	}})
}
