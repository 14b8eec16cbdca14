// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"net/netip"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/portmap"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

// State is what the underlay is told. It is immutable once it was given to Set.
type State struct {
	Network identity.AuthorityPublic
	Key     identity.AgentKey         // proves to relays who calls
	Pass    []byte                    // of the key's agent; relays serve those who have one
	Prefix  netip.Prefix              // of the overlay: no endpoint is in it
	Hosts   []netip.Addr              // addresses of this host's interfaces
	Relays  []identity.RelayStatement // those that this node may use, none of a jurisdiction that it avoids
}

// Kind says how this host knows that it can be reached at an endpoint.
type Kind string

// Kinds of endpoints.
const (
	KindHost      Kind = "host"      // an interface has the address
	KindReflexive Kind = "reflexive" // others see this host there
	KindMapped    Kind = "mapped"    // the gateway was asked to forward it
)

// Endpoint is an address at which others may reach this host.
type Endpoint struct {
	Addr netip.AddrPort
	Kind Kind
}

// NAT is what is known of the translators and filters between this host and the internet.
type NAT struct {
	Mapping   stun.Behaviour // with one relay, an address-dependent one counts as endpoint-independent
	Filtering stun.Behaviour
}

// RelayStatus is how things stand with one relay.
type RelayStatus struct {
	ID           uint32
	Key          identity.AgentPublic
	Name         string
	Region       string
	Jurisdiction string
	Home         bool          // where others find this host
	Connected    bool          // it forwards datagrams for this host now
	Transport    string        // "udp", "tls" or "proxy"; empty: not connected
	RTT          time.Duration // 0: not known
	Since        time.Time     // of the present connection
	Err          string        // why it is not connected
}

// Status is what the underlay knows of this host's place in the network.
type Status struct {
	Port      uint16
	Endpoints []Endpoint // in the order in which others should try
	Relays    []RelayStatus
	Home      uint32 // the home relay's ID; 0: none
	NAT       NAT
}

// maxEndpoints bounds what others are told: an agent's record has no room for more.
const maxEndpoints = 16

// reservedEndpoints is how many of them are not for the interfaces' addresses.
const reservedEndpoints = 3

// Set tells the underlay what it is part of. It returns at once.
func (u *Underlay) Set(s State) {
	old := u.state.Swap(&s)
	u.relays.set(&s)
	if !sameRelays(old, &s) || !slices.Equal(old.Hosts, s.Hosts) {
		u.poke()
	}
	u.publish()
}

// sameRelays reports whether two states ask the same servers.
func sameRelays(a, b *State) bool {
	return a.Key.IsZero() == b.Key.IsZero() && slices.EqualFunc(a.Relays, b.Relays, func(x, y identity.RelayStatement) bool {
		return x.Key == y.Key && x.UDP == y.UDP && slices.Equal(x.Addresses, y.Addresses)
	})
}

// poke lets gather begin anew.
func (u *Underlay) poke() {
	select {
	case u.regather <- struct{}{}:
	default:
	}
}

// Status returns what is known now. It does not wait.
func (u *Underlay) Status() Status { return *u.status.Load() }

// Changes delivers a value when Status has changed in what others should be told. It has one slot and is never closed.
func (u *Underlay) Changes() <-chan struct{} { return u.changes }

// maxGone is how many words of relays wait. One that is lost comes again with the next datagram.
const maxGone = 16

// Gone delivers paths over a relay which told, after something was sent along one, that nobody with its address is connected
// to it. That is what the relay says, and nothing else bears it out.
func (u *Underlay) Gone() <-chan Path { return u.gone }

func (u *Underlay) putGone(p Path) {
	select {
	case u.gone <- p:
	default:
	}
}

// Refresh says that this host moved to another network, or slept: what was found out is found out anew. It returns at once.
func (u *Underlay) Refresh() {
	u.found.Store(&findings{})
	u.relays.refresh()
	if u.mapper != nil {
		u.mapper.Refresh()
	}
	u.poke()
	u.publish()
}

// publish makes a new Status and says so if it differs.
func (u *Underlay) publish() {
	u.publishing.Lock()
	defer u.publishing.Unlock()
	found := u.found.Load()
	next := Status{Port: u.port, Home: u.relays.homeID(), Relays: u.relays.status(), NAT: found.nat()}
	next.Endpoints = endpoints(u.state.Load(), u.port, u.mapping().External, u.relays.observed(), found)
	old := u.status.Swap(&next)
	if !slices.Equal(old.Endpoints, next.Endpoints) || old.Home != next.Home || old.NAT != next.NAT {
		select {
		case u.changes <- struct{}{}:
		default:
		}
	}
}

// mapping is what the gateway forwards.
func (u *Underlay) mapping() portmap.Mapping {
	if u.mapper == nil {
		return portmap.Mapping{}
	}
	return u.mapper.Mapping()
}

// endpoints lists where this host may be reached. What a relay sees goes before what was found by asking, which may be older.
func endpoints(s *State, port uint16, mapped netip.AddrPort, observed []netip.AddrPort, found *findings) (list []Endpoint) {
	add := func(a netip.AddrPort, k Kind) {
		a = unmapped(a)
		same := func(e Endpoint) bool { return e.Addr == a }
		if a.IsValid() && a.Port() != 0 && !s.Prefix.Contains(a.Addr()) && len(list) < maxEndpoints && !slices.ContainsFunc(list, same) {
			list = append(list, Endpoint{Addr: a, Kind: k})
		}
	}
	var seen4, seen6 bool
	reflexive := func(a netip.AddrPort) {
		seen := &seen6
		if a = unmapped(a); a.Addr().Is4() {
			seen = &seen4
		}
		if a.IsValid() && !*seen {
			*seen = true
			add(a, KindReflexive)
		}
	}
	for _, a := range s.Hosts[:min(len(s.Hosts), maxEndpoints-reservedEndpoints)] {
		add(netip.AddrPortFrom(a, port), KindHost)
	}
	add(mapped, KindMapped)
	for _, a := range observed {
		reflexive(a)
	}
	reflexive(found.v4.reflexive())
	reflexive(found.v6.reflexive())
	return list
}
