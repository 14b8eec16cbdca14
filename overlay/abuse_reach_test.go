// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/paths/simnet"
)

// A relay sends everything twice and in another order: each packet comes out once.
func TestAbuse13RelayDuplicatesAndReorders(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := simnet.New(trip)
		relay := n.Relay(1, trip)
		blocked := somePlaces()[5]
		a, b := w.site(n, blocked, 1, 1), w.site(n, blocked, 2, 1)
		r := rand.New(rand.NewPCG(5, 6))
		relay.Mangle(func([]byte) []time.Duration {
			return []time.Duration{time.Duration(r.IntN(80)) * time.Millisecond, time.Duration(r.IntN(80)) * time.Millisecond}
		})
		defer connect(a, b)()
		converse(a, b, 10*time.Second, 10*time.Millisecond)
		time.Sleep(time.Second)
		for _, s := range []*site{a, b} {
			s.mu.Lock()
			got := len(s.arrived)
			s.mu.Unlock()
			if got != 1000 {
				t.Errorf("%d of 1000 packets came", got)
			}
			if s.drops("replayed") < 900 {
				t.Errorf("%v", s.o.Status().Drops)
			}
		}
	})
}

// evil are addresses that a peer may not make a node send to.
func evil(prefix netip.Prefix) (all []netip.AddrPort) {
	inside := prefix.Addr().As16()
	inside[15] = 99
	for _, a := range []string{
		"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "0.1.2.3", "169.254.169.254", "169.254.1.1", "fe80::1", "224.0.0.1",
		"ff02::1", "255.255.255.255", "240.0.0.1", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1",
		"2002:7f00:1::", netip.AddrFrom16(inside).String(),
	} {
		all = append(all, netip.AddrPortFrom(netip.MustParseAddr(a), 80))
	}
	return append(all, netip.MustParseAddrPort("192.0.2.77:0"))
}

// tell sends a candidates message to a node's peer, whatever it says.
func (n *node) tell(to *node, candidates []netip.AddrPort) {
	n.w.t.Helper()
	b := []byte{messageCandidates, byte(len(candidates)), 0}
	for _, c := range candidates {
		b = appendAddrPort(b, c)
	}
	s := n.sessionWith(to)
	record := must(s.noise.Seal(nil, noise.FlagControl, append(b, 0)))
	if err := n.port.Send(*s.path.Load(), [][]byte{record}); err != nil {
		n.w.t.Fatal(err)
	}
}

// sentTo counts what a node sends, by destination.
func (w *world) sentTo(node string) func() map[netip.AddrPort]int {
	counts := make(map[netip.AddrPort]int)
	w.setWeather(func(from, to netip.AddrPort, _ []byte) []time.Duration {
		if from.String() == node {
			counts[to]++
		}
		return []time.Duration{latency}
	})
	return func() map[netip.AddrPort]int {
		w.setWeather(nil)
		return counts
	}
}

// By its record, by a signal and inside the session a peer says that it is at addresses that are somebody's own, or the
// host's: nothing is sent there.
func TestAbuse16CandidatesThatPointInward(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		done := w.sentTo(addrA)
		bad := evil(a.state.Prefix)
		good := netip.MustParseAddrPort(addrC)
		a.state.Peers[0].Candidates = append(slices.Clone(bad), a.state.Peers[0].Candidates...)
		a.set()
		a.o.Call(a.key.Public(), b.key.Public(), bad, nil)
		p := udpPacket(a.addr, b.addr, 1, 2, "x")
		a.dev.Inject(p)
		b.want(time.Second, p)
		time.Sleep(100 * time.Millisecond)
		for rest := bad; len(rest) > 0; rest = rest[min(len(rest), 11):] {
			b.tell(a, append(slices.Clone(rest[:min(len(rest), 11)]), good))
			a.dev.Inject(p)
			time.Sleep(1100 * time.Millisecond)
		}
		counts := done()
		for to, n := range counts {
			if to.String() != addrB && to != good {
				t.Errorf("%d datagrams to %v", n, to)
			}
		}
		if counts[good] == 0 {
			t.Error("the good address was not tried")
		}
	})
}

// A peer names twelve new addresses a hundred times a second: what the node sends there is little.
func TestAbuse24CandidatesAreBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "x")
		a.dev.Inject(p)
		b.want(time.Second, p)
		time.Sleep(100 * time.Millisecond)
		done := w.sentTo(addrA)
		const seconds = 20
		next := netip.MustParseAddr("198.51.100.0")
		for range seconds * 100 {
			var all []netip.AddrPort
			for range 12 {
				next = next.Next()
				all = append(all, netip.AddrPortFrom(next, 7745))
			}
			b.tell(a, all)
			a.dev.Inject(p)
			time.Sleep(10 * time.Millisecond)
		}
		sent := 0
		for to, n := range done() {
			if to.String() != addrB {
				sent += n
			}
		}
		if most := 24 + 12*seconds + 12; sent == 0 || sent > most {
			t.Errorf("%d datagrams to addresses that the peer named, %d are allowed", sent, most)
		}
	})
}

// What answers something from an address that is not proved is no larger than that; and all that follows is one ping of the
// same size.
func TestAbuse24NothingLargeToAnUnprovedAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "x")
		a.dev.Inject(p)
		b.want(time.Second, p)
		time.Sleep(100 * time.Millisecond)
		time.Sleep(time.Second)
		victim := netip.MustParseAddrPort(addrC)
		var sizes []int // guarded by w.mu
		take := func() []int {
			w.mu.Lock()
			defer w.mu.Unlock()
			got := sizes
			sizes = nil
			return got
		}
		w.setWeather(func(from, to netip.AddrPort, d []byte) []time.Duration {
			if to == victim {
				sizes = append(sizes, len(d))
			}
			return []time.Duration{latency}
		})
		s := b.sessionWith(a)
		for _, size := range []int{9, 15, 27, 200, 1400} {
			body := append(binary.BigEndian.AppendUint64([]byte{messagePing}, 7), make([]byte, size-9)...)
			record := must(s.noise.Seal(nil, noise.FlagControl, body))
			take()
			w.arrive(victim, netip.MustParseAddrPort(addrA), record)
			time.Sleep(50 * time.Millisecond)
			sizes := take()
			if len(sizes) == 0 || sizes[0] > len(record) {
				t.Errorf("a ping of %d was answered with %v", len(record), sizes)
			}
			for _, n := range sizes {
				if n > pongSize+noise.Overhead {
					t.Errorf("%d bytes to an address without proof", n)
				}
			}
			if len(sizes) > 2 {
				t.Errorf("%d datagrams for one", len(sizes))
			}
			time.Sleep(time.Second)
		}
		// Data that comes from there does not make data go there.
		take()
		w.arrive(victim, netip.MustParseAddrPort(addrA), must(s.noise.Seal(nil, 0, udpPacket(b.addr, a.addr, 2, 1, "y"))))
		for range 100 {
			a.dev.Inject(udpPacket(a.addr, b.addr, 1, 2, string(make([]byte, 1000))))
			time.Sleep(10 * time.Millisecond)
		}
		for _, n := range take() {
			if n > pongSize+noise.Overhead {
				t.Errorf("%d bytes to an address without proof", n)
			}
		}
	})
}

// A pong that the peer makes up, or that comes from elsewhere than the ping went, proves nothing.
func TestAbuse24PongThatProvesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "x")
		a.dev.Inject(p)
		b.want(time.Second, p)
		time.Sleep(100 * time.Millisecond)
		victim := netip.MustParseAddrPort(addrC)
		b.tell(a, []netip.AddrPort{victim})
		s := b.sessionWith(a)
		for id := range uint64(300) {
			body := append(binary.BigEndian.AppendUint64([]byte{messagePong}, id), make([]byte, addrPortSize)...)
			w.arrive(victim, netip.MustParseAddrPort(addrA), must(s.noise.Seal(nil, noise.FlagControl, body)))
			a.dev.Inject(p)
			time.Sleep(10 * time.Millisecond)
		}
		// The peer answers, from its own address, each ping that the victim was sent: say, because it sees the victim's line.
		w.setWeather(func(_, to netip.AddrPort, d []byte) []time.Duration {
			if to == victim && noise.Kind(d) == noise.KindRecord {
				time.AfterFunc(latency, func() { w.arrive(netip.MustParseAddrPort(addrA), netip.MustParseAddrPort(addrB), d) })
			}
			return []time.Duration{latency}
		})
		stream(a, b, 200, 50*time.Millisecond)
		if path := a.sessionWith(b).path.Load(); path.Remote.String() != addrB {
			t.Errorf("the session goes to %v", path)
		}
	})
}

func FuzzCandidates(f *testing.F) {
	s := &snapshot{self: []netip.AddrPort{netip.MustParseAddrPort(addrA)}, selfRelays: []uint32{7}, nat: 2}
	f.Add(s.candidatesMessage())
	f.Add([]byte{messageCandidates, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		told, ok := parseCandidates(b)
		if ok && (len(told.candidates) > 12 || len(told.relays) > 4 || len(b) < 3+18*len(told.candidates)+4*len(told.relays)) {
			t.Errorf("%x: %+v", b, told)
		}
	})
}

// While a peer does not answer, each packet of an established connection is answered with no-route, and a SYN in the end with
// address-unreachable: see established.
func TestEstablishedConnectionsLearnThatThePeerIsAway(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		ack := tcpPacket(a.addr, b.addr, 1000, 80, 0x10)
		a.dev.Inject(ack)
		b.want(time.Second, ack)
		w.setWeather(func(_, _ netip.AddrPort, _ []byte) []time.Duration { return nil })
		a.dev.Inject(ack)
		time.Sleep(2500 * time.Millisecond)
		for range 60 { // with the session, without it, and while it is tried anew
			a.dev.Inject(ack)
			a.wantError(0, 0, ack)
			for a.recv(time.Second) != nil {
				continue // what waited is answered once more
			}
		}
		w.setWeather(nil)
		start := time.Now()
		for b.recv(10*time.Millisecond) == nil {
			a.dev.Inject(ack)
			if time.Since(start) > 4*time.Second {
				t.Fatal("nothing comes through")
			}
			time.Sleep(200 * time.Millisecond) // as a kernel whose timer is not doubled
		}
	})
}
