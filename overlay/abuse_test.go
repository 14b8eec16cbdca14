// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
)

// The peer does not answer, or answers rubbish, or with its answers changed: not one byte of the packet leaves.
func TestAbuse12NeverPlaintext(t *testing.T) {
	const marker = "a marker that no datagram may contain"
	for name, answer := range map[string]func(d []byte) []byte{
		"silence":          func([]byte) []byte { return nil },
		"echo":             func(d []byte) []byte { return d },
		"rubbish":          func(d []byte) []byte { return bytes.Repeat([]byte{0x22, 1}, len(d)/2) },
		"claims a session": func(d []byte) []byte { return append([]byte{0x24, 0, 0, 0}, d[4:]...) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				a, b := w.node(addrA), w.idleNode(w.agent(), addrB)
				a.know(b, &policy.Grant{}, &policy.Grant{}).set()
				w.setWeather(func(from, to netip.AddrPort, d []byte) []time.Duration {
					if r := answer(bytes.Clone(d)); r != nil {
						time.AfterFunc(latency, func() { w.arrive(to, from, r) })
					}
					return nil
				})
				p := udpPacket(a.addr, b.addr, 1, 2, marker)
				for range 30 {
					a.dev.Inject(p)
					time.Sleep(time.Second)
				}
				if len(w.datagrams()) == 0 {
					t.Fatal("nothing was sent")
				}
				for _, d := range w.datagrams() {
					if noise.Kind(d) != noise.KindHandshake {
						t.Errorf("a datagram that is no handshake: %x", d[:16])
					}
					if bytes.Contains(d, []byte(marker)[:8]) || bytes.Contains(d, p[8:40]) {
						t.Error("plaintext left")
					}
				}
				if a.sessionWith(b) != nil {
					t.Error("there is a session")
				}
			})
		})
	}
}

// With a session, neither: payload, inner addresses and names stay inside.
func TestAbuse12NothingShowsInASession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "a marker that no datagram may contain")
		for range 5 {
			a.dev.Inject(p)
			b.want(time.Second, p)
		}
		for _, d := range w.datagrams() {
			if bytes.Contains(d, []byte("a marker")) || bytes.Contains(d, p[8:24]) || bytes.Contains(d, p[24:40]) {
				t.Error("plaintext left")
			}
		}
	})
}

func TestAbuse13ReplayedRecords(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		got := arrivals(b, func() { stream(a, b, 100, 10*time.Millisecond) })
		again := arrivals(b, func() {
			for _, from := range []string{addrA, addrC} {
				for _, d := range w.datagrams() {
					w.arrive(netip.MustParseAddrPort(from), netip.MustParseAddrPort(addrB), d)
					synctest.Wait()
				}
			}
		})
		if len(got) != 100 || len(again) != 0 {
			t.Errorf("%d came, %d came again", len(got), len(again))
		}
		if b.drops("replayed") < 200 {
			t.Errorf("%v", b.o.Status().Drops)
		}
		if path := b.sessionWith(a).path.Load(); path.Remote.String() != addrA {
			t.Errorf("a replay moved the path to %v", path)
		}
	})
}

// inject seals a packet in the node's session with another, whatever the packet says.
func (n *node) inject(to *node, p []byte) {
	n.w.t.Helper()
	s := n.sessionWith(to)
	record := must(s.noise.Seal(nil, 0, p))
	if err := n.port.Send(*s.path.Load(), [][]byte{record}); err != nil {
		n.w.t.Fatal(err)
	}
}

func TestAbuse14InnerSourceSpoofed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.node(addrA), w.node(addrB), w.node(addrC)
		trust(a, b)
		trust(c, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "hello")
		a.dev.Inject(p)
		b.want(time.Second, p)
		service := identity.ServiceAddress(b.state.Prefix)
		next := a.addr.Next()
		for i, from := range []netip.Addr{c.addr, b.addr, service, next, netip.IPv6Loopback(), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("::ffff:127.0.0.1")} {
			a.inject(b, udpPacket(from, b.addr, 1, 2, "spoofed"))
			b.silent(100 * time.Millisecond)
			if n := b.drops("inner-source"); n != uint64(i+1) {
				t.Errorf("%v: counted %d", from, n)
			}
		}
		for i, to := range []netip.Addr{service, c.addr, a.addr, netip.MustParseAddr("ff02::1"), netip.IPv6Loopback()} {
			a.inject(b, udpPacket(a.addr, to, 1, 53, "elsewhere"))
			b.silent(100 * time.Millisecond)
			if n := b.drops("inner-destination"); n != uint64(i+1) {
				t.Errorf("%v: counted %d", to, n)
			}
		}
		a.inject(b, p)
		b.want(time.Second, p)
	})
}

// A port rule of one port, and a peer that tries to get around it.
func TestAbuse15NoWayAroundAPortRule(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		only80 := &policy.Grant{Ports: []identity.PortRange{{Proto: 6, First: 80, Last: 80}}}
		a.know(b, &policy.Grant{}, only80).set()
		b.know(a, only80, &policy.Grant{}).set()
		good := tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)
		a.dev.Inject(good)
		b.want(time.Second, good)
		syn22 := tcpPacket(a.addr, b.addr, 1000, 22, packet.SYN)[40:]
		syn80 := good[40:]
		header := func(next uint8, body ...byte) []byte {
			return append([]byte{next}, append(body, make([]byte, 7-len(body))...)...)
		}
		with := func(next uint8, parts ...[]byte) []byte {
			return ipPacket(a.addr, b.addr, next, bytes.Join(parts, nil))
		}
		for name, p := range map[string][]byte{
			"plain":                   with(packet.TCP, syn22),
			"behind options":          with(packet.DestOptions, header(packet.TCP), syn22),
			"behind hop-by-hop":       with(packet.HopByHop, header(packet.DestOptions), header(packet.TCP), syn22),
			"atomic fragment":         with(packet.Fragment, header(packet.TCP), syn22),
			"first fragment":          with(packet.Fragment, header(packet.TCP, 0, 0, 1), syn22),
			"later fragment":          with(packet.Fragment, header(packet.TCP, 0, 0, 8), syn22),
			"fragment of allowed":     with(packet.Fragment, header(packet.TCP, 0, 0, 1), syn80),
			"fragment behind options": with(packet.DestOptions, header(packet.Fragment), header(packet.TCP), syn22),
			"routing header":          with(packet.Routing, header(packet.TCP, 0, 0, 1), syn80),
			"authentication header":   with(51, header(packet.TCP), syn80),
			"mobility header":         with(135, header(packet.TCP), syn80),
			"unknown header":          with(253, header(packet.TCP), syn80),
			"no next header":          with(packet.NoNext, syn80),
			"cut tcp":                 with(packet.TCP, syn80[:12]),
			"options longer than it":  with(packet.DestOptions, header(packet.TCP, 9), syn80),
			"udp":                     with(packet.UDP, udpPacket(a.addr, b.addr, 1000, 80, "")[40:]),
			"neighbour advertisement": with(packet.ICMPv6, []byte{136, 0, 0, 0, 0, 0, 0, 0}),
			"error about a foreign":   with(packet.ICMPv6, append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, tcpPacket(b.addr, a.addr, 22, 1000, packet.ACK)...)),
			"error about own packet":  with(packet.ICMPv6, append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, good...)),
			"open back from a flow":   with(packet.TCP, tcpPacket(a.addr, b.addr, 80, 2000, packet.SYN)[40:]),
			"length field too small":  append(with(packet.TCP, syn80), syn22...),
			"ipv4 inside":             append([]byte{0x45}, good[1:]...),
		} {
			a.inject(b, p)
			if got := b.recv(100 * time.Millisecond); got != nil {
				t.Errorf("%s passed", name)
			}
		}
		a.inject(b, good)
		b.want(time.Second, good)
	})
}

// Whatever is inside an authentic record: what reaches the kernel is from the agent, to the agent, and to port 80.
func FuzzAbuse15Accept(f *testing.F) {
	w := newWorld(f)
	a, b := w.idleNode(w.agent(), addrA), w.idleNode(w.agent(), addrB)
	b.know(a, &policy.Grant{Ports: []identity.PortRange{{Proto: 6, First: 80, Last: 80}}}, &policy.Grant{}).set()
	in := newInbound(b.o)
	in.snap, in.now = b.o.snap.Load(), b.o.now()
	s := &session{link: in.snap.routes[addresses(b.addr, a.addr)].link}
	f.Add(uint8(6), tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)[40:])
	f.Add(uint8(60), append([]byte{6, 0, 0, 0, 0, 0, 0, 0}, tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)[40:]...))
	f.Add(uint8(44), append([]byte{6, 0, 0, 0, 0, 0, 0, 0}, tcpPacket(a.addr, b.addr, 1000, 80, packet.SYN)[40:]...))
	b.o.limiter = drainedLimiter(in) // refusals would need a session to travel in
	f.Fuzz(func(t *testing.T, next uint8, body []byte) {
		p := ipPacket(a.addr, b.addr, next, body)
		var info packet.Info
		if !in.accept(s, p, 0, 0, &info) {
			return
		}
		for (next == packet.HopByHop || next == packet.DestOptions) && len(body) >= 8 {
			size := 8 * (int(body[1]) + 1)
			next, body = body[0], body[min(size, len(body)):]
		}
		echo := next == packet.ICMPv6 && len(body) >= 8 && (body[0] == packet.TypeEchoRequest || body[0] == packet.TypeEchoReply)
		if !echo && (next != packet.TCP || len(body) < 20 || body[2] != 0 || body[3] != 80) {
			t.Errorf("passed: %x", p)
		}
	})
}

// drainedLimiter has nothing left for the only destination of the fuzz target.
func drainedLimiter(in *inbound) *packet.Limiter {
	l := packet.NewLimiter()
	for _, r := range in.snap.routes {
		for l.Allow(r.link.in.Source(), in.now.at) {
		}
	}
	return l
}

// An address counts as a whole: one that shares all but the last bit with a trusted peer's is a stranger's.
func TestAbuse19SharedPrefixIsNoMatch(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := udpPacket(a.addr, b.addr, 1, 2, "hello")
		a.dev.Inject(p)
		b.want(time.Second, p)
		for bit := range 80 {
			near := b.addr.As16()
			near[6+bit/8] ^= 0x80 >> (bit % 8)
			if identity.Reserved(a.state.Prefix, netip.AddrFrom16(near)) {
				continue
			}
			q := udpPacket(a.addr, netip.AddrFrom16(near), 1, 2, "for b only")
			a.dev.Inject(q)
			a.wantError(0, packet.AdminProhibited, q)
			from := a.addr.As16()
			from[6+bit/8] ^= 0x80 >> (bit % 8)
			a.inject(b, udpPacket(netip.AddrFrom16(from), b.addr, 1, 2, "not a"))
			time.Sleep(100 * time.Millisecond)
		}
		b.silent(time.Second)
		if n := b.drops("inner-source"); n != 80 {
			t.Errorf("counted %d", n)
		}
		// And a State that gives the address of one key to another is refused.
		bad := a.state
		bad.Peers = append([]Peer(nil), a.state.Peers...)
		bad.Peers[0].Agent = w.agent().key.Public()
		if err := a.o.Set(bad); err == nil {
			t.Error("an address was taken over")
		}
	})
}

// A peer wraps its sealed records into packets of the tunnel itself, so that they come from its overlay address. Were that
// taken for its path, every answer would go into the tunnel again, and again, and grow.
func TestTunnelNeverRunsThroughItself(t *testing.T) {
	for name, before := range map[string]bool{"records": true, "handshakes": false} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				a, b := w.node(addrA), w.node(addrB)
				trust(a, b)
				p := udpPacket(b.addr, a.addr, 1, 2, "x")
				if before {
					b.dev.Inject(p)
					a.want(time.Second, p)
				}
				w.move(b.port, netip.AddrPortFrom(b.addr, 7745).String())
				b.dev.Inject(p)
				a.silent(time.Second)
				if a.drops(DropDatagram.String()) == 0 {
					t.Error("nothing was dropped")
				}
				if s := a.sessionWith(b); before != (s != nil) {
					t.Errorf("there is a session: %v", s != nil)
				} else if s != nil && s.path.Load().Remote.String() != addrB {
					t.Errorf("the path is %v", s.path.Load())
				}
			})
		})
	}
}
