// SPDX-License-Identifier: Apache-2.0

package burst

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/tun"
)

// all is what a new Linux kernel takes.
const all = tun.OffloadChecksum | tun.OffloadTCP | tun.OffloadUDP

// large makes one large send of n bytes, as a kernel hands it over: headers as for one packet, sum over the pseudo header.
func large(kind tun.Kind, port, segment, n, options, extension int, seq uint32, flags uint8, r *rand.Rand) ([]byte, tun.Header) {
	p := make([]byte, packet.HeaderSize, packet.HeaderSize+n+options+extension+60)
	p[0], p[7], p[8], p[23], p[24], p[39] = 0x60, 64, 0xfd, 1, 0xfd, 2
	next := []byte{0: packet.TCP}
	if kind == tun.KindUDP {
		next[0] = packet.UDP
	}
	p[6] = next[0]
	if extension > 0 {
		p[6] = packet.DestOptions
		ext := make([]byte, extension)
		ext[0], ext[1] = next[0], byte(extension/8-1)
		p = append(p, ext...)
	}
	h := tun.Header{Kind: kind, Segment: uint16(segment), Partial: true, Start: uint16(len(p)), Offset: udpChecksumAt}
	p = binary.BigEndian.AppendUint16(p, uint16(port))
	p = binary.BigEndian.AppendUint16(p, 443)
	if kind == tun.KindUDP {
		p = binary.BigEndian.AppendUint16(p, uint16(8+n))
		p = append(p, 0, 0)
	} else {
		h.Offset = tcpChecksumAt
		p = binary.BigEndian.AppendUint32(p, seq)
		p = binary.BigEndian.AppendUint32(p, 77)
		p = append(p, byte(5+options/4)<<4, flags, 1, 2, 0, 0, 0, 0)
		for range options {
			p = append(p, 1)
		}
	}
	h.Length = uint16(len(p))
	for range n {
		p = append(p, byte(r.Uint32()))
	}
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-packet.HeaderSize))
	if n <= segment {
		h.Kind, h.Segment, h.Length = tun.KindPacket, 0, 0
	}
	return p, h
}

const (
	tcpChecksumAt = 16
	udpChecksumAt = 6
)

func parse(t testing.TB, p []byte) *packet.Info {
	t.Helper()
	var info packet.Info
	if err := packet.Parse(p, &info); err != nil {
		t.Fatalf("%v: %x", err, p[:min(len(p), 80)])
	}
	return &info
}

// cut returns copies of the segments, each with its checksum.
func cut(t testing.TB, p []byte, h *tun.Header) (packets [][]byte) {
	t.Helper()
	p = bytes.Clone(p)
	info := parse(t, p)
	if h.Kind == tun.KindPacket {
		packet.Complete(p, info)
		return [][]byte{p}
	}
	var c Cutter
	if err := c.Reset(p, h, info); err != nil {
		t.Fatal(err)
	}
	for s := c.Next(); s != nil; s = c.Next() {
		packet.Complete(s, parse(t, s))
		packets = append(packets, bytes.Clone(s))
	}
	return packets
}

// slowSum is the checksum's definition, word by word: 0xffff over a correct packet.
func slowSum(p []byte, upper int) uint16 {
	sum := uint32(len(p)-upper) + uint32(p[packet.HeaderSize-34])
	if upper > packet.HeaderSize {
		sum = uint32(len(p)-upper) + uint32(p[packet.HeaderSize])
	}
	add := func(b []byte) {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i]) << 8
			if i+1 < len(b) {
				sum += uint32(b[i+1])
			}
		}
	}
	add(p[8:40])
	add(p[upper:])
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// join does what the loop does with packets that arrive, and returns what comes out, cut again.
func join(t testing.TB, can tun.Offloads, packets [][]byte) (out [][]byte, writes int) {
	t.Helper()
	j := Joiner{Offloads: can}
	flush := func() {
		if j.Empty() {
			return
		}
		h, pieces := j.Take()
		writes++
		whole := bytes.Join(pieces, nil)
		if len(pieces) > tun.MaxPieces || int(h.Start)+int(h.Offset)+2 > len(pieces[0]) {
			t.Fatalf("%d pieces, %+v", len(pieces), h)
		}
		info := parse(t, whole)
		if h.Kind == tun.KindPacket {
			// The kernel completes what stands there.
			packet.CompleteAt(whole, int(h.Start), int(h.Offset))
			out = append(out, whole)
			return
		}
		// The sum over the pseudo header must be that of the whole.
		check := bytes.Clone(whole)
		packet.CompleteAt(check, int(h.Start), int(h.Offset))
		if s := slowSum(check, info.Upper); s != 0xffff {
			t.Fatalf("the burst's partial sum is wrong: %x", s)
		}
		out = append(out, cut(t, whole, h)...)
	}
	for _, p := range packets {
		p = bytes.Clone(p)
		info := parse(t, p)
		if !j.Add(p, info) {
			flush()
			if !j.Add(p, info) {
				t.Fatal("an empty Joiner refused a packet")
			}
		}
	}
	flush()
	return out, writes
}

func TestSegmentsAreWhole(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, tt := range []struct {
		kind                              tun.Kind
		segment, n, options, ext, packets int
	}{
		{tun.KindTCP, 1348, 60660, 12, 0, 45}, {tun.KindTCP, 1348, 60661, 12, 0, 46}, {tun.KindTCP, 1000, 1, 0, 0, 1},
		{tun.KindTCP, 10, 100, 40, 0, 10}, {tun.KindTCP, 500, 1200, 12, 24, 3},
		{tun.KindUDP, 1200, 12000, 0, 0, 10}, {tun.KindUDP, 1, 64, 0, 0, 64}, {tun.KindUDP, 700, 701, 0, 8, 2},
	} {
		const flags = packet.ACK | packet.FIN | psh | cwr
		p, h := large(tt.kind, 5000, tt.segment, tt.n, tt.options, tt.ext, 0xfffff000, flags, r)
		packets := cut(t, p, &h)
		if len(packets) != tt.packets {
			t.Fatalf("%+v: %d packets", tt, len(packets))
		}
		var data []byte
		for i, s := range packets {
			info := parse(t, s)
			head, _ := headOf(s, info)
			if tt.kind == tun.KindTCP {
				if seq := binary.BigEndian.Uint32(s[info.Upper+4:]); seq != 0xfffff000+uint32(len(data)) {
					t.Errorf("%+v: segment %d has sequence number %x", tt, i, seq)
				}
				want := uint8(packet.ACK)
				if i == 0 {
					want |= cwr
				}
				if i == len(packets)-1 {
					want |= packet.FIN | psh
				}
				if info.TCPFlags != want {
					t.Errorf("%+v: segment %d has flags %x, want %x", tt, i, info.TCPFlags, want)
				}
			}
			if sum := slowSum(s, info.Upper); sum != 0xffff {
				t.Errorf("%+v: segment %d has a wrong checksum", tt, i)
			}
			data = append(data, s[head:]...)
		}
		if !bytes.Equal(data, p[len(p)-tt.n:]) {
			t.Errorf("%+v: other bytes", tt)
		}
	}
}

func TestBurstComesOutAsItWentIn(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, kind := range []tun.Kind{tun.KindTCP, tun.KindUDP} {
		p, h := large(kind, 5000, 1000, 44500, 12, 0, 1, packet.ACK|psh, r)
		packets := cut(t, p, &h)
		j := Joiner{Offloads: all}
		for i, s := range packets {
			if !j.Add(s, parse(t, s)) {
				t.Fatalf("kind %d: packet %d was not joined", kind, i)
			}
		}
		got, pieces := j.Take()
		if kind == tun.KindUDP {
			h.Length = 48
		}
		if *got != h || !bytes.Equal(bytes.Join(pieces, nil)[int(h.Start)+int(h.Offset)+2:], p[int(h.Start)+int(h.Offset)+2:]) {
			t.Errorf("kind %d: %+v, want %+v", kind, got, h)
		}
	}
}

// Whatever the network does to the packets of several flows, the kernel gets just those that arrive, in their order.
func TestLossReorderingDuplication(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		var packets [][]byte
		seqs := make(map[int]uint32)
		for range 1 + r.IntN(12) {
			kind, port, segment := tun.KindTCP, 5000+r.IntN(3), 1+r.IntN(1348)
			if r.IntN(3) == 0 {
				kind = tun.KindUDP
			}
			n := 1 + r.IntN(min(64*segment, 60000))
			flags := uint8(packet.ACK)
			for _, f := range []uint8{psh, packet.FIN, cwr, ece} {
				if r.IntN(4) == 0 {
					flags |= f
				}
			}
			p, h := large(kind, port, segment, n, 4*r.IntN(4), 8*max(0, r.IntN(5)-3), seqs[port], flags, r)
			if kind == tun.KindTCP {
				seqs[port] += uint32(n)
			}
			packets = append(packets, cut(t, p, &h)...)
		}
		if seed%3 > 0 {
			packets = slices.DeleteFunc(packets, func([]byte) bool { return r.IntN(20) == 0 })
			for range len(packets) / 20 {
				i, k := r.IntN(len(packets)), r.IntN(len(packets))
				packets[i], packets[k] = packets[k], packets[i]
				packets = slices.Insert(packets, r.IntN(len(packets)), packets[r.IntN(len(packets))])
			}
		}
		for _, can := range []tun.Offloads{all, tun.OffloadChecksum | tun.OffloadTCP, tun.OffloadChecksum, 0} {
			out, writes := join(t, can, packets)
			if len(out) != len(packets) {
				t.Fatalf("seed %d: %d packets of %d, %d writes", seed, len(out), len(packets), writes)
			}
			for i := range out {
				if !bytes.Equal(out[i], packets[i]) {
					t.Fatalf("seed %d: packet %d\n  %x\n, want\n  %x", seed, i, out[i][:80], packets[i][:80])
				}
			}
		}
	}
}

func TestMalformedBursts(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for name, spoil := range map[string]func(p []byte, h *tun.Header){
		"no checksum left":      func(_ []byte, h *tun.Header) { h.Partial = false },
		"no segment":            func(_ []byte, h *tun.Header) { h.Segment = 0 },
		"UDP that is TCP":       func(_ []byte, h *tun.Header) { h.Kind = tun.KindUDP },
		"a checksum elsewhere":  func(_ []byte, h *tun.Header) { h.Offset++ },
		"from another place":    func(_ []byte, h *tun.Header) { h.Start-- },
		"SYN":                   func(p []byte, _ *tun.Header) { p[53] |= packet.SYN },
		"RST":                   func(p []byte, _ *tun.Header) { p[53] |= packet.RST },
		"a packet":              func(_ []byte, h *tun.Header) { h.Kind = tun.KindPacket },
		"neither TCP nor UDP":   func(p []byte, _ *tun.Header) { p[6] = packet.ICMPv6 },
		"fragments of fragment": func(p []byte, _ *tun.Header) { p[6] = packet.Fragment },
	} {
		p, h := large(tun.KindTCP, 1, 100, 1000, 0, 0, 1, packet.ACK, r)
		spoil(p, &h)
		var c Cutter
		if err := c.Reset(p, &h, parse(t, p)); err == nil || c.Next() != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Whatever headers and bytes come: what is cut off are packets that can be read, all of the payload in its order.
func FuzzCutter(f *testing.F) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, kind := range []tun.Kind{tun.KindTCP, tun.KindUDP} {
		p, h := large(kind, 1, 100, 950, 12, 8, 1, packet.ACK, r)
		f.Add(p, uint8(kind), h.Segment, h.Start, h.Offset, true)
	}
	f.Fuzz(func(t *testing.T, p []byte, kind uint8, segment, start, offset uint16, partial bool) {
		var info packet.Info
		if packet.Parse(p, &info) != nil {
			return
		}
		h := tun.Header{Kind: tun.Kind(kind), Segment: segment, Start: start, Offset: offset, Partial: partial}
		var c Cutter
		if c.Reset(p, &h, &info) != nil {
			return
		}
		head, _ := headOf(p, &info)
		want, longest := bytes.Clone(p[head:]), c.Longest()
		for s := c.Next(); s != nil; s = c.Next() {
			got := parse(t, s)
			if len(s) > longest || got.Proto != info.Proto || !bytes.HasPrefix(want, s[head:]) {
				t.Fatalf("%d bytes, %+v", len(s), got)
			}
			want = want[len(s)-head:]
		}
		if len(want) > 0 {
			t.Errorf("%d bytes were not cut off", len(want))
		}
	})
}

// Whatever packets arrive, the kernel gets those and no others.
func FuzzJoiner(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, kind := range []tun.Kind{tun.KindTCP, tun.KindUDP} {
		p, h := large(kind, 1, 100, 350, 12, 0, 1, packet.ACK, r)
		var in []byte
		for _, s := range cut(f, p, &h) {
			in = append(in, s...)
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var packets [][]byte
		for len(in) >= packet.HeaderSize {
			n := min(len(in), packet.HeaderSize+int(binary.BigEndian.Uint16(in[4:])))
			p := bytes.Clone(in[:n])
			in = in[n:]
			var info packet.Info
			if packet.Parse(p, &info) != nil || !info.Transport() {
				continue
			}
			packet.Complete(p, &info)
			packets = append(packets, p)
		}
		out, _ := join(t, all, packets)
		if !slices.EqualFunc(out, packets, bytes.Equal) {
			t.Errorf("got %x\nwant %x", out, packets)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	p, h := large(tun.KindTCP, 1, 1348, 60000, 12, 0, 1, packet.ACK, r)
	info, fresh, c, j := parse(t, p), bytes.Clone(p), Cutter{}, Joiner{Offloads: all}
	arena := make([]byte, 0, 1<<17)
	if n := testing.AllocsPerRun(100, func() {
		copy(p, fresh)
		if c.Reset(p, &h, info) != nil {
			t.Fatal("refused")
		}
		arena = arena[:0]
		for s := c.Next(); s != nil; s = c.Next() {
			at := len(arena)
			arena = append(arena, s...)
			var info packet.Info
			if packet.Parse(arena[at:], &info) != nil || !j.Add(arena[at:], &info) {
				t.Fatal("not joined")
			}
		}
		j.Take()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCut(b *testing.B) {
	p, h := large(tun.KindTCP, 1, 1348, 60000, 12, 0, 1, packet.ACK, rand.New(rand.NewPCG(1, 1)))
	info, fresh, c := parse(b, p), bytes.Clone(p[:256]), Cutter{}
	b.SetBytes(60000)
	for b.Loop() {
		copy(p, fresh)
		if err := c.Reset(p, &h, info); err != nil {
			b.Fatal(err)
		}
		for c.Next() != nil {
		}
	}
}

func BenchmarkJoin(b *testing.B) {
	p, h := large(tun.KindTCP, 1, 1348, 60000, 12, 0, 1, packet.ACK, rand.New(rand.NewPCG(1, 1)))
	packets, j := cut(b, p, &h), Joiner{Offloads: all}
	first := bytes.Clone(packets[0][:72])
	b.SetBytes(60000)
	for b.Loop() {
		copy(packets[0], first)
		for _, s := range packets {
			var info packet.Info
			if packet.Parse(s, &info) != nil || !j.Add(s, &info) {
				b.Fatal("not joined")
			}
		}
		j.Take()
	}
}
