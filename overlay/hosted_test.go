// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// hostedNode is a node of two agents, each behind a device of its own.
func (w *world) hostedNode(at string) (n *node, guest *agent, dev *tun.Memory) {
	n, guest, dev = w.idleNode(w.agent(), at), w.agent(), tun.NewMemory("mem1", 1420)
	n.o = must(New(Options{Network: w.authority.Public(), Device: n.dev, Hosted: dev, Underlay: n.port, Stack: n.stack}))
	n.state.Locals = append(n.state.Locals, guest.local())
	n.state.Self = []netip.AddrPort{netip.MustParseAddrPort(at)}
	n.run()
	return n, guest, dev
}

func wantFrom(t *testing.T, dev *tun.Memory, p []byte) {
	t.Helper()
	select {
	case got := <-dev.Sent():
		if !bytes.Equal(got, p) {
			t.Fatalf("got %x\nwant %x", got, p)
		}
	case <-time.After(time.Second):
		t.Fatal("no packet came")
	}
}

func allow(peers ...*agent) *policy.Compiled {
	var rules []policy.Rule
	for _, p := range peers {
		rules = append(rules, policy.Rule{Peer: p.key.Public(), Addr: p.addr, Inbound: &policy.Grant{}, Outbound: &policy.Grant{}})
	}
	return policy.Compile(rules)
}

// Agents of one node have sessions of their own with a peer, and each gets its own packets and errors.
func TestHostedAgentsAreApart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, guest, dev := w.hostedNode(addrA)
		b := w.node(addrB)
		a.state.Peers = []Peer{{Agent: b.key.Public(), Addr: b.addr, Tunnel: b.stmt, Candidates: []netip.AddrPort{b.port.addr}}}
		a.state.Policy = map[identity.AgentPublic]*policy.Compiled{guest.key.Public(): allow(b.agent)}
		if err := a.o.Set(a.state); err != nil {
			t.Fatal(err)
		}
		b.state.Peers = []Peer{{Agent: guest.key.Public(), Addr: guest.addr, Tunnel: guest.stmt, Candidates: []netip.AddrPort{a.port.addr}}}
		b.state.Policy = map[identity.AgentPublic]*policy.Compiled{b.key.Public(): allow(guest)}
		if err := b.o.Set(b.state); err != nil {
			t.Fatal(err)
		}
		p := udpPacket(guest.addr, b.addr, 1, 2, "from the guest")
		dev.Inject(p)
		b.want(time.Second, p)
		back := udpPacket(b.addr, guest.addr, 2, 1, "to the guest")
		b.dev.Inject(back)
		wantFrom(t, dev, back)
		a.silent(time.Second)

		// The first agent has no consent, whatever the second one has, and its error comes to itself.
		q := tcpPacket(a.addr, b.addr, 1000, 443, packet.SYN)
		a.dev.Inject(q)
		a.wantError(time.Second, packet.AdminProhibited, q)
		if e, ok := nextEvent[UnknownPeer](a, time.Second); !ok || e.Local != a.key.Public() || e.Addr != b.addr {
			t.Errorf("event %+v %v", e, ok)
		}
		select {
		case p := <-dev.Sent():
			t.Errorf("the guest got %x", p)
		default:
		}
		for _, l := range a.o.Status().Peers {
			if l.Local != guest.key.Public() {
				t.Errorf("a link that no rule names: %+v", l)
			}
		}
	})
}

// Two agents of one node talk through a session, under the rules of both, as if they were on two.
func TestHostedAgentsTalk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, guest, dev := w.hostedNode(addrA)
		set := func(first, second *policy.Compiled) {
			t.Helper()
			a.state.Peers = []Peer{
				{Agent: a.key.Public(), Addr: a.addr, Tunnel: a.stmt}, {Agent: guest.key.Public(), Addr: guest.addr, Tunnel: guest.stmt},
			}
			a.state.Policy = map[identity.AgentPublic]*policy.Compiled{a.key.Public(): first, guest.key.Public(): second}
			if err := a.o.Set(a.state); err != nil {
				t.Fatal(err)
			}
		}
		set(allow(), allow(a.agent))
		p := udpPacket(a.addr, guest.addr, 1, 2, "refused")
		a.dev.Inject(p)
		a.wantError(5*time.Second, packet.AdminProhibited, p)

		set(allow(guest), allow(a.agent))
		p = udpPacket(a.addr, guest.addr, 1, 2, "next door")
		a.dev.Inject(p)
		wantFrom(t, dev, p)
		back := udpPacket(guest.addr, a.addr, 2, 1, "and back")
		dev.Inject(back)
		a.want(time.Second, back)
	})
}

// carried is an underlay that notes over which relays, and to whom there, datagrams are sent.
type carried struct {
	*port
	to chan underlay.Path
}

func (c carried) Send(p underlay.Path, datagrams [][]byte) error {
	if p.Relay == 0 {
		return c.port.Send(p, datagrams)
	}
	c.to <- p
	return nil
}

// A relay knows the agents of a node by the name of the first one.
func TestCarrierIsWhereRelaysKnowThePeer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, peer, carrier := w.idleNode(w.agent(), addrA), w.agent(), w.agent()
		under := carried{a.port, make(chan underlay.Path, 1024)}
		a.o = must(New(Options{Network: w.authority.Public(), Device: a.dev, Underlay: under}))
		a.run()
		a.state.Peers = []Peer{{Agent: peer.key.Public(), Addr: peer.addr, Tunnel: peer.stmt, Relays: []uint32{7}, Carrier: carrier.addr}}
		a.state.Policy = map[identity.AgentPublic]*policy.Compiled{a.key.Public(): allow(peer)}
		if err := a.o.Set(a.state); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = a.o.Ping(ctx, a.key.Public(), peer.addr)
		if p := <-under.to; p != (underlay.Path{Remote: netip.AddrPortFrom(carrier.addr, 0), Relay: 7}) {
			t.Errorf("sent to %v", p)
		}
	})
}

// What didn't change is not checked again: see noise.Machine.SetLocals.
func BenchmarkSetWithManyAgents(b *testing.B) {
	w := newWorld(b)
	n := w.idleNode(w.agent(), addrA)
	n.state.Policy = map[identity.AgentPublic]*policy.Compiled{}
	for range 200 {
		a := w.agent()
		n.state.Locals = append(n.state.Locals, a.local())
		n.state.Peers = append(n.state.Peers, Peer{Agent: a.key.Public(), Addr: a.addr, Tunnel: a.stmt})
		n.state.Policy[a.key.Public()] = allow(n.agent)
	}
	for b.Loop() {
		if err := n.o.Set(n.state); err != nil {
			b.Fatal(err)
		}
	}
}
