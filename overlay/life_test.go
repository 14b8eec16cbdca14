// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/underlay"
)

// seenBy counts packets that reach a node for as long as f runs.
func arrivals(n *node, f func()) map[string]int {
	got, stop, done := make(map[string]int), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case p := <-n.dev.Sent():
				got[string(p)]++
			case <-stop:
				return
			}
		}
	}()
	f()
	time.Sleep(time.Second)
	close(stop)
	<-done
	return got
}

// stream sends one packet each interval from a to b.
func stream(a, b *node, n int, every time.Duration) {
	for i := range n {
		a.dev.Inject(udpPacket(a.addr, b.addr, 1000, 2000, fmt.Sprint(i)))
		time.Sleep(every)
	}
}

func TestBothBeginAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		pa, pb := udpPacket(a.addr, b.addr, 1, 2, "a"), udpPacket(b.addr, a.addr, 1, 2, "b")
		a.dev.Inject(pa)
		b.dev.Inject(pb)
		a.want(time.Second, pb)
		b.want(time.Second, pa)
		time.Sleep(5 * time.Second)
		sa, sb := a.sessionWith(b), b.sessionWith(a)
		if sa == nil || sb == nil || sa.noise.Initiator() == sb.noise.Initiator() {
			t.Fatal("the two ends do not use the same session")
		}
		if !firstOf(sa) {
			t.Error("not the session of the agent with the lower key")
		}
		a.dev.Inject(pa)
		b.want(time.Second, pa)
		if got := arrivals(b, func() { stream(a, b, 100, time.Second) }); len(got) != 100 {
			t.Errorf("%d of 100", len(got))
		}
		if a.sessionWith(b) != sa || b.sessionWith(a) != sb {
			t.Error("sessions flap")
		}
	})
}

// Ten minutes of use: renewed every two minutes, nothing is lost, old sessions go.
func TestRenewalLosesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		sessions := make(map[*session]bool)
		got := arrivals(b, func() {
			for range 60 {
				stream(a, b, 100, 100*time.Millisecond)
				sessions[a.sessionWith(b)] = true
			}
		})
		if len(got) != 100 { // the texts repeat
			t.Errorf("%d different", len(got))
		}
		for p, n := range got {
			if n != 60 {
				t.Errorf("%q %d times", p[48:], n)
			}
		}
		if len(sessions) < 5 || len(sessions) > 6 {
			t.Errorf("%d sessions in ten minutes", len(sessions))
		}
		if n := a.o.Status().Sessions; n > 2 {
			t.Errorf("%d sessions are left", n)
		}
		if _, down := nextEvent[SessionDown](a, 0); down {
			t.Error("the session was down meanwhile")
		}
	})
}

func TestSlowWire(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const trip = 900 * time.Millisecond
		w.setWeather(func(_, _ netip.AddrPort, _ []byte) []time.Duration { return []time.Duration{trip} })
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		r, err := a.o.Ping(t.Context(), a.key.Public(), b.addr)
		if err != nil || r.RTT != 2*trip {
			t.Errorf("%+v %v", r, err)
		}
		s := a.sessionWith(b)
		if got := arrivals(b, func() { stream(a, b, 50, 200*time.Millisecond); time.Sleep(trip) }); len(got) != 50 {
			t.Errorf("%d of 50", len(got))
		}
		if a.sessionWith(b) != s {
			t.Error("a slow peer is taken for a dead one")
		}
	})
}

// Everything at once, for the race detector: state changes, roaming, pings and readings while packets fly both ways.
func TestControlDuringTraffic(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.node(addrA), w.node(addrB), w.node(addrC)
		trust(a, b)
		trust(a, c)
		trust(b, c)
		var all sync.WaitGroup
		for _, pair := range [][2]*node{{a, b}, {b, a}, {a, c}, {c, b}} {
			all.Go(func() { stream(pair[0], pair[1], 200, 50*time.Millisecond) })
		}
		all.Go(func() {
			for i := range 100 {
				a.state.Peers[i%2].Offline = i%4 < 2
				if err := a.o.Set(a.state); err != nil {
					t.Error(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
		all.Go(func() {
			for i := range 50 {
				w.move(b.port, []string{addrB, addrB2}[i%2])
				b.o.Refresh()
				_ = b.o.Status()
				time.Sleep(230 * time.Millisecond)
			}
		})
		all.Go(func() {
			for range 20 {
				if _, err := c.o.Ping(t.Context(), c.key.Public(), a.addr); err != nil {
					t.Error(err)
				}
				time.Sleep(500 * time.Millisecond)
			}
		})
		got := arrivals(b, all.Wait)
		if len(got) < 320 { // two streams end there; what is on the way during one of the 50 moves is lost
			t.Errorf("%d of 400", len(got))
		}
	})
}

// A node without a State, and one whose agent is gone: strangers' datagrams do nothing.
func TestNobodyHome(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		a.know(b, &policy.Grant{}, &policy.Grant{}).set()
		a.dev.Inject(udpPacket(a.addr, b.addr, 1, 2, "a"))
		b.dev.Inject(udpPacket(b.addr, a.addr, 1, 2, "b"))
		b.silent(5 * time.Second)
		if b.drops("handshake-failed") == 0 || b.drops("source-not-local") != 1 {
			t.Errorf("%v", b.o.Status().Drops)
		}
		trust(a, b)
		time.Sleep(10 * time.Second)
		p := udpPacket(a.addr, b.addr, 1, 2, "a")
		a.dev.Inject(p)
		b.want(time.Second, p)
		b.state.Locals, b.state.Peers, b.rules = nil, nil, nil
		b.set()
		a.dev.Inject(p)
		b.silent(time.Second)
		if n := b.o.Status().Sessions; n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

func TestUnusedSessionExpires(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "a")
		a.dev.Inject(p)
		b.want(time.Second, p)
		before := len(w.datagrams())
		time.Sleep(15 * time.Second) // the paths are tried for a while, and their size is found
		used := len(w.datagrams())
		time.Sleep(noise.ExpireAfter - 13*time.Second)
		for _, n := range []*node{a, b} {
			if e, ok := nextEvent[SessionDown](n, 0); !ok || e.Reason != ReasonExpired {
				t.Errorf("event %+v %v", e, ok)
			}
			if s := n.o.Status(); s.Sessions != 0 {
				t.Errorf("%d sessions are left", s.Sessions)
			}
			n.o.mu.Lock()
			if n.o.control.timers.Len() != 0 {
				t.Error("a timer still runs")
			}
			n.o.mu.Unlock()
		}
		if first, then := used-before, len(w.datagrams())-used; first > 24 || then > 0 {
			t.Errorf("%d datagrams from idle nodes, and %d later", first, then)
		}
		a.dev.Inject(p)
		b.want(time.Second, p)
	})
}

// One-way traffic of the inner protocol: the outer one must not take it for a dead peer.
func TestOneWayTrafficKeepsItsSession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		stream(a, b, 2, 100*time.Millisecond)
		s := a.sessionWith(b)
		if got := arrivals(b, func() { stream(a, b, 100, 500*time.Millisecond) }); len(got) != 100 {
			t.Errorf("%d of 100", len(got))
		}
		if a.sessionWith(b) != s {
			t.Error("the session was replaced")
		}
	})
}

func TestBadWeather(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		r := rand.New(rand.NewPCG(3, 4))
		w.setWeather(func(_, _ netip.AddrPort, _ []byte) (copies []time.Duration) {
			for range 3 {
				if r.IntN(10) < 4 {
					copies = append(copies, latency+time.Duration(r.IntN(100))*time.Millisecond)
				}
			}
			return copies // none: one in five is lost
		})
		got := arrivals(b, func() { stream(a, b, 2000, 50*time.Millisecond) })
		for p, n := range got {
			if n != 1 {
				t.Errorf("%q came %d times", p[48:], n)
			}
		}
		if len(got) < 1400 {
			t.Errorf("%d of 2000", len(got))
		}
		if b.drops("replayed") == 0 {
			t.Error("nothing was duplicated")
		}
	})
}

func TestRoaming(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p, back := udpPacket(a.addr, b.addr, 1, 2, "a"), udpPacket(b.addr, a.addr, 2, 1, "b")
		a.dev.Inject(p)
		b.want(time.Second, p)
		time.Sleep(time.Second)
		s := a.sessionWith(b)
		w.move(b.port, addrB2)
		b.o.Refresh()
		time.Sleep(3*latency + time.Millisecond) // its ping, ours, the answer: nothing is sent to an address without proof
		if e, ok := nextEvent[PathChanged](a, 0); !ok || e.Path.Remote.String() != addrB2 {
			t.Fatalf("event %+v %v", e, ok)
		}
		a.dev.Inject(p)
		b.want(time.Second, p)
		b.dev.Inject(back)
		a.want(time.Second, back)
		time.Sleep(10 * time.Second)
		if a.sessionWith(b) != s {
			t.Error("the session did not survive the move")
		}
	})
}

// The coordinator is gone and the State says nothing: the peer is called where it was met last.
func TestKnownPeerIsCalledWithoutTheCoordinator(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p, back := udpPacket(a.addr, b.addr, 1, 2, "a"), udpPacket(b.addr, a.addr, 2, 1, "b")
		a.dev.Inject(p)
		b.want(time.Second, p)
		b.state.Peers[0].Candidates, b.state.Peers[0].Tunnel = nil, identity.TunnelStatement{}
		b.set()
		time.Sleep(noise.ExpireAfter + time.Minute)
		if b.sessionWith(a) != nil {
			t.Fatal("the session is still there")
		}
		b.dev.Inject(back)
		a.want(time.Second, back)
	})
}

// The word to the peers is lost: they are called anew soon.
func TestRefreshInBadWeather(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p, back := udpPacket(a.addr, b.addr, 1, 2, "a"), udpPacket(b.addr, a.addr, 2, 1, "b")
		a.dev.Inject(p)
		b.want(time.Second, p)
		time.Sleep(time.Second)
		w.move(b.port, addrB2)
		w.setWeather(func(_, _ netip.AddrPort, _ []byte) []time.Duration { return nil })
		b.o.Refresh()
		synctest.Wait()
		w.setWeather(nil)
		time.Sleep(refreshPatience + lookEvery + 2*latency)
		a.dev.Inject(p)
		b.want(time.Second, p)
		b.dev.Inject(back)
		a.want(time.Second, back)
	})
}

// Nobody tells that the peer moved, and it has nothing to say: its new address is known from the coordinator only.
func TestMoveWithoutAWord(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "a")
		a.dev.Inject(p)
		b.want(time.Second, p)
		w.move(b.port, addrB2)
		a.state.Peers[0].Candidates = append(a.state.Peers[0].Candidates, netip.MustParseAddrPort(addrB2))
		a.set()
		got := arrivals(b, func() { stream(a, b, 100, 100*time.Millisecond) })
		if len(got) < 40 {
			t.Errorf("%d of 100: it took more than six seconds", len(got))
		}
	})
}

// An old record from elsewhere must not move the path, whoever sends it: an observer may have held it back.
func TestOldRecordDoesNotMoveThePath(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		first := udpPacket(a.addr, b.addr, 1, 2, "first")
		a.dev.Inject(first)
		b.want(time.Second, first)
		var held []byte
		second, third := udpPacket(a.addr, b.addr, 1, 2, "second"), udpPacket(a.addr, b.addr, 1, 2, "third")
		w.setWeather(func(_, _ netip.AddrPort, d []byte) []time.Duration {
			if noise.Kind(d) == noise.KindRecord && held == nil && len(d) == len(second)+noise.Overhead { // not a ping
				held = d
				return nil
			}
			return []time.Duration{latency}
		})
		a.dev.Inject(second)
		synctest.Wait()
		a.dev.Inject(third)
		b.want(time.Second, third)
		w.arrive(netip.MustParseAddrPort(addrC), netip.MustParseAddrPort(addrB), held)
		b.want(time.Second, second) // late, but authentic and new
		if path := b.sessionWith(a).path.Load(); path.Remote.String() != addrA {
			t.Errorf("moved to %v", path)
		}
	})
}

func TestPeerRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "a")
		a.dev.Inject(p)
		b.want(time.Second, p)
		// It dies without a word.
		w.setWeather(func(from, _ netip.AddrPort, _ []byte) []time.Duration {
			if from.String() == addrB {
				return nil
			}
			return []time.Duration{latency}
		})
		b.stop()
		w.setWeather(nil)
		b2 := w.nodeOf(b.agent, addrB)
		b2.know(a, &policy.Grant{}, &policy.Grant{}).set()
		got := arrivals(b2, func() { stream(a, b2, 100, 100*time.Millisecond) })
		if len(got) < 45 {
			t.Errorf("%d of 100: it took more than five and a half seconds", len(got))
		}
	})
}

func TestPeerThatLeavesSaysSo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "a")
		a.dev.Inject(p)
		b.want(time.Second, p)
		synctest.Wait()
		b.stop()
		time.Sleep(2 * latency)
		if e, ok := nextEvent[SessionDown](a, 0); !ok || e.Reason != ReasonClosed {
			t.Errorf("event %+v %v", e, ok)
		}
		if b.o.Status().Sessions != 0 {
			t.Error("keys are left after Run")
		}
	})
}

func TestDeadPeerIsNoticed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		stream(a, b, 2, 100*time.Millisecond)
		w.setWeather(func(_, _ netip.AddrPort, _ []byte) []time.Duration { return nil })
		go stream(a, b, 120, 100*time.Millisecond)
		e, ok := nextEvent[SessionDown](a, 12*time.Second)
		if !ok || e.Reason != ReasonSilent {
			t.Fatalf("event %+v %v", e, ok)
		}
		time.Sleep(3 * time.Second)
		w.setWeather(nil)
		time.Sleep(11 * time.Second)
		got := arrivals(b, func() { stream(a, b, 10, 100*time.Millisecond) })
		if len(got) < 10 { // one that waited may come too
			t.Errorf("%d of 10 afterwards", len(got))
		}
	})
}

// Where the coordinator says, too, that the peer is gone, programs wait less for their error.
func TestDeadPeerThatIsSaidToBeOfflineIsNoticedSooner(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		stream(a, b, 2, 100*time.Millisecond)
		w.setWeather(func(_, _ netip.AddrPort, _ []byte) []time.Duration { return nil })
		a.state.Peers[0].Offline = true
		a.set()
		start := time.Now()
		p := tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)
		a.dev.Inject(p)
		e, ok := nextEvent[SessionDown](a, 12*time.Second)
		if took := time.Since(start); !ok || e.Reason != ReasonSilent || took > 5500*time.Millisecond {
			t.Fatalf("event %+v %v after %v", e, ok, took)
		}
		start = time.Now()
		a.dev.Inject(p)
		a.wantError(time.Second, packet.AddressUnreachable, p)
		if took := time.Since(start); took != 0 {
			t.Errorf("the error took %v", took)
		}
	})
}

// Many handshakes at once do not hold up a session's records.
func TestHandshakeFlood(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "a")
		a.dev.Inject(p)
		b.want(time.Second, p)
		var first []byte
		for _, d := range w.datagrams() {
			if noise.Kind(d) == noise.KindHandshake {
				first = d
				break
			}
		}
		for range 10 * handshakeBuffer {
			b.o.offerHandshake(first, underlay.Path{Remote: netip.MustParseAddrPort(addrC)})
		}
		a.dev.Inject(p)
		b.want(time.Second, p)
		if b.drops("handshake-flood") == 0 || b.drops("handshake-failed") == 0 {
			t.Errorf("%v", b.o.Status().Drops)
		}
	})
}

func TestEventsOverflowWithoutBlocking(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.node(addrA)
		a.set()
		for range 2 * eventBuffer {
			a.dev.Inject(udpPacket(a.addr, w.agent().addr, 1, 2, ""))
			synctest.Wait()
		}
		if n := a.o.Status().DroppedEvents; n != eventBuffer {
			t.Errorf("%d dropped", n)
		}
	})
}

func TestDeviceFailureEndsRun(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.node(addrA)
		if err := a.dev.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-a.done; err == nil {
			t.Error("no error")
		}
		a.cancel()
		a.cancel = nil
	})
}

// A node without sessions has no timer at all, but for what the machine has to forget; one with sessions that nobody uses
// looks at them seldom, and still notices in time that a packet is not answered.
func TestIdleNodeRests(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.idleNode(w.agent(), addrA), w.node(addrB)
		var looks atomic.Int64 // at the clock: each turn of a loop is one
		a.o.clock = func() time.Time {
			looks.Add(1)
			return time.Now()
		}
		during := func(d time.Duration) int64 {
			before := looks.Load()
			time.Sleep(d)
			return looks.Load() - before
		}
		a.run()
		trust(a, b)
		time.Sleep(time.Second)
		if n := during(time.Hour); n != 0 {
			t.Errorf("it awoke %d times in an hour, before any session", n)
		}
		p := udpPacket(a.addr, b.addr, 1, 2, "a")
		a.dev.Inject(p)
		b.want(time.Second, p)
		time.Sleep(50 * time.Second)
		if n := during(time.Minute); n > 12 {
			t.Errorf("it awoke %d times in a minute, with an idle session", n)
		}
		w.setWeather(func(_, _ netip.AddrPort, _ []byte) []time.Duration { return nil })
		a.dev.Inject(p)
		time.Sleep(lostAfter + 2*lookEvery)
		if s := a.sessionWith(b); s == nil || !s.link.lost.Load() {
			t.Error("that nothing comes back is not noticed")
		}
		w.setWeather(nil)
		time.Sleep(2 * noise.ExpireAfter)
		if n := during(time.Hour); n > 2 {
			t.Errorf("it awoke %d times in an hour, after its sessions", n)
		}
	})
}

// Links on which nothing moves are looked at in the same moments, whenever they became quiet.
func TestQuietLinksAreLookedAtTogether(t *testing.T) {
	var quiet link
	const due = 90 * time.Second
	for _, at := range []time.Duration{due - quietEvery, due - quietEvery + 1, due - quietEvery/3, due - time.Millisecond} {
		if next := quiet.nextLookLocked(moment{at: at}); next != due {
			t.Errorf("after %v the next look is at %v", at, next)
		}
	}
	if next := quiet.nextLookLocked(moment{at: due}); next != due+quietEvery {
		t.Errorf("after that look the next one is at %v", next)
	}
	used := link{}
	used.lastData.Store(int64(due))
	if next := used.nextLookLocked(moment{at: due + time.Millisecond}); next != due+time.Millisecond+lookEvery {
		t.Errorf("one that is used is looked at next at %v", next)
	}
}
