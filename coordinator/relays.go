// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// putRelay lists a member as a relay, and keeps it listed. Its jurisdiction is that of its certificate.
func (r *registry) putRelay(ctx context.Context, c caller, req api.RelayRequest) (api.RelayListing, error) {
	a, err := r.member(ctx, c.agent)
	if err != nil {
		return api.RelayListing{}, err
	}
	if !a.relay() {
		err := fail(api.CodeForbidden, "Join by an invite with that tag: pilot invite --tag relay.", "only agents with the tag %q may be relays", api.TagRelay)
		return api.RelayListing{}, r.audit(ctx, c, "relay", c.agent.String(), "", err)
	}
	s, fresh, err := r.listRelay(ctx, identity.RelayStatement{
		Key: c.agent, Name: req.Name, Region: req.Region, Jurisdiction: a.Jurisdiction, Addresses: req.Addresses, UDP: req.UDPPort,
	})
	if fresh || err != nil {
		err = r.audit(ctx, c, "relay", c.agent.String(), "name "+req.Name, err)
	}
	return api.RelayListing{Statement: s.Raw()}, err
}

// listRelay makes a relay's presence last, and signs for it when what it says is new or the statement grows old. It
// reports whether it wasn't listed like that before.
func (r *registry) listRelay(ctx context.Context, want identity.RelayStatement) (s identity.RelayStatement, fresh bool, err error) {
	key := presenceRelay + agentKey(want.Key)
	have, _, err := read[relayRecord](ctx, r.store.Presence, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return s, false, err
	}
	last, lastErr := identity.OpenRelayStatement(have.Statement, r.network.Authority)
	same := err == nil && lastErr == nil && sameRelay(last, want)
	if same && r.now().Before(last.NotAfter.Add(ca.RenewAfter-ca.Life)) && !r.now().Before(last.NotBefore) {
		return last, false, put(ctx, r.store.Presence, key, have)
	}
	want.Serial = nextSerial(r.now(), last.Serial)
	if s, err = r.ca.Relay(want, r.now()); err != nil {
		return identity.RelayStatement{}, false, badStatement(err)
	}
	if !same {
		if err := r.nameRelay(ctx, want.Name, want.Key); err != nil {
			return identity.RelayStatement{}, false, err
		}
	}
	return s, !same, put(ctx, r.store.Presence, key, relayRecord{Statement: s.Raw()})
}

func sameRelay(a, b identity.RelayStatement) bool {
	return a.Name == b.Name && a.Region == b.Region && a.Jurisdiction == b.Jurisdiction && a.UDP == b.UDP &&
		slices.Equal(a.Addresses, b.Addresses)
}

// nameRelay gives a name to a relay, unless another that is up has it.
func (r *registry) nameRelay(ctx context.Context, name string, key identity.AgentPublic) error {
	_, err := update(ctx, r.updater, r.store.Bindings, relayNameKey(name), func(b *binding, exists bool) error {
		if exists && b.Agent == key {
			return errUnchanged
		}
		if exists {
			other, _, err := read[relayRecord](ctx, r.store.Presence, presenceRelay+agentKey(b.Agent))
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			s, openErr := identity.OpenRelayStatement(other.Statement, r.network.Authority)
			if r.now().Sub(b.Since) < reservation || err == nil && openErr == nil && s.Name == name {
				return fail(api.CodeNameTaken, "Choose another name.", "the name %q belongs to another relay", name)
			}
		}
		*b = binding{Agent: key, Since: r.now()}
		return nil
	})
	return err
}

// unlistRelay takes a relay that ends off the list at once.
func (r *registry) unlistRelay(ctx context.Context, relay identity.AgentPublic) error {
	key := presenceRelay + agentKey(relay)
	_, revision, err := read[relayRecord](ctx, r.store.Presence, key)
	if err == nil {
		err = r.store.Presence.Delete(ctx, key, revision)
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// relays lists the statements of the relays that are up and hold now, always in the same order.
func (r *registry) relays(ctx context.Context) ([][]byte, error) {
	entries, err := r.store.Presence.List(ctx, presenceRelay+"*")
	if err != nil {
		return nil, err
	}
	list := [][]byte{}
	for _, e := range entries {
		var v relayRecord
		if decodeEntry(e.Value, &v) != nil {
			continue
		}
		s, err := identity.OpenRelayStatement(v.Statement, r.network.Authority)
		if err != nil || s.ValidAt(r.now()) != nil {
			continue
		}
		if a, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(s.Key)); err == nil && a.revoked() {
			continue
		}
		list = append(list, v.Statement)
	}
	slices.SortFunc(list, bytes.Compare)
	return list, nil
}
