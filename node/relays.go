// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/underlay"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

const (
	// maxRelays bounds how many relays are kept of what the coordinator lists.
	maxRelays = 64
	// maxPeerRelays bounds over how many relays a peer is tried.
	maxPeerRelays = 4
)

// setRelays takes in the network's relays: the whole list, of which only what the authority signed is kept. A list in which
// nothing is right leaves those that are known.
func (b *book) setRelays(list [][]byte) (changed bool, err error) {
	var next []identity.RelayStatement
	for _, raw := range list {
		r, bad := identity.OpenRelayStatement(raw, b.network)
		if bad != nil {
			err = errors.Join(err, bad)
			continue
		}
		if known, ok := b.relay(r.ID()); ok && known.Key == r.Key && known.Serial > r.Serial {
			r = known // an older word doesn't undo a newer one
		}
		if len(next) < maxRelays && !slices.ContainsFunc(next, func(o identity.RelayStatement) bool { return o.ID() == r.ID() }) {
			next = append(next, r)
		}
	}
	if len(next) == 0 && err != nil || slices.EqualFunc(next, b.relays, sameRelay) {
		return false, err
	}
	b.relays = next
	return true, err
}

func sameRelay(x, y identity.RelayStatement) bool { return bytes.Equal(x.Raw(), y.Raw()) }

// relay returns the relay with a short name.
func (b *book) relay(id uint32) (identity.RelayStatement, bool) {
	for _, r := range b.relays {
		if r.ID() == id {
			return r, true
		}
	}
	return identity.RelayStatement{}, false
}

// relayName is how people know a relay, empty where it isn't in the list.
func (b *book) relayName(id uint32) string {
	r, _ := b.relay(id)
	return r.Name
}

// usableRelays lists those that may carry this node's traffic now: what the authority vouches for, and nothing under a
// jurisdiction that this node avoids.
func (b *book) usableRelays(avoid []string, now time.Time) (list []identity.RelayStatement) {
	for _, r := range b.relays {
		if r.ValidAt(now) == nil && !avoids(avoid, r.Jurisdiction) {
			list = append(list, r)
		}
	}
	return list
}

func avoids(labels []string, jurisdiction string) bool {
	return jurisdiction != "" && slices.Contains(labels, jurisdiction)
}

// relayPlan decides over which relays a peer is tried.
type relayPlan struct {
	usable map[uint32]bool
	all    []uint32 // the usable ones, as the coordinator lists them
	ours   []uint32 // those at which this node is, home first
}

func newRelayPlan(usable []identity.RelayStatement, here underlay.Status) relayPlan {
	p := relayPlan{usable: make(map[uint32]bool, len(usable)), ours: selfRelays(here)}
	for _, r := range usable {
		p.usable[r.ID()] = true
		p.all = append(p.all, r.ID())
	}
	return p
}

// of lists the relays at which a peer says it is; then those at which this node is, since the peer may have moved there
// while nobody could tell.
func (p relayPlan) of(keys []identity.AgentPublic) (list []uint32) {
	add := func(id uint32) {
		if p.usable[id] && len(list) < maxPeerRelays && !slices.Contains(list, id) {
			list = append(list, id)
		}
	}
	for _, k := range keys {
		add(identity.RelayID(k))
	}
	for _, id := range p.ours {
		add(id)
	}
	if len(list) == 0 { // in the first second of a node, or of its peer, neither knows where it will be at home
		for _, id := range p.all {
			add(id)
		}
	}
	return list
}

// selfRelays lists the relays at which this node is, home first.
func selfRelays(here underlay.Status) (list []uint32) {
	for _, r := range homeFirst(here) {
		list = append(list, r.ID)
	}
	return list
}

// relayKeys lists the keys of the relays at which this node is, home first. homeOnly leaves out those that it is at for
// some peers' sake.
func relayKeys(here underlay.Status, homeOnly bool) (list []identity.AgentPublic) {
	for _, r := range homeFirst(here) {
		if !homeOnly || r.Home {
			list = append(list, r.Key)
		}
	}
	return list
}

func homeFirst(here underlay.Status) (list []underlay.RelayStatus) {
	for _, r := range here.Relays {
		if r.Home {
			list = slices.Insert(list, 0, r)
		} else if r.Connected {
			list = append(list, r)
		}
	}
	return list[:min(len(list), maxPeerRelays)]
}

// selfAddrs lists where this node may be reached directly.
func selfAddrs(here underlay.Status) (list []netip.AddrPort) {
	for _, e := range here.Endpoints {
		list = append(list, e.Addr)
	}
	return list
}

// bindLimit is how long a relay that is connected may take to be reached by UDP too, before UDP counts as blocked.
const bindLimit = 10 * time.Second

// natKind sums up what the underlay found out.
func natKind(here underlay.Status, now time.Time) paths.NAT {
	switch {
	case here.NAT.Mapping.Hard():
		return paths.NATHard
	case here.NAT.Mapping == stun.EndpointIndependent:
		return paths.NATEasy
	case here.NAT.Mapping == stun.None:
		return paths.NATNone
	}
	kind := paths.NATUnknown
	for _, r := range here.Relays {
		switch {
		case !r.Connected:
		case r.Transport == "udp":
			return paths.NATUnknown
		case now.Sub(r.Since) >= bindLimit:
			kind = paths.NATBlocked // a relay is reached, and none by UDP
		}
	}
	return kind
}
