// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/underlay"
)

// ErrState is wrapped by errors of Set about a State that contradicts itself.
var ErrState = errors.New("overlay: invalid state")

// State is everything that the overlay is told. Set takes a copy of it, but not of what its pointers point to.
type State struct {
	Prefix  netip.Prefix  // the network's /48
	Locals  []noise.Local // the node's agents; the first is the one that pings, and the one behind Options.Device
	Peers   []Peer
	Policy  map[identity.AgentPublic]*policy.Compiled // by local agent; an agent without one talks to nobody
	Revoked map[identity.AgentPublic]uint64           // certificates of the agent up to this serial are void

	Self       []netip.AddrPort // where this node may be reached: peers are told
	SelfRelays []uint32         // identity.RelayID of the relays at which it is, home first: peers are told
	NAT        paths.NAT        // what is known of ours
}

// Peer is another agent.
type Peer struct {
	Agent      identity.AgentPublic
	Addr       netip.Addr
	Tunnel     identity.TunnelStatement // zero: not known yet
	Candidates []netip.AddrPort         // where it may be reached
	Relays     []uint32                 // identity.RelayID of the relays at which it is, home first
	Carrier    netip.Addr               // the address that relays know its node by; zero: its own
	Offline    bool                     // the coordinator does not see it: fail at once where there is no session
}

// snapshot is a State made ready for look-ups. It is immutable.
type snapshot struct {
	generation uint64
	prefix     netip.Prefix
	service    [16]byte
	locals     map[[16]byte]identity.AgentPublic
	first      packet.Addresses // source half: the first agent
	peers      map[identity.AgentPublic]*Peer
	policy     map[identity.AgentPublic]*policy.Compiled
	revoked    map[identity.AgentPublic]uint64
	self       []netip.AddrPort
	selfRelays []uint32
	nat        paths.NAT
	routes     map[packet.Addresses]route // by local and remote address
}

// route is what a packet from a local agent to a peer needs.
type route struct {
	link  *link
	rules *policy.Compiled
}

func emptySnapshot(network identity.AuthorityPublic) *snapshot {
	prefix := identity.NetworkPrefix(network)
	return &snapshot{prefix: prefix, service: identity.ServiceAddress(prefix).As16()}
}

func addresses(from, to netip.Addr) (a packet.Addresses) {
	f, t := from.As16(), to.As16()
	copy(a[:16], f[:])
	copy(a[16:], t[:])
	return a
}

// compile checks the state and makes it a snapshot. Links that are in the old one are kept.
func (o *Overlay) compile(st State, old *snapshot, generation uint64) (*snapshot, error) {
	if st.Prefix != identity.NetworkPrefix(o.network) {
		return nil, fmt.Errorf("%w: %v is not the network's prefix", ErrState, st.Prefix)
	}
	s := &snapshot{
		generation: generation, prefix: st.Prefix, service: identity.ServiceAddress(st.Prefix).As16(),
		locals:  make(map[[16]byte]identity.AgentPublic, len(st.Locals)),
		peers:   make(map[identity.AgentPublic]*Peer, len(st.Peers)),
		policy:  maps.Clone(st.Policy),
		revoked: maps.Clone(st.Revoked),
		self:    slices.Clone(st.Self), selfRelays: slices.Clone(st.SelfRelays), nat: st.NAT,
		routes: make(map[packet.Addresses]route, len(st.Locals)*len(st.Peers)),
	}
	for i, l := range st.Locals {
		addr := identity.Address(o.network, l.Agent)
		s.locals[addr.As16()] = l.Agent
		if i == 0 {
			s.first = addresses(addr, netip.IPv6Unspecified())
		}
	}
	for _, p := range st.Peers {
		// Derived again here: whatever the coordinator says, an address belongs to one key.
		if p.Addr != identity.Address(o.network, p.Agent) {
			return nil, fmt.Errorf("%w: %v is not the address of %v", ErrState, p.Addr, p.Agent)
		}
		if identity.Reserved(st.Prefix, p.Addr) {
			return nil, fmt.Errorf("%w: %v has a reserved address", ErrState, p.Agent)
		}
		if !p.Tunnel.Tunnel.IsZero() && (p.Tunnel.Agent != p.Agent || p.Tunnel.Network != o.network) {
			return nil, fmt.Errorf("%w: the tunnel statement is not %v's", ErrState, p.Agent)
		}
		if _, twice := s.peers[p.Agent]; twice {
			return nil, fmt.Errorf("%w: %v is there twice", ErrState, p.Agent)
		}
		p.Candidates, p.Relays = slices.Clone(p.Candidates), slices.Clone(p.Relays)
		s.peers[p.Agent] = &p
		for _, l := range st.Locals {
			r := route{rules: s.policy[l.Agent]}
			if l.Agent == p.Agent || !r.rules.Knows(p.Addr) {
				continue // what is sent there is answered as if nobody lived there
			}
			key := addresses(identity.Address(o.network, l.Agent), p.Addr)
			if r.link = old.routes[key].link; r.link == nil {
				r.link = newLink(l.Agent, p.Agent, p.Addr, key)
			}
			s.routes[key] = r
		}
	}
	return s, nil
}

// admitted says why there may be no session between a route's ends, or "".
func (s *snapshot) admitted(r route, serial uint64, now moment) Reason {
	if upTo, ok := s.revoked[r.link.remote]; ok && serial <= upTo {
		return ReasonRevoked
	}
	if !r.rules.Trusted(r.link.addr, now.wall) {
		return ReasonNotTrusted
	}
	return ""
}

// Set replaces the state. Flows and sessions that it no longer allows have ended when Set returns: the other side is
// told, and programs get errors. It fails, changing nothing, with ErrState or an error of package noise.
func (o *Overlay) Set(st State) error {
	now := o.now()
	o.mu.Lock()
	defer o.unlock()
	old := o.snap.Load()
	next, err := o.compile(st, old, o.control.generation+1)
	if err != nil {
		return err
	}
	if err := o.noise.SetLocals(st.Locals); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	o.control.generation++
	o.snap.Store(next)
	for key, r := range old.routes {
		if _, kept := next.routes[key]; !kept {
			o.endLocked(r.link, ReasonNotTrusted, now)
		}
	}
	moved := !slices.Equal(old.self, next.self) || !slices.Equal(old.selfRelays, next.selfRelays) || old.nat != next.nat
	for _, r := range next.routes {
		l := r.link
		l.recordLocked(next.peers[l.remote], now)
		if l.current.Load() != nil {
			o.learnLocked(l, now)
			if moved {
				l.paths.Changed()
			}
		}
		// What failed may work now.
		l.refused = 0
		if peerChanged(old.peers[l.remote], next.peers[l.remote]) {
			l.failed = 0
			l.attempt.next = min(l.attempt.next, now.at)
		}
		if l.busyLocked() {
			if reason := next.admitted(r, l.serialLocked(), now); reason != "" {
				o.endLocked(l, reason, now)
			}
			o.scheduleLocked(l, now.at)
		}
	}
	return nil
}

func peerChanged(a, b *Peer) bool {
	return a == nil || b == nil || a.Offline != b.Offline || a.Tunnel.Tunnel != b.Tunnel.Tunnel ||
		!slices.Equal(a.Candidates, b.Candidates) || !slices.Equal(a.Relays, b.Relays)
}

// Call says that an agent wants to be reached by a local one, and where: a signal came from it, which the caller has
// verified. The local agent reaches out at once: with a new session, or along the paths of the one that it has. An agent that
// is not in the State is ignored, and so is one that called within the last second.
func (o *Overlay) Call(local, agent identity.AgentPublic, candidates []netip.AddrPort, relays []uint32) {
	now := o.now()
	o.mu.Lock()
	defer o.unlock()
	r, ok := o.snap.Load().routes[addresses(identity.Address(o.network, local), identity.Address(o.network, agent))]
	if !ok || o.control.ended || !r.rules.Trusted(r.link.addr, now.wall) {
		return
	}
	l := r.link
	signal := &l.said[saidInSignal]
	if signal.at != 0 && now.at-signal.at < pauseBetween {
		return // whoever calls more often gets no more
	}
	*signal = said{at: now.at, candidates: slices.Clone(candidates), relays: slices.Clone(relays)}
	l.failed = 0
	switch {
	case l.attempt.active:
		l.attempt.next = now.at
	case l.current.Load() != nil:
		o.learnLocked(l, now)
		l.paths.Told(now.at)
	case l.pending == nil:
		o.beginLocked(l, now)
	}
	o.scheduleLocked(l, now.at)
}

// Gone says that a relay told that nobody is connected to it who has the address of a path over it. If that is the path in use
// to a peer the peer is asked along it at once: a relay that lies gains nothing, and one that does not saves seconds.
func (o *Overlay) Gone(p underlay.Path) {
	now := o.now()
	o.mu.Lock()
	defer o.unlock()
	snap := o.snap.Load()
	for _, r := range snap.routes {
		if l := r.link; l.carrier(snap) == p.Remote.Addr() && l.current.Load() != nil {
			l.paths.Gone(now.at, p)
			o.scheduleLocked(l, now.at)
		}
	}
}

// Refresh says that this node's own addresses changed, or that the host woke. All paths to each peer with a session are asked
// at once; one that does not answer soon is called anew at all its addresses.
func (o *Overlay) Refresh() {
	now := o.now()
	o.mu.Lock()
	defer o.unlock()
	for _, r := range o.snap.Load().routes {
		l := r.link
		if l.current.Load() != nil {
			l.paths.Refresh(now.at)
			o.restartLocked(l, now)
			o.actLocked(l, now)
			l.refresh = now.at
			o.scheduleLocked(l, now.at+refreshPatience)
		} else if l.attempt.active {
			l.attempt.next = now.at
			o.scheduleLocked(l, now.at)
		}
	}
}
