// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
)

const (
	addrA  = "192.0.2.1:7745"
	addrB  = "192.0.2.2:7745"
	addrC  = "192.0.2.3:7745"
	addrB2 = "198.51.100.2:7745"
)

func TestPacketsCross(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		out := udpPacket(a.addr, b.addr, 1000, 53, "question")
		a.dev.Inject(out)
		b.want(time.Second, out)
		back := udpPacket(b.addr, a.addr, 53, 1000, "answer")
		b.dev.Inject(back)
		a.want(time.Second, back)
		if e, ok := nextEvent[SessionUp](a, 0); !ok || e.Agent != b.key.Public() || e.Path.Remote.String() != addrB {
			t.Errorf("event %+v %v", e, ok)
		}
		synctest.Wait() // the loop counts what it has delivered
		st := a.o.Status().Peers[0]
		if st.State != StateUp || st.TxPackets != 1 || st.RxPackets != 1 || st.TxBytes != uint64(len(out)) || st.RxBytes != uint64(len(back)) {
			t.Errorf("status %+v", st)
		}
	})
}

// The first packet takes the handshake's round trip and its own way, no more.
func TestFirstPacketTakesThreeTrips(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		start := time.Now()
		p := udpPacket(a.addr, b.addr, 1000, 53, "question")
		a.dev.Inject(p)
		b.want(time.Second, p)
		if took := time.Since(start); took != 3*latency {
			t.Errorf("%v on a wire of %v", took, latency)
		}
	})
}

func TestEachDenialIsAnsweredAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c, d := w.node(addrA), w.node(addrB), w.node(addrC), w.agent()
		a.know(b, &policy.Grant{}, nil)
		a.know(c, &policy.Grant{}, &policy.Grant{Ports: []identity.PortRange{{Proto: 6, First: 80, Last: 80}}})
		a.set()
		reserved := a.state.Prefix.Addr().Next()
		for _, tt := range []struct {
			to   netip.Addr
			code packet.Code
			drop string
		}{
			{b.addr, packet.AdminProhibited, "denied-out-no-consent-peer"},
			{c.addr, packet.AdminProhibited, "denied-out-port-denied"},
			{d.addr, packet.AdminProhibited, "unknown-peer"},
			{reserved, packet.NoRoute, "no-route"},
			{netip.MustParseAddr("2001:db8::1"), packet.NoRoute, "no-route"},
		} {
			start := time.Now()
			p := tcpPacket(a.addr, tt.to, 1000, 443, packet.SYN)
			a.dev.Inject(p)
			a.wantError(time.Second, tt.code, p)
			if took := time.Since(start); took != 0 {
				t.Errorf("%v: after %v", tt.to, took)
			}
			if a.drops(tt.drop) == 0 {
				t.Errorf("%v: %v", tt.to, a.o.Status().Drops)
			}
		}
		if e, ok := nextEvent[UnknownPeer](a, 0); !ok || e.Addr != d.addr {
			t.Errorf("event %v %v", e, ok)
		}
		if e, ok := nextEvent[UnknownPeer](a, time.Second); ok {
			t.Errorf("one more event: %v", e)
		}
		if len(w.datagrams()) != 0 {
			t.Errorf("%d datagrams left", len(w.datagrams()))
		}
	})
}

// The kernel may have missed the first one: see echo.go.
func TestErrorAboutSYNIsRepeated(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		a.know(b, nil, &policy.Grant{}).set()
		syn := tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)
		start := time.Now()
		a.dev.Inject(syn)
		for _, at := range []time.Duration{0, echoFirst, echoFirst + echoSecond} {
			a.wantError(time.Second, packet.AdminProhibited, syn)
			if took := time.Since(start); took != at {
				t.Errorf("after %v, want %v", took, at)
			}
		}
		a.silent(time.Second)
		udp := udpPacket(a.addr, b.addr, 1000, 80, "")
		a.dev.Inject(udp)
		a.wantError(0, packet.AdminProhibited, udp)
		a.silent(time.Second)
		for range 3 * echoLimit { // bounded, and limited by destination before
			a.dev.Inject(syn)
		}
		got := 0
		for a.recv(time.Second) != nil {
			got++
		}
		if got == 0 || got > 3*40 {
			t.Errorf("%d errors", got)
		}
		if a.o.echoes.used != 0 {
			t.Errorf("%d wait", a.o.echoes.used)
		}
	})
}

func TestRunningConnectionIsReset(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		a.know(b, &policy.Grant{}, nil).set()
		a.dev.Inject(tcpPacket(a.addr, b.addr, 1000, 80, packet.ACK))
		p := a.recv(time.Second)
		var info packet.Info
		if err := packet.Parse(p, &info); err != nil || info.TCPFlags != packet.RST || info.DstPort != 1000 {
			t.Errorf("got %x, %v", p, err)
		}
	})
}

func TestWhatIsNotForUsIsDropped(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		group := netip.MustParseAddr("ff02::2")
		for _, tt := range []struct {
			p    []byte
			drop string
		}{
			{udpPacket(a.addr, group, 1, 2, ""), "not-unicast"},
			{udpPacket(b.addr, b.addr, 1, 2, ""), "source-not-local"},
			{[]byte{0x45, 0, 0, 0}, "malformed"},
			{ipPacket(a.addr, b.addr, packet.Routing, make([]byte, 24)), "routing-header"},
		} {
			a.dev.Inject(tt.p)
			a.silent(time.Second)
			if a.drops(tt.drop) != 1 {
				t.Errorf("%s: %v", tt.drop, a.o.Status().Drops)
			}
		}
		big := udpPacket(a.addr, b.addr, 1, 2, string(make([]byte, 1400)))
		a.dev.Inject(big)
		e := a.recv(time.Second)
		if e == nil || e[40] != packet.TypeTooBig || a.drops("too-big") != 1 {
			t.Errorf("got %x", e)
		}
	})
}

func TestServiceAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		service := identity.ServiceAddress(a.state.Prefix)
		p := udpPacket(a.addr, service, 1000, 53, "name?")
		a.dev.Inject(p)
		if got := <-a.stack.delivered; string(got) != string(p) {
			t.Errorf("delivered %x", got)
		}
		back := udpPacket(service, a.addr, 53, 1000, "address")
		a.stack.out <- back
		a.want(time.Second, back)
		// Neither may the stack speak to or as somebody else.
		a.stack.out <- udpPacket(service, b.addr, 53, 1000, "")
		a.stack.out <- udpPacket(b.addr, a.addr, 53, 1000, "")
		a.silent(time.Second)
		if a.drops("stack-destination") != 2 {
			t.Errorf("%v", a.o.Status().Drops)
		}
	})
}

func TestOfflinePeerFailsAtOnceButIsTried(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		a.state.Peers[0].Offline = true
		a.set()
		start := time.Now()
		p := tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)
		a.dev.Inject(p)
		a.wantError(time.Second, packet.AddressUnreachable, p)
		if took := time.Since(start); took != 0 {
			t.Errorf("after %v", took)
		}
		// The coordinator was wrong: the peer answered meanwhile.
		time.Sleep(time.Second)
		a.dev.Inject(p)
		b.want(time.Second, p)
	})
}

func TestSilentPeerFailsAfterThreeSeconds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.idleNode(w.agent(), addrB)
		a.know(b, &policy.Grant{}, &policy.Grant{}).set()
		p := tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)
		start := time.Now()
		a.dev.Inject(p)
		a.wantError(10*time.Second, packet.AddressUnreachable, p)
		if took := time.Since(start); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("after %v", took)
		}
		start = time.Now()
		a.dev.Inject(p)
		a.wantError(10*time.Second, packet.AddressUnreachable, p)
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("second time after %v", took)
		}
		if e, ok := nextEvent[HandshakeFailed](a, 10*time.Second); !ok || e.Reason != ReasonTimeout || e.Agent != b.key.Public() {
			t.Errorf("event %+v %v", e, ok)
		}
		if st := a.o.Status().Peers[0]; st.State == StateUp || st.Failure != ReasonTimeout {
			t.Errorf("status %+v", st)
		}
	})
}

func TestPeerWithoutAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		a.know(b, &policy.Grant{}, &policy.Grant{})
		// An address inside the overlay is none: the tunnel would go through itself.
		a.state.Peers[0].Candidates = []netip.AddrPort{netip.AddrPortFrom(b.addr, 7745)}
		a.set()
		p := tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)
		a.dev.Inject(p)
		a.wantError(0, packet.AddressUnreachable, p)
		if e, ok := nextEvent[HandshakeFailed](a, 0); !ok || e.Reason != ReasonNoAddress {
			t.Errorf("event %+v %v", e, ok)
		}
	})
}

// The coordinator told one side only that the consent is there.
func TestStrangerCallsAndIsLearned(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		a.know(b, &policy.Grant{}, &policy.Grant{}).set()
		b.set()
		p := udpPacket(a.addr, b.addr, 1000, 53, "hello")
		a.dev.Inject(p)
		if e, ok := nextEvent[UnknownPeer](b, time.Second); !ok || e.Agent != a.key.Public() {
			t.Fatalf("event %v %v", e, ok)
		}
		b.know(a, &policy.Grant{}, &policy.Grant{}).set()
		b.want(2*time.Second, p)
	})
}

func TestWithdrawnConsentStopsEverythingAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		syn := tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)
		a.dev.Inject(syn)
		b.want(time.Second, syn)
		time.Sleep(time.Second)
		onWay := tcpPacket(a.addr, b.addr, 1000, 80, packet.ACK)
		a.dev.Inject(onWay)
		synctest.Wait() // it is on the wire now

		b.rules = make(map[identity.AgentPublic][]policy.Rule)
		b.know(a, nil, &policy.Grant{}).set() // b takes its consent back
		b.silent(100 * time.Millisecond)      // not even what was on the way
		if b.sessionWith(a) != nil || a.sessionWith(b) != nil {
			t.Error("a session is left")
		}
		if e, ok := nextEvent[SessionDown](a, 0); !ok || e.Reason != ReasonNotTrusted {
			t.Errorf("event at a: %+v %v", e, ok)
		}
		// a has not heard of it from the coordinator, but its programs get their errors at once.
		start := time.Now()
		a.dev.Inject(onWay)
		if r := a.recv(time.Second); r == nil || r[6] != packet.TCP || r[53] != packet.RST {
			t.Errorf("got %x", r)
		}
		a.dev.Inject(syn)
		a.wantError(time.Second, packet.AdminProhibited, syn)
		if took := time.Since(start); took != 0 {
			t.Errorf("after %v", took)
		}
		if st := a.o.Status().Peers[0]; st.Refusal != string(ReasonNotTrusted) {
			t.Errorf("refusal %q", st.Refusal)
		}
	})
}

func TestConsentExpiresDuringAFlow(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		end := time.Now().Add(10 * time.Second)
		a.know(b, &policy.Grant{Expiry: end}, &policy.Grant{}).set()
		b.know(a, &policy.Grant{}, &policy.Grant{Expiry: end}).set()
		p := udpPacket(a.addr, b.addr, 1000, 53, "hello")
		for time.Now().Before(end.Add(-time.Second)) {
			a.dev.Inject(p)
			b.want(time.Second, p)
			time.Sleep(500 * time.Millisecond)
		}
		time.Sleep(time.Until(end.Add(1100 * time.Millisecond)))
		a.dev.Inject(p)
		a.wantError(0, packet.AdminProhibited, p)
		if a.sessionWith(b) != nil {
			t.Error("the session outlived the consent")
		}
	})
}

func TestRevokedPeerIsCutOff(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1000, 53, "hello")
		a.dev.Inject(p)
		b.want(time.Second, p)
		a.state.Revoked = map[identity.AgentPublic]uint64{b.key.Public(): b.cert.Serial}
		a.set()
		if a.sessionWith(b) != nil {
			t.Error("the session is left")
		}
		back := udpPacket(b.addr, a.addr, 53, 1000, "still here")
		b.dev.Inject(back)
		a.silent(8 * time.Second)
	})
}

// The far side lists fewer ports than this side knows of: its refusal becomes the program's error at once.
func TestRefusalTravelsBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		a.know(b, &policy.Grant{}, &policy.Grant{}).set()
		b.know(a, &policy.Grant{Ports: []identity.PortRange{{Proto: 6, First: 80, Last: 80}}}, &policy.Grant{}).set()
		good := tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)
		a.dev.Inject(good)
		b.want(time.Second, good)
		start := time.Now()
		bad := tcpPacket(a.addr, b.addr, 1001, 22, packet.SYN)
		a.dev.Inject(bad)
		e := a.recv(time.Second)
		if e == nil || e[40] != packet.TypeUnreachable || packet.Code(e[41]) != packet.AdminProhibited ||
			netip.AddrFrom16([16]byte(e[8:24])) != b.addr {
			t.Fatalf("got %x", e)
		}
		if took := time.Since(start); took != 2*latency {
			t.Errorf("after %v", took)
		}
		if b.drops("denied-in-port-denied") != 1 || a.o.Status().Peers[0].Refusal != "port-denied" {
			t.Errorf("%v, %+v", b.o.Status().Drops, a.o.Status().Peers[0])
		}
		b.silent(time.Second)
	})
}

func TestSetChecksTheState(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.node(addrA), w.node(addrB), w.agent()
		trust(a, b)
		good := a.state
		for name, change := range map[string]func(*State){
			"prefix":            func(s *State) { s.Prefix = netip.MustParsePrefix("fd00::/48") },
			"address of others": func(s *State) { s.Peers[0].Addr = c.addr },
			"tunnel of others":  func(s *State) { s.Peers[0].Tunnel = c.stmt },
			"twice":             func(s *State) { s.Peers = append(s.Peers, s.Peers[0]) },
		} {
			bad := good
			bad.Peers = append([]Peer(nil), good.Peers...)
			change(&bad)
			if err := a.o.Set(bad); !errors.Is(err, ErrState) {
				t.Errorf("%s: %v", name, err)
			}
		}
		bad := good
		bad.Locals = append(bad.Locals[:1:1], c.local())
		bad.Locals[1].Certificate = b.cert.Raw()
		if err := a.o.Set(bad); err == nil {
			t.Error("somebody else's certificate was taken")
		}
		p := udpPacket(a.addr, b.addr, 1, 2, "still works")
		a.dev.Inject(p)
		b.want(time.Second, p)
	})
}

func TestManyAgentsBehindOneNode(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		second := w.agent()
		a.state.Locals = append(a.state.Locals, second.local())
		trust(a, b)
		// b knows the second agent too, at the same node, but consents to the first only.
		b.state.Peers = append(b.state.Peers, Peer{
			Agent: second.key.Public(), Addr: second.addr, Tunnel: second.stmt, Candidates: b.state.Peers[0].Candidates,
		})
		b.set()
		p1 := udpPacket(a.addr, b.addr, 1, 2, "first")
		a.dev.Inject(p1)
		b.want(time.Second, p1)
		a.dev.Inject(udpPacket(second.addr, b.addr, 1, 2, "second"))
		b.silent(3 * time.Second)
		b.rules[b.key.Public()] = append(b.rules[b.key.Public()], policy.Rule{Addr: second.addr, Inbound: &policy.Grant{}, Outbound: &policy.Grant{}})
		b.set()
		p2 := udpPacket(second.addr, b.addr, 1, 2, "second")
		time.Sleep(10 * time.Second)
		a.dev.Inject(p2)
		b.want(time.Second, p2)
		a.dev.Inject(p1)
		b.want(time.Second, p1)
	})
}

func TestPing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.node(addrA), w.node(addrB), w.idleNode(w.agent(), addrC)
		a.know(c, &policy.Grant{}, &policy.Grant{})
		trust(a, b)
		r, err := a.o.Ping(t.Context(), a.key.Public(), b.addr)
		if err != nil || r.RTT != 2*latency || r.Path.Remote.String() != addrB {
			t.Errorf("%+v %v", r, err)
		}
		if rtt := a.o.Status().Peers[0].RTT + a.o.Status().Peers[1].RTT; rtt != 2*latency {
			t.Errorf("status: %v", rtt)
		}
		if _, err := a.o.Ping(t.Context(), a.key.Public(), c.addr); !errors.Is(err, ErrOffline) {
			t.Errorf("nobody there: %v", err)
		}
		if _, err := a.o.Ping(t.Context(), a.key.Public(), w.agent().addr); !errors.Is(err, ErrUnknown) {
			t.Errorf("unknown: %v", err)
		}
		b.rules = make(map[identity.AgentPublic][]policy.Rule)
		b.know(a, nil, nil).set()
		time.Sleep(time.Second)
		_, err = a.o.Ping(t.Context(), a.key.Public(), b.addr)
		var pe *PingError
		if !errors.Is(err, ErrNotTrusted) || !errors.As(err, &pe) || pe.Reason != string(ReasonNotTrusted) {
			t.Errorf("the peer does not consent: %v", err)
		}
		if _, err := b.o.Ping(t.Context(), b.key.Public(), a.addr); !errors.Is(err, ErrNotTrusted) || fmt.Sprint(err) != "ping: not trusted (no-consent-local)" {
			t.Errorf("we do not consent: %v", err)
		}
		a.o.mu.Lock()
		defer a.o.mu.Unlock()
		if n := len(a.o.control.pings); n != 0 {
			t.Errorf("%d pings left", n)
		}
	})
}
