// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// sink is a device and an underlay that keep nothing, or the last datagrams where asked to.
type sink struct {
	keep      bool
	datagrams [][]byte
	packets   int
}

func (s *sink) Send(_ underlay.Path, datagrams [][]byte) error {
	if s.keep {
		for _, d := range datagrams {
			s.datagrams = append(s.datagrams, bytes.Clone(d))
		}
	}
	return nil
}

func (s *sink) Receive(int, [][]byte, []int, []underlay.Path) (int, error) { return 0, net.ErrClosed }
func (s *sink) Loops() int                                                 { return 1 }
func (s *sink) Close() error                                               { return nil }
func (s *sink) Read([][]byte, []int, int) (int, error)                     { return 0, net.ErrClosed }
func (s *sink) BatchSize() int                                             { return 64 }
func (s *sink) Name() string                                               { return "sink" }
func (s *sink) MTU() int                                                   { return 1420 }

func (s *sink) Write(bufs [][]byte, offset int) (int, error) {
	if offset != tun.Headroom {
		panic("no headroom")
	}
	s.packets += len(bufs)
	return len(bufs), nil
}

func (s *sink) take() [][]byte {
	d := s.datagrams
	s.datagrams = nil
	return d
}

// still is two overlays that no goroutine drives, with a session between them.
type still struct {
	tb         testing.TB
	a, b       *Overlay
	sa, sb     *sink
	pa, pb     *agent
	toB, fromA underlay.Path
}

func newStill(tb testing.TB) *still {
	w := newWorld(tb)
	s := &still{tb: tb, sa: &sink{keep: true}, sb: &sink{keep: true}, pa: w.agent(), pb: w.agent()}
	s.toB = underlay.Path{Remote: netip.MustParseAddrPort(addrB)}
	s.fromA = underlay.Path{Remote: netip.MustParseAddrPort(addrA)}
	for _, side := range []struct {
		o      **Overlay
		sink   *sink
		me, to *agent
		at     netip.AddrPort
	}{{&s.a, s.sa, s.pa, s.pb, s.toB.Remote}, {&s.b, s.sb, s.pb, s.pa, s.fromA.Remote}} {
		o := must(New(Options{Network: w.authority.Public(), Device: side.sink, Underlay: side.sink, AES: true}))
		if err := o.Set(State{
			Prefix: o.snap.Load().prefix, Locals: []noise.Local{side.me.local()},
			Peers:  []Peer{{Agent: side.to.key.Public(), Addr: side.to.addr, Tunnel: side.to.stmt, Candidates: []netip.AddrPort{side.at}}},
			Policy: openPolicy(side.me, side.to),
		}); err != nil {
			tb.Fatal(err)
		}
		*side.o = o
	}
	return s
}

func openPolicy(me, to *agent) map[identity.AgentPublic]*policy.Compiled {
	return map[identity.AgentPublic]*policy.Compiled{
		me.key.Public(): policy.Compile([]policy.Rule{{Addr: to.addr, Inbound: &policy.Grant{}, Outbound: &policy.Grant{}}}),
	}
}

// connect makes the session by hand: what the goroutines of Run do.
func (s *still) connect() *still {
	packets := [][]byte{udpPacket(s.pa.addr, s.pb.addr, 1, 2, "first")}
	newOutbound(s.a, 1).send(packets, []int{len(packets[0])})
	s.a.runTimers(s.a.now())
	for _, d := range s.sa.take() {
		s.b.handleHandshake(arrival{d, s.fromA})
	}
	for _, d := range s.sb.take() {
		s.a.handleHandshake(arrival{d, s.toB})
	}
	s.feed(newInbound(s.b, 1), s.sa.take())
	s.b.runTimers(s.b.now())
	for _, o := range []*Overlay{s.a, s.b} {
		for _, r := range o.snap.Load().routes {
			if r.link.current.Load() == nil {
				s.tb.Fatal("no session")
			}
		}
	}
	s.sa.keep, s.sb.keep, s.sb.packets = false, false, 0
	return s
}

func (s *still) feed(in *inbound, records [][]byte) {
	sizes, paths := make([]int, len(records)), make([]underlay.Path, len(records))
	for i, r := range records {
		sizes[i], paths[i] = len(r), s.fromA
	}
	if err := in.receive(records, sizes, paths); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *still) burst(n, size int) (bufs [][]byte, sizes []int) {
	for range n {
		p := udpPacket(s.pa.addr, s.pb.addr, 1000, 2000, string(make([]byte, size-48)))
		bufs, sizes = append(bufs, p), append(sizes, len(p))
	}
	return bufs, sizes
}

// records returns sealed bursts for b.
func (s *still) records(n, size int) [][]byte {
	s.sa.keep = true
	bufs, sizes := s.burst(64, size)
	out := newOutbound(s.a, 64)
	for range (n + 63) / 64 {
		out.send(bufs, sizes)
	}
	s.sa.keep = false
	return s.sa.take()[:n]
}

func TestDataPathDoesNotAllocate(t *testing.T) {
	s := newStill(t).connect()
	bufs, sizes := s.burst(32, 1400)
	out := newOutbound(s.a, 32)
	if n := testing.AllocsPerRun(50, func() { out.send(bufs, sizes) }); n != 0 {
		t.Errorf("out: %v allocations for a burst", n)
	}
	const runs, burst = 50, 16
	records := s.records((runs+1)*burst, 1400)
	in := newInbound(s.b, burst)
	rsizes, paths := make([]int, burst), make([]underlay.Path, burst)
	for i := range burst {
		rsizes[i], paths[i] = len(records[0]), s.fromA
	}
	if n := testing.AllocsPerRun(runs, func() {
		if err := in.receive(records[:burst], rsizes, paths); err != nil {
			t.Error(err)
		}
		records = records[burst:]
	}); n != 0 {
		t.Errorf("in: %v allocations for a burst", n)
	}
	if s.sb.packets != (runs+1)*burst {
		t.Errorf("%d of %d packets came through", s.sb.packets, (runs+1)*burst)
	}
	// Denials neither: a program that is refused must not cost memory.
	p := tcpPacket(s.pa.addr, identity.Address(s.a.network, identity.AgentPublic{1}), 1, 2, packet.SYN)
	bufs, sizes = [][]byte{p}, []int{len(p)}
	if n := testing.AllocsPerRun(30, func() { out.send(bufs, sizes) }); n != 0 {
		t.Errorf("denied: %v allocations", n)
	}
}

// Neighbours with one path travel together; another path begins another batch.
func TestBatchesByPath(t *testing.T) {
	s := newStill(t).connect()
	counter := &batchCounter{sink: s.sa}
	s.a.under = counter
	bufs, sizes := s.burst(64, 100)
	newOutbound(s.a, 64).send(bufs, sizes)
	if counter.calls != 1 || counter.datagrams != 64 {
		t.Errorf("%d calls for %d datagrams", counter.calls, counter.datagrams)
	}
}

type batchCounter struct {
	*sink
	calls, datagrams int
}

func (c *batchCounter) Send(p underlay.Path, d [][]byte) error {
	c.calls++
	c.datagrams += len(d)
	return c.sink.Send(p, d)
}

func BenchmarkOverlaySend(b *testing.B) {
	s := newStill(b).connect()
	bufs, sizes := s.burst(64, 1400)
	out := newOutbound(s.a, 64)
	b.SetBytes(64 * 1400)
	b.ReportAllocs()
	for b.Loop() {
		out.send(bufs, sizes)
	}
}

func BenchmarkOverlayReceive(b *testing.B) {
	s := newStill(b).connect()
	const burst = 16
	in := newInbound(s.b, burst)
	rsizes, paths := make([]int, burst), make([]underlay.Path, burst)
	b.SetBytes(burst * 1400)
	b.ReportAllocs()
	var records [][]byte
	for b.Loop() {
		if len(records) == 0 {
			b.StopTimer()
			records = s.records(64*burst, 1400)
			for i := range burst {
				rsizes[i], paths[i] = len(records[0]), s.fromA
			}
			b.StartTimer()
		}
		if err := in.receive(records[:burst], rsizes, paths); err != nil {
			b.Fatal(err)
		}
		records = records[burst:]
	}
}

func BenchmarkFlowLookup(b *testing.B) {
	s := newStill(b)
	snap := s.a.snap.Load()
	p := tcpPacket(s.pa.addr, s.pb.addr, 1000, 80, packet.ACK)
	r := snap.routes[packet.AddressesOf(p)]
	q := question{local: r.link.out, peer: r.link.addr, rules: r.rules, generation: 1, now: s.a.now(), outbound: true}
	var info packet.Info
	if err := packet.Parse(p, &info); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if s.a.flows.permit(&q, p, &info) != policy.Allow {
			b.Fatal("denied")
		}
	}
}
