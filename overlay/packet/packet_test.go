// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"
)

var (
	src = [16]byte{0xfd, 15: 1}
	dst = [16]byte{0xfd, 15: 2}
)

func ip(next uint8, payload ...[]byte) []byte {
	body := bytes.Join(payload, nil)
	return append(appendHeader(nil, next, len(body), src, dst), body...)
}

// ext is an extension header of 8×n bytes.
func ext(next uint8, n int) []byte {
	b := make([]byte, 8*n)
	b[0], b[1] = next, byte(n-1)
	return b
}

func frag(next uint8, offset uint16, more bool) []byte {
	b := ext(next, 1)
	b[1] = 0
	v := offset << 3
	if more {
		v |= 1
	}
	binary.BigEndian.PutUint16(b[2:], v)
	return b
}

func tcp(from, to uint16, flags uint8) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint32(b[4:], 0x11111111)
	binary.BigEndian.PutUint32(b[8:], 0x22222222)
	b[12], b[13] = 5<<4, flags
	return b
}

func udp(from, to uint16) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], 8)
	return b
}

func icmp(typ uint8, id uint16, rest ...byte) []byte {
	b := []byte{typ, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[4:], id)
	return append(b, rest...)
}

func TestParse(t *testing.T) {
	long := ip(UDP, udp(1, 2))
	long[5]++
	old := ip(TCP, tcp(1, 2, 0))
	old[0] = 0x45
	shortTCP := tcp(1, 2, 0)
	shortTCP[12] = 4 << 4
	for _, tt := range []struct {
		name string
		p    []byte
		want Info
		err  error
	}{
		{"tcp", ip(TCP, tcp(5, 443, SYN)), Info{Proto: TCP, PortKnown: true, SrcPort: 5, DstPort: 443, TCPFlags: SYN, Upper: 40}, nil},
		{"udp", ip(UDP, udp(5, 53)), Info{Proto: UDP, PortKnown: true, SrcPort: 5, DstPort: 53, Upper: 40}, nil},
		{"echo", ip(ICMPv6, icmp(TypeEchoRequest, 7)), Info{Proto: ICMPv6, PortKnown: true, SrcPort: 7, DstPort: 7, ICMPType: 128, Upper: 40}, nil},
		{"behind options", ip(HopByHop, ext(DestOptions, 1), ext(TCP, 3), tcp(5, 443, 0)), Info{Proto: TCP, PortKnown: true, SrcPort: 5, DstPort: 443, Upper: 72}, nil},
		{"first fragment", ip(Fragment, frag(TCP, 0, true), tcp(5, 443, 0)), Info{Proto: Fragment, Upper: 40}, nil},
		{"atomic fragment", ip(Fragment, frag(TCP, 0, false), tcp(5, 443, 0)), Info{Proto: Fragment, Upper: 40}, nil},
		{"later fragment", ip(Fragment, frag(TCP, 100, false), tcp(5, 443, 0)), Info{Proto: Fragment, Upper: 40}, nil},
		{"authentication header", ip(51, ext(TCP, 3), tcp(5, 443, 0)), Info{Proto: 51, Upper: 40}, nil},
		{"no next header", ip(NoNext, tcp(5, 443, 0)), Info{Proto: NoNext, Upper: 40}, nil},
		{"sctp", ip(132, udp(5, 443)), Info{Proto: 132, Upper: 40}, nil},
		{"routing type 0", ip(Routing, ext(TCP, 3), tcp(5, 443, 0)), Info{}, ErrRouting},
		{"routing behind options", ip(DestOptions, ext(Routing, 1), ext(TCP, 3), tcp(5, 443, 0)), Info{}, ErrRouting},
		{"second hop-by-hop", ip(DestOptions, ext(HopByHop, 1), ext(TCP, 1), tcp(5, 443, 0)), Info{}, ErrMalformed},
		{"too many headers", ip(DestOptions, ext(60, 1), ext(60, 1), ext(60, 1), ext(60, 1), ext(TCP, 1), tcp(5, 443, 0)), Info{}, ErrMalformed},
		{"options cut", ip(DestOptions, ext(TCP, 4)[:24]), Info{}, ErrMalformed},
		{"fragment cut", ip(Fragment, frag(TCP, 0, false)[:7]), Info{}, ErrMalformed},
		{"tcp cut", ip(TCP, tcp(5, 443, 0)[:19]), Info{}, ErrMalformed},
		{"tcp offset", ip(TCP, shortTCP), Info{}, ErrMalformed},
		{"udp cut", ip(UDP, udp(5, 443)[:7]), Info{}, ErrMalformed},
		{"icmp cut", ip(ICMPv6, icmp(1, 1)[:7]), Info{}, ErrMalformed},
		{"longer than it is", long, Info{}, ErrMalformed},
		{"ipv4", old, Info{}, ErrVersion},
		{"empty", nil, Info{}, ErrVersion},
		{"header cut", ip(NoNext)[:39], Info{}, ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got Info
			if err := Parse(tt.p, &got); !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if tt.err == nil && got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// Whatever bytes arrive: a port is known only where the chain of next headers, walked by a second and simpler reader,
// leads to a whole TCP or UDP header with that port, and no fragment or routing header is on the way.
func FuzzAbuse15Parse(f *testing.F) {
	for _, p := range [][]byte{
		ip(TCP, tcp(5, 443, SYN)), ip(UDP, udp(5, 53)), ip(ICMPv6, icmp(TypeEchoRequest, 7)),
		ip(HopByHop, ext(DestOptions, 1), ext(TCP, 3), tcp(5, 443, 0)),
		ip(Fragment, frag(TCP, 0, true), tcp(5, 443, 0)), ip(Routing, ext(TCP, 3), tcp(5, 443, 0)),
		ip(DestOptions, ext(Fragment, 1), frag(UDP, 0, false), udp(1, 2)), ip(51, ext(TCP, 3), tcp(5, 443, 0)),
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var info Info
		if err := Parse(p, &info); err != nil {
			return
		}
		port, known := slowPort(p)
		if info.PortKnown && info.Proto != ICMPv6 && (!known || port != info.DstPort) {
			t.Errorf("port %d claimed, but %d, %v read", info.DstPort, port, known)
		}
		if !MayAnswer(p, &info) {
			return
		}
		for _, e := range [][]byte{AppendUnreachable(nil, dst, AdminProhibited, p), AppendTooBig(nil, dst, 1280, p)} {
			checkAnswer(t, e)
		}
		if r, ok := AppendReset(nil, p, &info); ok {
			checkAnswer(t, r)
		}
	})
}

func slowPort(p []byte) (uint16, bool) {
	next, rest := p[6], p[40:]
	for next == HopByHop || next == DestOptions {
		if len(rest) < 8 || len(rest) < 8+8*int(rest[1]) {
			return 0, false
		}
		next, rest = rest[0], rest[8+8*int(rest[1]):]
	}
	if (next == TCP && len(rest) >= 20) || (next == UDP && len(rest) >= 8) {
		return uint16(rest[2])<<8 | uint16(rest[3]), true
	}
	return 0, false
}

func checkAnswer(t *testing.T, p []byte) {
	t.Helper()
	var info Info
	if err := Parse(p, &info); err != nil {
		t.Errorf("our own answer: %v", err)
	}
	if len(p) > minMTU {
		t.Errorf("an answer of %d bytes", len(p))
	}
	if upperChecksum(p) != 0 {
		t.Errorf("checksum of our answer is wrong")
	}
	if info.Proto == ICMPv6 && MayAnswer(p, &info) {
		t.Error("our error could be answered by an error")
	}
}

func TestUnreachable(t *testing.T) {
	p := ip(TCP, tcp(5, 443, SYN))
	e := AppendUnreachable([]byte("head"), dst, AdminProhibited, p)[4:]
	checkAnswer(t, e)
	if a := AddressesOf(e); a.Source() != dst || a.Destination() != src {
		t.Errorf("addresses %x", a)
	}
	if e[40] != 1 || e[41] != 1 || !bytes.Equal(e[48:], p) {
		t.Errorf("got % x", e[40:])
	}
	var outer, inner Info
	if err := Parse(e, &outer); err != nil {
		t.Fatal(err)
	}
	if a, ok := Quoted(e, &outer, &inner); !ok || a != AddressesOf(p) || inner.DstPort != 443 || inner.SrcPort != 5 {
		t.Errorf("quote: %v %x %+v", ok, a, inner)
	}
}

func TestTooBigIsCut(t *testing.T) {
	e := AppendTooBig(nil, dst, 1420, ip(UDP, udp(1, 2), make([]byte, 3000)))
	checkAnswer(t, e)
	if len(e) != 1280 || e[40] != 2 || binary.BigEndian.Uint32(e[44:]) != 1420 {
		t.Errorf("%d bytes, type %d, MTU %d", len(e), e[40], binary.BigEndian.Uint32(e[44:]))
	}
}

func TestReset(t *testing.T) {
	for flags, want := range map[uint8]bool{ACK: true, ACK | FIN: true, SYN: false, SYN | ACK: false, RST | ACK: false, FIN: false} {
		p := ip(TCP, tcp(5, 443, flags))
		var info Info
		if err := Parse(p, &info); err != nil {
			t.Fatal(err)
		}
		r, ok := AppendReset(nil, p, &info)
		if ok != want {
			t.Fatalf("flags %x: %v", flags, ok)
		}
		if !ok {
			continue
		}
		checkAnswer(t, r)
		var got Info
		if err := Parse(r, &got); err != nil {
			t.Fatal(err)
		}
		if got.SrcPort != 443 || got.DstPort != 5 || got.TCPFlags != RST || binary.BigEndian.Uint32(r[44:]) != 0x22222222 {
			t.Errorf("got %+v, sequence %x", got, r[44:48])
		}
	}
}

func TestMayAnswer(t *testing.T) {
	multicast, unspecified := ip(UDP, udp(1, 2)), ip(UDP, udp(1, 2))
	multicast[24] = 0xff
	clear(unspecified[8:24])
	for _, tt := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"udp", ip(UDP, udp(1, 2)), true},
		{"echo", ip(ICMPv6, icmp(TypeEchoRequest, 1)), true},
		{"error", ip(ICMPv6, icmp(TypeTooBig, 1)), false},
		{"redirect", ip(ICMPv6, icmp(typeRedirect, 1)), false},
		{"fragment of ICMPv6", ip(Fragment, frag(ICMPv6, 0, true), icmp(1, 1)), false},
		{"fragment of UDP", ip(Fragment, frag(UDP, 0, true), udp(1, 1)), true},
		{"to a group", multicast, false},
		{"from nowhere", unspecified, false},
	} {
		var info Info
		if err := Parse(tt.p, &info); err != nil {
			t.Fatal(err)
		}
		if got := MayAnswer(tt.p, &info); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestLimiter(t *testing.T) {
	l := NewLimiter()
	now, n := time.Duration(0), 0
	for range 1000 {
		if l.Allow(dst, now) {
			n++
		}
	}
	if n != limiterBurst {
		t.Errorf("burst of %d", n)
	}
	for range 1000 {
		now += 10 * time.Millisecond
		if l.Allow(dst, now) {
			n++
		}
	}
	if n < limiterBurst+199 || n > limiterBurst+201 {
		t.Errorf("%d after ten seconds", n)
	}
}

func TestNoAllocation(t *testing.T) {
	p, buf := ip(HopByHop, ext(TCP, 1), tcp(5, 443, ACK)), make([]byte, 0, 2048)
	l := NewLimiter()
	if n := testing.AllocsPerRun(100, func() {
		var info Info
		_ = Parse(p, &info)
		_ = AppendUnreachable(buf, dst, NoRoute, p)
		_, _ = AppendReset(buf, p, &info)
		l.Allow(dst, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkParse(b *testing.B) {
	p := ip(TCP, tcp(5, 443, ACK), make([]byte, 1360))
	var info Info
	for b.Loop() {
		_ = Parse(p, &info)
	}
}
