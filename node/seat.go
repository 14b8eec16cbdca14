// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/netstack"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/policy"
)

// seat is one agent's place in an engine, which all agents of a daemon share. The first seat is the daemon's own agent's: its
// plan says where the node is, which relays it uses and what names it answers. What the others plan is theirs alone.
type seat struct {
	engine  *engine
	agent   identity.AgentPublic
	sockets sockets
	events  chan overlay.Event // of this agent's sessions
	moved   chan struct{}      // one slot: this host moved or slept
	place   chan struct{}      // one slot: where the node is reached may have changed

	plan    plan // guarded by engine.mu
	planned bool // guarded by engine.mu
}

// seatEvents is how many events wait for an agent. Those that find no room are lost, as in package overlay.
const seatEvents = 64

// sit gives an agent a place. The first one comes with the engine's device; the others have addresses of a stack in this
// process.
func (e *engine) sit(agent identity.AgentPublic, network identity.AuthorityPublic) (*seat, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &seat{
		engine: e, agent: agent, events: make(chan overlay.Event, seatEvents), moved: make(chan struct{}, 1), place: make(chan struct{}, 1),
	}
	address := identity.Address(network, agent)
	if len(e.seats) == 0 && e.user == nil {
		s.sockets = kernelSockets{self: address}
	} else {
		s.sockets = userSockets{stack: e.guests(), self: address}
	}
	e.seats = append(e.seats, s)
	if err := e.seatAddressesLocked(network); err != nil {
		e.seats = e.seats[:len(e.seats)-1]
		return nil, err
	}
	return s, nil
}

// guests is the stack of those who have no interface of the kernel's.
func (e *engine) guests() *netstack.Stack {
	if e.user != nil {
		return e.user
	}
	return e.others
}

// seatAddressesLocked gives the stack the addresses of those who live there.
func (e *engine) seatAddressesLocked(network identity.AuthorityPublic) error {
	var list []netip.Addr
	for i, s := range e.seats {
		if i > 0 || e.user != nil {
			list = append(list, identity.Address(network, s.agent))
		}
	}
	if len(list) == 0 {
		list = append(list, e.service) // a stack has an address; nothing is sent to this one
	}
	return e.guests().Set(list, []netip.Prefix{e.prefix})
}

// leave gives the place up: sessions of the agent end.
func (s *seat) leave(network identity.AuthorityPublic) error {
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seats = slices.DeleteFunc(e.seats, func(o *seat) bool { return o == s })
	if len(e.seats) == 0 || !e.seats[0].planned {
		return nil // the engine ends
	}
	if err := e.overlay.Set(e.mergedLocked()); err != nil {
		return err
	}
	if err := e.seatAddressesLocked(network); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil // the engine has ended
}

// set applies an agent's plan: first what carries packets, then what names them. One that can't be applied is forgotten: it
// must not keep the other agents' from being.
func (s *seat) set(p plan) error {
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	old, planned := s.plan, s.planned
	s.plan, s.planned = p, true
	first := e.seats[0] == s
	if first {
		e.underlay.Set(p.underlay)
	}
	if !e.seats[0].planned {
		return nil // with the first one's
	}
	if err := e.overlay.Set(e.mergedLocked()); err != nil {
		s.plan, s.planned = old, planned
		return err
	}
	if first {
		e.setNames(p)
	}
	return nil
}

// mergedLocked is what all agents' plans mean for the overlay. About a peer of several the newer statement counts: the
// coordinator may have told one of them first.
func (e *engine) mergedLocked() overlay.State {
	first := e.seats[0].plan.overlay
	st := first
	st.Locals, st.Peers = nil, nil
	st.Policy, st.Revoked = map[identity.AgentPublic]*policy.Compiled{}, map[identity.AgentPublic]uint64{}
	at := map[identity.AgentPublic]int{}
	for _, s := range e.seats {
		if !s.planned {
			continue
		}
		p := s.plan.overlay
		st.Locals = append(st.Locals, p.Locals...)
		maps.Copy(st.Policy, p.Policy)
		for agent, serial := range p.Revoked {
			st.Revoked[agent] = max(st.Revoked[agent], serial)
		}
		for _, peer := range p.Peers {
			i, known := at[peer.Agent]
			switch {
			case !known:
				at[peer.Agent] = len(st.Peers)
				st.Peers = append(st.Peers, peer)
			case newer(peer, st.Peers[i]):
				st.Peers[i] = peer
			}
		}
	}
	return st
}

// newer reports whether more is known of a peer: a later tunnel key, or that it is there.
func newer(p, than overlay.Peer) bool {
	if bytes.Equal(p.Tunnel.Raw(), than.Tunnel.Raw()) {
		return than.Offline && !p.Offline
	}
	return p.Tunnel.NotBefore.After(than.Tunnel.NotBefore)
}

// dispatch hands events to those whom they are about.
func (e *engine) dispatch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.underlay.Changes():
			e.each(func(s *seat) { poke(s.place) })
		case event := <-e.overlay.Events():
			local := localOf(event)
			e.each(func(s *seat) {
				if s.agent != local {
					return
				}
				select {
				case s.events <- event:
				default:
				}
			})
		}
	}
}

func localOf(event overlay.Event) (local identity.AgentPublic) {
	switch v := event.(type) {
	case overlay.SessionUp:
		return v.Local
	case overlay.SessionDown:
		return v.Local
	case overlay.PathChanged:
		return v.Local
	case overlay.Calling:
		return v.Local
	case overlay.HandshakeFailed:
		return v.Local
	case overlay.UnknownPeer:
		return v.Local
	}
	return local
}

// each calls f for all who have a place now.
func (e *engine) each(f func(*seat)) {
	e.mu.Lock()
	seats := slices.Clone(e.seats)
	e.mu.Unlock()
	for _, s := range seats {
		f(s)
	}
}

// hostMoved lets everything about this host be found out anew, and tells all agents.
func (e *engine) hostMoved() {
	e.underlay.Refresh()
	e.overlay.Refresh()
	e.each(func(s *seat) { poke(s.moved) })
}

// carrier is the agent in whose name the node is at its relays; zero: this one.
func (s *seat) carrier() (first identity.AgentPublic) {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	if s.engine.seats[0] != s {
		first = s.engine.seats[0].agent
	}
	return first
}

// describe says how packets get to an agent's programs.
func (s *seat) describe() (device, mode, why string) {
	if _, kernel := s.sockets.(kernelSockets); kernel {
		return s.engine.device.Name(), localapi.TUNKernel, ""
	}
	return userspaceName, localapi.TUNUserspace, s.engine.tunWhy
}
