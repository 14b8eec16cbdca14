// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/overlay/pmtu"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// sink is a device and an underlay that keep nothing, or the last datagrams where asked to.
type sink struct {
	keep      bool
	datagrams [][]byte
	packets   int // pieces written to the device
	writes    int
	offloads  tun.Offloads
}

func (s *sink) Send(_ underlay.Path, datagrams [][]byte) error {
	if s.keep {
		for _, d := range datagrams {
			s.datagrams = append(s.datagrams, bytes.Clone(d))
		}
	}
	return nil
}

func (s *sink) SendBursts(bursts []underlay.Burst) (int, error) {
	return underlay.SendEach(bursts, s.SendBurst)
}

func (s *sink) SendBurst(b *underlay.Burst) error {
	if s.keep {
		for d := range b.Each {
			s.datagrams = append(s.datagrams, bytes.Clone(d))
		}
	}
	return nil
}

func (s *sink) Receive(int, []underlay.Burst) (int, error) { return 0, net.ErrClosed }
func (s *sink) Accept(d []byte, from underlay.Path) ([]byte, underlay.Path, bool) {
	return d, from, false
}
func (s *sink) Fan(netip.AddrPort, int) ([]underlay.Path, error) { return nil, underlay.ErrFan }
func (s *sink) Unfan([]underlay.Path)                            {}
func (s *sink) Loops() int                                       { return 1 }
func (s *sink) Close() error                                     { return nil }
func (s *sink) Read([]byte, *tun.Header, bool) ([]byte, error)   { return nil, net.ErrClosed }
func (s *sink) Offloads() tun.Offloads                           { return s.offloads }
func (s *sink) Name() string                                     { return "sink" }
func (s *sink) MTU() int                                         { return 1420 }

func (s *sink) Write(h *tun.Header, pieces [][]byte) error {
	s.writes++
	s.packets += len(pieces)
	return nil
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
	sendAll(newOutbound(s.a, s.a.device), packets)
	s.a.runTimers(s.a.now())
	for _, d := range s.sa.take() {
		s.b.handleHandshake(arrival{d, s.fromA})
	}
	for _, d := range s.sb.take() {
		s.a.handleHandshake(arrival{d, s.toB})
	}
	s.feed(newInbound(s.b), s.sa.take())
	s.b.runTimers(s.b.now())
	for _, o := range []*Overlay{s.a, s.b} {
		for _, r := range o.snap.Load().routes {
			if r.link.current.Load() == nil {
				s.tb.Fatal("no session")
			}
		}
	}
	s.carries(1420 + noise.Overhead)
	s.sa.keep, s.sb.keep, s.sb.packets = false, false, 0
	return s
}

// carries makes both ends find that the path carries datagrams of a size, and nothing longer. It is then settled.
func (s *still) carries(size int) {
	for _, o := range []*Overlay{s.a, s.b} {
		for _, r := range o.snap.Load().routes {
			l := r.link
			search := pmtu.New(size)
			search.Answered(size, time.Millisecond, 0)
			search.Step(0, false)
			l.sizes.searches = []pathSearch{{*l.current.Load().path.Load(), search}}
			tellLimit(l.current.Load(), search)
		}
	}
}

func (s *still) feed(in *inbound, records [][]byte) {
	if err := in.receive(s.bursts(records)); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *still) bursts(records [][]byte) []underlay.Burst {
	bursts := make([]underlay.Burst, len(records))
	for i, r := range records {
		bursts[i] = underlay.Burst{Path: s.fromA, Data: r, Size: len(r)}
	}
	return bursts
}

// sendAll is what the loop does with packets that the device has at once.
func sendAll(out *outbound, packets [][]byte) {
	out.begin()
	for _, p := range packets {
		out.send(p, &tun.Header{})
	}
	out.flush()
}

func (s *still) burst(n, size int) (bufs [][]byte) {
	for range n {
		bufs = append(bufs, udpPacket(s.pa.addr, s.pb.addr, 1000, 2000, string(make([]byte, size-48))))
	}
	return bufs
}

// records returns sealed bursts for b.
func (s *still) records(n, size int) [][]byte {
	s.sa.keep = true
	bufs, out := s.burst(64, size), newOutbound(s.a, s.a.device)
	for range (n + 63) / 64 {
		sendAll(out, bufs)
	}
	s.sa.keep = false
	return s.sa.take()[:n]
}

func TestDataPathDoesNotAllocate(t *testing.T) {
	s := newStill(t).connect()
	bufs, out := s.burst(32, 1400), newOutbound(s.a, s.a.device)
	if n := testing.AllocsPerRun(50, func() { sendAll(out, bufs) }); n != 0 {
		t.Errorf("out: %v allocations for a burst", n)
	}
	const runs, burst = 50, 16
	records := s.records((runs+1)*burst, 1400)
	in, bursts := newInbound(s.b), s.bursts(records)
	if n := testing.AllocsPerRun(runs, func() {
		if err := in.receive(bursts[:burst]); err != nil {
			t.Error(err)
		}
		bursts = bursts[burst:]
	}); n != 0 {
		t.Errorf("in: %v allocations for a burst", n)
	}
	if s.sb.packets != (runs+1)*burst {
		t.Errorf("%d of %d packets came through", s.sb.packets, (runs+1)*burst)
	}
	// Denials neither: a program that is refused must not cost memory.
	p := tcpPacket(s.pa.addr, identity.Address(s.a.network, identity.AgentPublic{1}), 1, 2, packet.SYN)
	bufs = [][]byte{p}
	if n := testing.AllocsPerRun(30, func() { sendAll(out, bufs) }); n != 0 {
		t.Errorf("denied: %v allocations", n)
	}
}

// Neighbours with one path travel together; another path begins another batch.
func TestBatchesByPath(t *testing.T) {
	s := newStill(t).connect()
	counter := &batchCounter{sink: s.sa}
	s.a.under = counter
	sendAll(newOutbound(s.a, s.a.device), s.burst(64, 100))
	if counter.calls != 1 || counter.datagrams != 64 {
		t.Errorf("%d calls for %d datagrams", counter.calls, counter.datagrams)
	}
}

// What differs in length travels in several bursts, which leave together, in the order in which they came.
func TestBurstsOfMixedLengths(t *testing.T) {
	s := newStill(t).connect()
	counter := &batchCounter{sink: s.sa}
	s.a.under = counter
	s.sa.keep = true
	var packets [][]byte
	for i := range 64 {
		packets = append(packets, s.burst(1, 100+100*(i%3))...)
	}
	out := newOutbound(s.a, s.a.device)
	sendAll(out, packets)
	if counter.datagrams != len(packets) || counter.calls > 4 {
		t.Errorf("%d calls for %d datagrams", counter.calls, counter.datagrams)
	}
	last := uint64(0)
	for i, d := range s.sa.datagrams {
		n := binary.BigEndian.Uint64(d[8:16])
		if i > 0 && n != last+1 {
			t.Fatalf("datagram %d has counter %d behind %d", i, n, last)
		}
		last = n
	}
	if len(s.sa.datagrams) != len(packets) {
		t.Errorf("%d datagrams of %d", len(s.sa.datagrams), len(packets))
	}
	s.sa.keep = false
	if n := testing.AllocsPerRun(30, func() { sendAll(out, packets) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type batchCounter struct {
	*sink
	calls, datagrams int
}

func (c *batchCounter) SendBursts(bursts []underlay.Burst) (int, error) {
	c.calls++
	for i := range bursts {
		for range bursts[i].Each {
			c.datagrams++
		}
	}
	return c.sink.SendBursts(bursts)
}

func BenchmarkOverlaySend(b *testing.B) {
	s := newStill(b).connect()
	bufs, out := s.burst(64, 1400), newOutbound(s.a, s.a.device)
	b.SetBytes(64 * 1400)
	b.ReportAllocs()
	for b.Loop() {
		sendAll(out, bufs)
	}
}

func BenchmarkOverlayReceive(b *testing.B) {
	s := newStill(b).connect()
	const burst = 16
	in := newInbound(s.b)
	b.SetBytes(burst * 1400)
	b.ReportAllocs()
	var bursts []underlay.Burst
	for b.Loop() {
		if len(bursts) == 0 {
			b.StopTimer()
			bursts = s.bursts(s.records(64*burst, 1400))
			b.StartTimer()
		}
		if err := in.receive(bursts[:burst]); err != nil {
			b.Fatal(err)
		}
		bursts = bursts[burst:]
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
