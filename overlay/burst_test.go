// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// largeSend is what a kernel hands over for one send of n bytes on a TCP connection.
func (s *still) largeSend(n int, seq uint32) ([]byte, tun.Header) {
	b := binary.BigEndian.AppendUint16(nil, 1000)
	b = binary.BigEndian.AppendUint16(b, 2000)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = append(b, 1, 1, 1, 1, 8<<4, packet.ACK, 2, 2, 0, 0, 0, 0)
	b = append(b, make([]byte, 12)...)
	for i := range n {
		b = append(b, byte(i*7+i>>8))
	}
	p := ipPacket(s.pa.addr, s.pb.addr, packet.TCP, b)
	return p, tun.Header{Kind: tun.KindTCP, Segment: 1348, Length: 72, Partial: true, Start: 40, Offset: 16}
}

// recorder keeps what is written to the device.
type recorder struct {
	*sink
	headers []tun.Header
	packets [][]byte
}

func (r *recorder) Write(h *tun.Header, pieces [][]byte) error {
	if h == nil {
		h = &tun.Header{}
	}
	r.headers, r.packets = append(r.headers, *h), append(r.packets, bytes.Join(pieces, nil))
	return nil
}

func (s *still) record(offloads tun.Offloads) *recorder {
	s.sb.offloads = offloads
	r := &recorder{sink: s.sb}
	s.b.device = r
	return r
}

// A burst is one send, and comes out as the burst that it was; where the device can't take it, as packets with checksums.
func TestBurstThroughTheTunnel(t *testing.T) {
	s := newStill(t).connect()
	counter := &batchCounter{sink: s.sa}
	s.a.under = counter
	for _, offloads := range []tun.Offloads{tun.OffloadChecksum | tun.OffloadTCP | tun.OffloadUDP, tun.OffloadChecksum, 0} {
		r := s.record(offloads)
		s.sa.keep, counter.calls = true, 0
		p, h := s.largeSend(45*1348, 1)
		want := bytes.Clone(p)
		out := newOutbound(s.a, s.a.device)
		out.begin()
		out.send(p, &h)
		out.flush()
		if counter.calls != 1 {
			t.Errorf("%d sends", counter.calls)
		}
		s.feed(newInbound(s.b), s.sa.take())
		if offloads&tun.OffloadTCP != 0 {
			if len(r.packets) != 1 || r.headers[0] != h || !bytes.Equal(r.packets[0][72:], want[72:]) || !bytes.Equal(r.packets[0][:56], want[:56]) {
				t.Fatalf("%d packets, %+v", len(r.packets), r.headers)
			}
			continue
		}
		if len(r.packets) != 45 {
			t.Fatalf("%d packets", len(r.packets))
		}
		var data []byte
		for i, q := range r.packets {
			h := r.headers[i]
			if h.Partial != (offloads != 0) || h.Kind != tun.KindPacket {
				t.Fatalf("offloads %d: %+v", offloads, h)
			}
			got := bytes.Clone(q)
			var info packet.Info
			if err := packet.Parse(got, &info); err != nil {
				t.Fatal(err)
			}
			packet.Complete(got, &info)
			if offloads == 0 && !bytes.Equal(got, q) {
				t.Fatalf("packet %d has a wrong checksum", i)
			}
			data = append(data, q[72:]...)
		}
		if !bytes.Equal(data, want[72:]) {
			t.Error("other bytes")
		}
	}
}

// Two thirds of a burst arrive, in another order, some twice: what comes out is in it, once, with what belongs to it.
func TestBurstThroughABadNetwork(t *testing.T) {
	s := newStill(t).connect()
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := s.record(tun.OffloadChecksum | tun.OffloadTCP)
		s.sa.keep = true
		p, h := s.largeSend(40*1348+5, rnd.Uint32())
		first, payload := binary.BigEndian.Uint32(p[44:]), bytes.Clone(p[72:])
		out := newOutbound(s.a, s.a.device)
		out.begin()
		out.send(p, &h)
		out.flush()
		records := s.sa.take()
		rnd.Shuffle(len(records)/3, func(i, j int) { records[i], records[j] = records[j], records[i] })
		arriving := append(records[:20:20], records[25:]...)
		for _, d := range arriving[:5] {
			arriving = append(arriving, bytes.Clone(d))
		}
		s.feed(newInbound(s.b), arriving)
		seen := make([]bool, len(payload))
		for i, q := range r.packets {
			at := int(binary.BigEndian.Uint32(q[44:]) - first)
			if len(q)-72 > 1348 && r.headers[i].Kind != tun.KindTCP || !bytes.Equal(payload[at:at+len(q)-72], q[72:]) {
				t.Fatalf("seed %d: %d bytes at %d, %+v", seed, len(q)-72, at, r.headers[i])
			}
			for k := range len(q) - 72 {
				if seen[at+k] {
					t.Fatalf("seed %d: byte %d came twice", seed, at+k)
				}
				seen[at+k] = true
			}
		}
		for k, ok := range seen {
			if lost := k >= 20*1348 && k < 25*1348; ok == lost {
				t.Fatalf("seed %d: byte %d: %v", seed, k, ok)
			}
		}
	}
}

func TestBurstDoesNotAllocate(t *testing.T) {
	s := newStill(t).connect()
	s.sb.offloads = tun.OffloadChecksum | tun.OffloadTCP | tun.OffloadUDP
	p, h := s.largeSend(45*1348, 1)
	fresh, out := bytes.Clone(p), newOutbound(s.a, s.a.device)
	if n := testing.AllocsPerRun(50, func() {
		copy(p, fresh)
		out.begin()
		out.send(p, &h)
		out.flush()
	}); n != 0 {
		t.Errorf("out: %v allocations", n)
	}
	var arrived []underlay.Burst
	for range 51 {
		s.sa.keep = true
		copy(p, fresh)
		out.begin()
		out.send(p, &h)
		out.flush()
		arrived = append(arrived, underlay.Burst{Path: s.fromA, Size: 1452, Data: bytes.Join(s.sa.take(), nil)})
	}
	in, writes := newInbound(s.b), s.sb.writes
	if n := testing.AllocsPerRun(50, func() {
		if err := in.receive(arrived[:1]); err != nil {
			t.Error(err)
		}
		arrived = arrived[1:]
	}); n != 0 {
		t.Errorf("in: %v allocations", n)
	}
	if s.sb.writes-writes != 51 {
		t.Errorf("%d writes for 51 bursts", s.sb.writes-writes)
	}
}

// A burst is asked about once, and refused as one packet would be.
func TestBurstIsDenied(t *testing.T) {
	s := newStill(t).connect()
	r := &recorder{sink: s.sa}
	s.a.device = r
	r.headers, r.packets = nil, nil
	if err := s.a.Set(State{Prefix: s.a.snap.Load().prefix, Locals: []noise.Local{s.pa.local()},
		Policy: map[identity.AgentPublic]*policy.Compiled{s.pa.key.Public(): policy.Compile([]policy.Rule{{Peer: s.pb.key.Public(), Addr: s.pb.addr}})},
		Peers:  []Peer{{Agent: s.pb.key.Public(), Addr: s.pb.addr, Tunnel: s.pb.stmt}}}); err != nil {
		t.Fatal(err)
	}
	p, h := s.largeSend(45*1348, 1)
	out := newOutbound(s.a, s.a.device)
	out.begin()
	out.send(p, &h)
	out.flush()
	if n := s.a.counters.deniedOut[policy.DenyNoConsentLocal].Load(); n != 1 || len(r.packets) != 1 {
		t.Fatalf("denied %d times, %d answers, %v", n, len(r.packets), s.a.Status().Drops)
	}
	var info packet.Info
	if err := packet.Parse(r.packets[0], &info); err != nil || info.TCPFlags != packet.RST {
		t.Errorf("%v, %+v", err, info)
	}
}

// A sender's word that a checksum is to be completed is taken for TCP and UDP alone.
func TestPartialIsForTCPAndUDP(t *testing.T) {
	s := newStill(t).connect()
	session := s.a.snap.Load().routes[addresses(s.pa.addr, s.pb.addr)].link.current.Load()
	before := s.sb.writes
	for _, p := range [][]byte{ipPacket(s.pa.addr, s.pb.addr, packet.ICMPv6, []byte{128, 0, 0, 0, 0, 1, 0, 1}), ipPacket(s.pa.addr, s.pb.addr, packet.Fragment, make([]byte, 16))} {
		record, err := session.noise.Seal(nil, noise.FlagPartial, p)
		if err != nil {
			t.Fatal(err)
		}
		s.feed(newInbound(s.b), [][]byte{record})
	}
	if n := s.b.counters.drops[DropMalformed].Load(); n != 2 || s.sb.writes != before {
		t.Errorf("%d dropped, %d written", n, s.sb.writes-before)
	}
}

func TestCongestionIsCarried(t *testing.T) {
	s := newStill(t).connect()
	for _, tt := range []struct{ inner, outer, want uint8 }{
		{0xb8, 0xb8, 0xb8}, {0x02, 0x02, 0x02}, {0x02, 0x03, 0x03}, {0x01, 0x03, 0x03}, {0x02, 0x01, 0x01}, {0x03, 0x00, 0x03},
		{0x02, 0xfe, 0x02}, {0xb8, 0x03, 0xff},
	} {
		r := s.record(0)
		s.sa.keep = true
		p := udpPacket(s.pa.addr, s.pb.addr, 1, 2, "mark")
		p[0], p[1] = 0x60|tt.inner>>4, tt.inner<<4
		out := newOutbound(s.a, s.a.device)
		out.begin()
		out.send(p, &tun.Header{})
		if class := out.burst.Class; class != tt.inner {
			t.Errorf("%x went out with class %x", tt.inner, class)
		}
		out.flush()
		records := s.bursts(s.sa.take())
		records[0].Class = tt.outer
		if err := newInbound(s.b).receive(records); err != nil {
			t.Fatal(err)
		}
		if tt.want == 0xff {
			if len(r.packets) != 0 || s.b.counters.drops[DropECN].Load() != 1 {
				t.Errorf("%+v: passed", tt)
			}
			continue
		}
		if len(r.packets) != 1 || r.packets[0][0]<<4|r.packets[0][1]>>4 != tt.want {
			t.Errorf("%+v: %x", tt, r.packets)
		}
	}
}

func BenchmarkBurstSend(b *testing.B) {
	s := newStill(b).connect()
	p, h := s.largeSend(45*1348, 1)
	head, out := bytes.Clone(p[:72]), newOutbound(s.a, s.a.device)
	b.SetBytes(45 * 1348)
	b.ReportAllocs()
	for b.Loop() {
		copy(p, head)
		out.begin()
		out.send(p, &h)
		out.flush()
	}
}
