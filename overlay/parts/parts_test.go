// SPDX-License-Identifier: Apache-2.0

package parts

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"
)

func packetOf(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7)
	}
	return p
}

func cut(p []byte, id uint32, count int) (parts [][]byte) {
	for i := range count {
		parts = append(parts, Append(nil, p, id, i, count))
	}
	return parts
}

func TestEveryLengthAndRoom(t *testing.T) {
	var a Assembler
	var lost atomic.Uint64
	for id := range uint32(20_000) {
		r := rand.New(rand.NewPCG(uint64(id), 1))
		length, space := 1+r.IntN(MaxPacket), 562+r.IntN(1000)
		count := Count(length, space)
		if count == 0 {
			if length+HeaderSize > space && (length-1)/(space-HeaderSize) < maxParts {
				t.Fatalf("%d bytes in records for %d: not cut", length, space)
			}
			continue
		}
		p := packetOf(length)
		parts := cut(p, id, count)
		order := r.Perm(count)
		for n, i := range order {
			if len(parts[i]) > space {
				t.Fatalf("%d bytes in records for %d: part of %d", length, space, len(parts[i]))
			}
			got, _, err := a.Add(nil, parts[i], 2, 0, 0, &lost)
			if err != nil || (got != nil) != (n == count-1) || got != nil && !bytes.Equal(got, p) {
				t.Fatalf("%d bytes in records for %d, part %d of %d: %d bytes, %v", length, space, i, count, len(got), err)
			}
		}
	}
	if lost.Load() != 0 {
		t.Errorf("%d lost", lost.Load())
	}
}

func TestWhatDoesNotBelongIsDropped(t *testing.T) {
	var a Assembler
	var lost atomic.Uint64
	p := packetOf(1280)
	parts := cut(p, 1, 3)
	add := func(part []byte, flags uint8, want error) []byte {
		t.Helper()
		got, _, err := a.Add(nil, part, flags, 0, 0, &lost)
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		return got
	}
	add(parts[0], 0, nil)
	add(parts[0], 0, ErrDuplicate)
	add(parts[1], 1, ErrMalformed)                // other flags
	add(Append(nil, p, 1, 1, 2), 0, ErrMalformed) // cut otherwise
	add(nil, 0, ErrMalformed)
	add(parts[1][:HeaderSize], 0, ErrMalformed) // nothing in it
	for _, header := range [][]byte{{0, 0, 0, 1, 0, 0}, {0, 0, 0, 1, 0, 1}, {0, 0, 0, 1, 3, 3}, {0, 0, 0, 1, 0, 5}, {0, 0, 0, 1, 255, 255}} {
		add(append(header, 'x'), 0, ErrMalformed)
	}
	add(append([]byte{0, 0, 0, 9, 0, 2}, make([]byte, 1025)...), 0, ErrMalformed) // too long
	add(parts[2], 0, nil)
	if got := add(parts[1], 0, nil); !bytes.Equal(got, p) {
		t.Errorf("%d bytes", len(got))
	}
	// It is over: the same part begins another packet, which nobody ends.
	if got := add(parts[1], 0, nil); got != nil {
		t.Errorf("%d bytes", len(got))
	}
}

func TestOldPartsGo(t *testing.T) {
	var a Assembler
	var lost atomic.Uint64
	parts := cut(packetOf(1000), 7, 2)
	a.Add(nil, parts[0], 0, 0, time.Second, &lost)
	if got, _, err := a.Add(nil, parts[1], 0, 0, time.Second+lifetime, &lost); got != nil || err != nil || lost.Load() != 1 {
		t.Errorf("%d bytes, %v, %d lost", len(got), err, lost.Load())
	}
	if got, _, _ := a.Add(nil, parts[0], 0, 0, time.Second+lifetime, &lost); len(got) != 1000 {
		t.Errorf("%d bytes", len(got))
	}
}

func TestOldestMakesRoom(t *testing.T) {
	var a Assembler
	var lost atomic.Uint64
	p := packetOf(1000)
	for id := range uint32(slots + 3) {
		a.Add(nil, cut(p, id, 2)[0], 0, 0, time.Duration(id), &lost)
	}
	if lost.Load() != 3 {
		t.Errorf("%d lost", lost.Load())
	}
	for id := range uint32(slots) {
		if got, _, _ := a.Add(nil, cut(p, id+3, 2)[1], 0, 0, slots+3, &lost); !bytes.Equal(got, p) {
			t.Errorf("packet %d: %d bytes", id+3, len(got))
		}
	}
	if got, _, _ := a.Add(nil, cut(p, 0, 2)[1], 0, 0, slots+3, &lost); got != nil {
		t.Errorf("packet 0: %d bytes", len(got))
	}
}

func TestCongestionOfOnePartIsThePackets(t *testing.T) {
	for i, classes := range [][]uint8{{0xb8 | 2, 0xb8 | 3}, {0xb8 | 3, 0xb8 | 2}, {0xb8 | 2, 0xb8 | 2}} {
		var a Assembler
		var lost atomic.Uint64
		parts := cut(packetOf(900), 1, 2)
		a.Add(nil, parts[0], 0, classes[0], 0, &lost)
		if _, class, _ := a.Add(nil, parts[1], 0, classes[1], 0, &lost); class != []uint8{0xbb, 0xbb, 0xba}[i] {
			t.Errorf("%x: %x", classes, class)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	var a Assembler
	var lost atomic.Uint64
	p, part, whole, id := packetOf(1280), make([]byte, 0, 2048), make([]byte, 0, MaxPacket), uint32(0)
	if n := testing.AllocsPerRun(100, func() {
		id++
		for i := range 2 {
			part = Append(part[:0], p, id, i, 2)
			if got, _, err := a.Add(whole[:0], part, 0, 0, 0, &lost); err != nil || len(got) != i*1280 {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzAssembler gives it any parts between those of a real packet: what comes out has the length of its parts, and the real
// packet comes out as it went in, unless its own number was taken.
func FuzzAssembler(f *testing.F) {
	p := packetOf(1280)
	for _, part := range cut(p, 1, 3) {
		f.Add(part, uint8(1))
	}
	f.Add([]byte{0, 0, 0, 2, 1, 2, 'x'}, uint8(0))
	f.Fuzz(func(t *testing.T, stream []byte, flags uint8) {
		var a Assembler
		var lost atomic.Uint64
		real := cut(p, 0xffffffff, 2)
		if _, _, err := a.Add(nil, real[0], 0, 0, 0, &lost); err != nil {
			t.Fatal(err)
		}
		seen, taken := 0, false
		for n := 0; len(stream) > 0 && n < slots-1; n++ {
			part := stream[:min(len(stream), 1+int(stream[0])*8)]
			stream = stream[len(part):]
			taken = taken || len(part) >= 4 && bytes.Equal(part[:4], []byte{255, 255, 255, 255})
			whole, _, err := a.Add(nil, part, flags, flags, 0, &lost)
			if err == nil {
				seen += len(part) - HeaderSize
			}
			if len(whole) > MaxPacket || len(whole) > seen+len(real[0]) {
				t.Fatalf("%d bytes of %d", len(whole), seen)
			}
		}
		whole, _, err := a.Add(nil, real[1], 0, 0, 0, &lost)
		if !taken && (err != nil || !bytes.Equal(whole, p)) {
			t.Errorf("%d bytes, %v", len(whole), err)
		}
	})
}
