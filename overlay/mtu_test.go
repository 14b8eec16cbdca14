// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/overlay/parts"
	"github.com/pilot-protocol/pilot/overlay/pmtu"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// carry makes the wire swallow all datagrams of more than size bytes.
func (w *world) carry(size int) {
	w.setWeather(func(_, _ netip.AddrPort, d []byte) []time.Duration {
		if len(d) > size {
			return nil
		}
		return []time.Duration{latency}
	})
}

// sized is a UDP packet of n bytes.
func sized(from, to netip.Addr, n int) []byte {
	data := make([]byte, n-48)
	for i := range data {
		data[i] = byte(i)
	}
	return udpPacket(from, to, 1000, 2000, string(data))
}

// wantTooBig reads an ICMPv6 error that says how long p may be.
func (n *node) wantTooBig(p []byte, mtu uint32) {
	n.w.t.Helper()
	e := n.recv(time.Second)
	if e == nil || e[40] != packet.TypeTooBig || binary.BigEndian.Uint32(e[44:]) != mtu || !bytes.HasPrefix(p, e[48:]) {
		n.w.t.Fatalf("got %.64x, want %d about %.64x", e, mtu, p)
	}
}

// Over a path that swallows what is long, a session is made, packets of each length arrive at once, and programs learn what
// fits when it is known.
func TestNarrowPath(t *testing.T) {
	for _, tt := range []struct {
		size, mtu int
		within    time.Duration // of the first packet
	}{{1452, 1420, time.Second}, {1420, 1388, time.Second}, {1252, 1280, time.Second}, {1096, 1280, 400 * time.Millisecond}, {850, 1280, 400 * time.Millisecond}} {
		inWorld(t, func(t *testing.T, w *world) {
			w.carry(tt.size)
			a, b := w.node(addrA), w.node(addrB)
			trust(a, b)
			p := sized(a.addr, b.addr, 1420)
			a.dev.Inject(p)
			b.want(tt.within, p)
			for n := 48; n <= 1420; n += 77 {
				p := sized(b.addr, a.addr, n)
				b.dev.Inject(p)
				a.want(time.Second, p)
			}
			for range 20 { // it is searched while it is used
				p := sized(a.addr, b.addr, 1280)
				a.dev.Inject(p)
				b.want(time.Second, p)
				time.Sleep(500 * time.Millisecond)
			}
			if s := a.sessionWith(b); !s.sizes.found.Load().settled || min(1452, tt.size)-s.sizes.found.Load().limit >= 4 {
				t.Errorf("size %d: limit %d", tt.size, s.sizes.found.Load().limit)
			}
			for n := 1270; n <= 1420; n++ {
				p := sized(a.addr, b.addr, n)
				a.dev.Inject(p)
				if n <= tt.mtu-3 || n <= 1280 {
					b.want(time.Second, p)
				} else if n > tt.mtu {
					mtu := max(1280, a.sessionWith(b).sizes.found.Load().limit-noise.Overhead)
					a.wantTooBig(p, uint32(mtu))
				} else {
					a.recv(latency)
					b.recv(2 * latency)
				}
				time.Sleep(50 * time.Millisecond) // errors are limited
			}
		})
	}
}

// A path becomes narrow while it is used, and wide again.
func TestPathThatChanges(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		use := func(length time.Duration) (lost time.Duration) {
			t.Helper()
			for range length / (100 * time.Millisecond) {
				p := sized(a.addr, b.addr, 1280)
				a.dev.Inject(p)
				if got := b.recv(100 * time.Millisecond); got == nil {
					lost += 100 * time.Millisecond
				} else if time.Sleep(100*time.Millisecond - latency); !bytes.Equal(got, p) {
					t.Fatalf("got %x", got)
				}
			}
			return lost
		}
		if lost := use(3 * time.Second); lost > 0 {
			t.Errorf("%v were lost on a good path", lost)
		}
		w.carry(1096)
		lost := use(10 * time.Second)
		t.Logf("nothing came for %v", lost)
		if lost > 600*time.Millisecond {
			t.Errorf("nothing came for %v", lost)
		}
		s := a.sessionWith(b)
		if limit := s.sizes.found.Load().limit; limit > 1096 || limit <= 1092 {
			t.Errorf("limit %d", limit)
		}
		w.setWeather(nil)
		use(11 * time.Minute)
		if limit := a.sessionWith(b).sizes.found.Load().limit; limit != 1452 {
			t.Errorf("limit %d", limit)
		}
	})
}

// Where nobody uses a session nothing is probed.
func TestIdleSessionIsNotProbed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.carry(1252)
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := sized(a.addr, b.addr, 1280)
		a.dev.Inject(p)
		b.want(time.Second, p)
		time.Sleep(20 * time.Second)
		before := len(w.datagrams())
		time.Sleep(2 * time.Minute)
		for _, d := range w.datagrams()[before:] {
			if len(d) > 200 {
				t.Fatalf("%d bytes were sent", len(d))
			}
		}
	})
}

// swallowed makes the wire carry what carries says, and counts the records of packets that were longer. Probes are not counted.
func (w *world) swallowed(carries func(from, to netip.AddrPort) int) *atomic.Int32 {
	n := new(atomic.Int32)
	w.setWeather(func(from, to netip.AddrPort, d []byte) []time.Duration {
		if len(d) <= carries(from, to) {
			return []time.Duration{latency}
		}
		if noise.Kind(d) == noise.KindRecord && noise.Flags(d[1])&noise.FlagControl == 0 {
			n.Add(1)
		}
		return nil
	})
	return n
}

// Whatever a path carries, a new session sends no packet in a datagram that it does not carry, and uses most of what it carries
// when its first packets have been answered.
func TestNothingIsSwallowedOnANewPath(t *testing.T) {
	for _, size := range []int{1472, 1372, 1252, 1096, 1000, 850} {
		inWorld(t, func(t *testing.T, w *world) {
			lost := w.swallowed(func(_, _ netip.AddrPort) int { return size })
			a, b := w.node(addrA), w.node(addrB)
			trust(a, b)
			p, back := sized(a.addr, b.addr, 1420), sized(b.addr, a.addr, 1420)
			a.dev.Inject(p)
			b.want(time.Second, p)
			b.dev.Inject(back)
			a.want(2*latency, back)
			time.Sleep(2 * latency)
			for _, s := range []*session{a.sessionWith(b), b.sessionWith(a)} {
				if limit := s.sizes.found.Load().limit; limit < min(size, 1452)*3/4 {
					t.Errorf("size %d: limit %d after two round trips", size, limit)
				}
			}
			for range 300 {
				a.dev.Inject(sized(a.addr, b.addr, 1280))
				b.want(2*latency, sized(a.addr, b.addr, 1280))
			}
			if n := lost.Load(); n > 0 {
				t.Errorf("size %d: %d records were swallowed", size, n)
			}
		})
	}
}

// A peer that moves to where less passes loses nothing for it, in either direction.
func TestNothingIsSwallowedAfterAMove(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		narrow := netip.MustParseAddrPort(addrB2)
		lost := w.swallowed(func(from, to netip.AddrPort) int {
			if from == narrow || to == narrow {
				return 1096
			}
			return 1472
		})
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p, back := sized(a.addr, b.addr, 1280), sized(b.addr, a.addr, 1280)
		exchange := func() {
			t.Helper()
			for range 50 {
				a.dev.Inject(p)
				b.want(2*latency, p)
				b.dev.Inject(back)
				a.want(2*latency, back)
			}
		}
		a.dev.Inject(p)
		b.want(time.Second, p)
		exchange()
		w.move(b.port, addrB2)
		b.o.Refresh()
		time.Sleep(3*latency + time.Millisecond) // until a has proved the new path
		exchange()
		if n := lost.Load(); n > 0 {
			t.Errorf("%d records were swallowed", n)
		}
		for _, s := range []*session{a.sessionWith(b), b.sessionWith(a)} {
			if limit := s.sizes.found.Load().limit; limit > 1096 || limit <= 1092 {
				t.Errorf("limit %d", limit)
			}
		}
	})
}

// Long probes go along the path in use, which is proved: whoever names an address as the peer's has nothing sent there but first
// messages and short pings.
func TestLongProbesGoToProvedAddressesOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		victim := netip.MustParseAddrPort("203.0.113.9:53")
		var long, short atomic.Int32
		w.setWeather(func(_, to netip.AddrPort, d []byte) []time.Duration {
			if to == victim && noise.Kind(d) == noise.KindRecord {
				if len(d) > pongSize+noise.Overhead {
					long.Add(1)
				} else {
					short.Add(1)
				}
			}
			if len(d) > 1096 {
				return nil
			}
			return []time.Duration{latency}
		})
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		a.state.Peers[0].Candidates = append(a.state.Peers[0].Candidates, victim)
		a.set()
		for range 300 {
			a.dev.Inject(sized(a.addr, b.addr, 1280))
			time.Sleep(100 * time.Millisecond)
		}
		if long.Load() > 0 || short.Load() == 0 {
			t.Errorf("%d long records and %d short ones", long.Load(), short.Load())
		}
	})
}

// Who was met over a narrow path is called with small datagrams at once.
func TestNarrowPeerIsCalledAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.carry(1096)
		a, b := w.node(addrA), w.node(addrB)
		trust(a, b)
		p := sized(a.addr, b.addr, 1280)
		a.dev.Inject(p)
		b.want(400*time.Millisecond, p)
		time.Sleep(noise.ExpireAfter + time.Minute)
		if a.sessionWith(b) != nil {
			t.Fatal("the session is still there")
		}
		a.dev.Inject(p)
		b.want(4*latency, p)
	})
}

// A path that is used again is searched from the beginning, with what it carried before as one of the first probes.
func TestLimitsAreRememberedByPath(t *testing.T) {
	s := newStill(t).connect()
	s.carries(1252)
	r := s.a.snap.Load().routes[addresses(s.pa.addr, s.pb.addr)]
	l, now := r.link, s.a.now()
	session := l.current.Load()
	old := session.path.Load()
	for i := range 2 * maxSearches {
		other := underlay.Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.77"), uint16(i+1))}
		session.path.Store(&other)
		s.a.sizesLocked(l, now)
		if limit := session.sizes.found.Load().limit; limit != pmtu.Least || session.sizes.found.Load().settled {
			t.Fatalf("path %d: limit %d", i, limit)
		}
		if i < maxSearches {
			session.path.Store(old)
			s.a.sizesLocked(l, now)
			if limit := session.sizes.found.Load().limit; limit != pmtu.Least || session.sizes.found.Load().settled {
				t.Fatalf("limit %d after path %d", limit, i)
			}
			for _, p := range slices.Clone(l.sizes.probes) {
				if p.path == *old && p.size == 1252 {
					s.a.sizeAnsweredLocked(l, p.id, now.at)
				}
			}
			s.a.sizesLocked(l, now)
			if limit := session.sizes.found.Load().limit; limit != 1252 {
				t.Fatalf("limit %d after path %d was answered", limit, i)
			}
		}
	}
	if n := len(l.sizes.searches); n > maxSearches || len(l.sizes.probes) > maxProbes {
		t.Errorf("%d paths and %d probes are remembered", n, len(l.sizes.probes))
	}
}

// sendOne sends what the device has, and returns the datagrams.
func (s *still) sendOne(p []byte, h tun.Header) [][]byte {
	s.sa.keep = true
	out := newOutbound(s.a, s.a.device)
	out.begin()
	out.send(p, &h)
	out.flush()
	s.sa.keep = false
	return s.sa.take()
}

// TCP is cut so that it fits, bursts and single segments alike, and arrives as its bytes; what can't be cut comes in parts.
func TestTCPIsCutToFit(t *testing.T) {
	s := newStill(t).connect()
	for _, size := range []int{1252, 1096, 800, pmtu.Least} {
		s.carries(size)
		r := s.record(tun.OffloadChecksum | tun.OffloadTCP)
		for _, tt := range []struct {
			n     int
			flags byte
			parts bool
		}{{45 * 1348, 0, false}, {1348, 0, false}, {1208, 0, false}, {1208, urgent, true}, {1208, packet.SYN, true}} {
			r.headers, r.packets = nil, nil
			p, h := s.largeSend(tt.n, 1000)
			p[53] |= tt.flags
			if tt.n <= 1348 {
				h.Kind = tun.KindPacket
			}
			want := bytes.Clone(p)
			datagrams := s.sendOne(p, h)
			for _, d := range datagrams {
				if len(d) > size || (noise.Flags(d[1])&noise.FlagPart != 0) != (tt.parts && len(want)+noise.Overhead > size) {
					t.Fatalf("%+v: a datagram of %d bytes on a path of %d, flags %x", tt, len(d), size, d[1])
				}
			}
			s.feed(newInbound(s.b), datagrams)
			var data []byte
			for _, q := range r.packets {
				if at := binary.BigEndian.Uint32(q[44:]); int(at) != 1000+len(data) {
					t.Fatalf("%+v: sequence number %d after %d bytes", tt, at, len(data))
				}
				data = append(data, q[72:]...)
			}
			if !bytes.Equal(data, want[72:]) {
				t.Errorf("size %d, %+v: %d bytes of %d", size, tt, len(data), len(want)-72)
			}
		}
	}
}

// Nobody is told about an ICMPv6 error that is too long, and no link of IPv6 asks for less than 1280: both come in parts. So
// does everything as long as the search goes on.
func TestWhatNobodyIsToldComesInParts(t *testing.T) {
	s := newStill(t).connect()
	s.carries(1100)
	told := &recorder{sink: s.sa}
	s.a.device = told
	search := s.a.snap.Load().routes[addresses(s.pa.addr, s.pb.addr)].link.current.Load()
	body := make([]byte, 1000)
	body[0], body[1] = packet.TypeEchoRequest, 0
	for _, tt := range []struct {
		p       []byte
		settled bool
		parts   int
	}{
		{sized(s.pa.addr, s.pb.addr, 1280), true, 2},
		{sized(s.pa.addr, s.pb.addr, 1281), true, 0},
		{sized(s.pa.addr, s.pb.addr, 1281), false, 2},
		{sized(s.pa.addr, s.pb.addr, 1420), false, 2},
		{ipPacket(s.pa.addr, s.pb.addr, packet.ICMPv6, append(body, make([]byte, 200)...)), true, 2},
	} {
		told.packets = nil
		search.sizes.found.Store(&found{1100, tt.settled})
		r := s.record(0)
		r.packets = nil
		datagrams := s.sendOne(bytes.Clone(tt.p), tun.Header{})
		s.feed(newInbound(s.b), datagrams)
		if len(datagrams) != tt.parts || (len(told.packets) == 1) != (tt.parts == 0) {
			t.Errorf("%d bytes, settled %v: %d datagrams, %d errors", len(tt.p), tt.settled, len(datagrams), len(told.packets))
		}
		if tt.parts > 0 && (len(r.packets) != 1 || !bytes.Equal(r.packets[0], tt.p)) {
			t.Errorf("%d bytes, settled %v: %d packets", len(tt.p), tt.settled, len(r.packets))
		}
	}
}

// A large send of UDP is datagrams: they keep their borders.
func TestUDPBurstOnANarrowPath(t *testing.T) {
	s := newStill(t).connect()
	s.carries(1100)
	r := s.record(tun.OffloadChecksum | tun.OffloadUDP)
	one := sized(s.pa.addr, s.pb.addr, 48+10*1200+7)
	h := tun.Header{Kind: tun.KindUDP, Segment: 1200, Length: 48, Partial: true, Start: 40, Offset: 6}
	datagrams := s.sendOne(one, h)
	if len(datagrams) != 21 {
		t.Errorf("%d datagrams", len(datagrams))
	}
	s.feed(newInbound(s.b), datagrams)
	var lengths []int
	for _, p := range r.packets {
		lengths = append(lengths, len(p))
	}
	if want := fmt.Sprint([]int{1248, 1248, 1248, 1248, 1248, 1248, 1248, 1248, 1248, 1248, 55}); fmt.Sprint(lengths) != want {
		t.Errorf("%v", lengths)
	}
}

// refuser is an underlay whose interface carries little.
type refuser struct {
	*sink
	size int
}

func (r *refuser) Send(p underlay.Path, datagrams [][]byte) error {
	var err error
	for _, d := range datagrams {
		if len(d) > r.size {
			err = underlay.ErrTooBig
		} else if e := r.sink.Send(p, [][]byte{d}); e != nil {
			err = e
		}
	}
	return err
}

func (r *refuser) SendBursts(bursts []underlay.Burst) (int, error) {
	return underlay.SendEach(bursts, r.SendBurst)
}

func (r *refuser) SendBurst(b *underlay.Burst) error {
	var err error
	for d := range b.Each {
		if e := r.Send(b.Path, [][]byte{d}); e != nil {
			err = e
		}
	}
	return err
}

// The host's own interface became narrow: the first send tells, and what follows fits.
func TestOwnInterfaceBecomesNarrow(t *testing.T) {
	s := newStill(t).connect()
	s.a.under = &refuser{sink: s.sa, size: 1072}
	p, h := s.largeSend(45*1348, 1)
	s.sendOne(bytes.Clone(p), h)
	s.a.runTimers(s.a.now())
	l := s.a.snap.Load().routes[addresses(s.pa.addr, s.pb.addr)].link
	if limit := l.current.Load().sizes.found.Load().limit; limit >= 1452 {
		t.Errorf("limit %d", limit)
	}
	s.sendOne(bytes.Clone(p), h)
	s.a.runTimers(s.a.now())
	if limit := l.current.Load().sizes.found.Load().limit; limit > 1072 {
		t.Errorf("limit %d", limit)
	}
	r := s.record(tun.OffloadChecksum | tun.OffloadTCP)
	s.feed(newInbound(s.b), s.sendOne(bytes.Clone(p), h))
	got := 0
	for _, q := range r.packets {
		got += len(q) - 72
	}
	if got != 45*1348 {
		t.Errorf("%d bytes arrived", got)
	}
}

// Parts that were recorded and sent again, that belong to nothing, or that are no parts, are dropped and counted.
func TestBadPartsAreDropped(t *testing.T) {
	s := newStill(t).connect()
	s.carries(1100)
	r := s.record(0)
	datagrams := s.sendOne(sized(s.pa.addr, s.pb.addr, 1280), tun.Header{})
	again := [][]byte{bytes.Clone(datagrams[0]), bytes.Clone(datagrams[1])}
	in := newInbound(s.b)
	s.feed(in, append([][]byte{datagrams[1], again[1]}, datagrams[0], again[0]))
	if len(r.packets) != 1 || s.b.counters.drops[DropReplay].Load() != 2 {
		t.Errorf("%d packets, %v", len(r.packets), s.b.Status().Drops)
	}
	from := s.a.snap.Load().routes[addresses(s.pa.addr, s.pb.addr)].link.current.Load()
	part := parts.Append(nil, sized(s.pa.addr, s.pb.addr, 1280), 77, 0, 2)
	var bad [][]byte
	for _, body := range [][]byte{nil, part[:6], part, part} {
		bad = append(bad, must(from.noise.Seal(nil, noise.FlagPart, body)))
	}
	s.feed(in, bad)
	if n := s.b.counters.drops[DropPart].Load(); n != 3 || len(r.packets) != 1 {
		t.Errorf("%d packets, %v", len(r.packets), s.b.Status().Drops)
	}
	// What is inside is looked at as in any record.
	foreign := sized(s.pb.addr, s.pb.addr, 1280)
	bad = nil
	for i := range 2 {
		bad = append(bad, must(from.noise.Seal(nil, noise.FlagPart, parts.Append(nil, foreign, 78, i, 2))))
	}
	s.feed(in, bad)
	if n := s.b.counters.drops[DropInnerSource].Load(); n != 1 || len(r.packets) != 1 {
		t.Errorf("%d packets, %v", len(r.packets), s.b.Status().Drops)
	}
}

func TestNarrowPathDoesNotAllocate(t *testing.T) {
	s := newStill(t).connect()
	s.carries(1100)
	s.sb.offloads = tun.OffloadChecksum | tun.OffloadTCP
	p, h := s.largeSend(45*1348, 1)
	fresh, single, out := bytes.Clone(p), sized(s.pa.addr, s.pb.addr, 1280), newOutbound(s.a, s.a.device)
	send := func() {
		copy(p, fresh)
		out.begin()
		out.send(p, &h)
		out.send(single, &tun.Header{})
		out.flush()
	}
	if n := testing.AllocsPerRun(50, send); n != 0 {
		t.Errorf("out: %v allocations", n)
	}
	s.sa.keep = true
	var records [][]byte
	for range 52 {
		send()
		records = append(records, s.sa.take()...)
	}
	in, each := newInbound(s.b), len(records)/52
	arrived := s.bursts(records)
	receive := func() {
		if err := in.receive(arrived[:each]); err != nil {
			t.Error(err)
		}
		arrived = arrived[each:]
	}
	receive() // the first part makes the assembler
	if n := testing.AllocsPerRun(50, receive); n != 0 {
		t.Errorf("in: %v allocations", n)
	}
}

// A first message that the host's own interface refuses is cut smaller at once.
func TestHandshakeOverANarrowInterface(t *testing.T) {
	s := newStill(t)
	s.a.under = &refuser{sink: s.sa, size: 1100}
	sendAll(newOutbound(s.a, s.a.device), [][]byte{udpPacket(s.pa.addr, s.pb.addr, 1, 2, "first")})
	now := s.a.now()
	s.a.runTimers(now)
	s.a.runTimers(now)
	datagrams := s.sa.take()
	if len(datagrams) != 3 || len(datagrams[0]) > noise.MaxSmallDatagram {
		t.Errorf("%d datagrams", len(datagrams))
	}
	for range 10 {
		s.a.runTimers(now)
	}
	if n := len(s.sa.take()); n != 0 {
		t.Errorf("%d more datagrams at once", n)
	}
}

// A cookie shows that the first message was not too long: it is sent again as it was.
func TestCookieIsNoReasonToSendSmall(t *testing.T) {
	s := newStill(t)
	sendAll(newOutbound(s.a, s.a.device), [][]byte{udpPacket(s.pa.addr, s.pb.addr, 1, 2, "first")})
	s.a.runTimers(s.a.now())
	first := s.sa.take()
	s.a.retryNow(s.a.snap.Load().routes[addresses(s.pa.addr, s.pb.addr)].link.attempt.id, s.a.now())
	if again := s.sa.take(); len(again) != len(first) || len(again[0]) != len(first[0]) {
		t.Errorf("%d datagrams of %d bytes, then %d of %d", len(first), len(first[0]), len(again), len(again[0]))
	}
}

// Over a relay the usual path carries less by the relay's header: that is guessed at once.
func TestRelayedPathIsFullAfterOneAnswer(t *testing.T) {
	s := newStill(t).connect()
	l := s.a.snap.Load().routes[addresses(s.pa.addr, s.pb.addr)].link
	session := l.current.Load()
	session.path.Store(&underlay.Path{Remote: netip.AddrPortFrom(s.pb.addr, 0), Relay: 7})
	s.sa.keep = true
	s.a.sizesLocked(l, s.a.now())
	var lengths []int
	for _, d := range s.sa.take() {
		lengths = append(lengths, len(d))
	}
	if fmt.Sprint(lengths) != fmt.Sprint([]int{1452, relayedIPv4, relayedIPv6, pmtu.Base, 1000, 800}) {
		t.Errorf("probes of %v", lengths)
	}
	for _, p := range l.sizes.probes {
		if p.size == relayedIPv4 {
			s.a.sizeAnsweredLocked(l, p.id, s.a.now().at)
			break
		}
	}
	s.a.sizesLocked(l, s.a.now())
	if limit := session.sizes.found.Load().limit; limit != relayedIPv4 {
		t.Errorf("limit %d", limit)
	}
}
