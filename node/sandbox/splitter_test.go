// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/pilot-protocol/pilot/tun"
)

type memory struct{ *tun.Memory }

func (memory) Descriptors() []int { return nil }

// packet6 is an IPv6 packet with nothing in it.
func packet6(to string, mark byte) []byte {
	p := make([]byte, 41)
	p[0], p[40] = 0x60, mark
	a := netip.MustParseAddr(to).As16()
	copy(p[24:], a[:])
	return p
}

func TestSplitter(t *testing.T) {
	inside, outside := tun.NewMemory("in", 65520), tun.NewMemory("out", 65520)
	s := &splitter{device: memory{inside}, mtu: 1420, outside: outside}
	buf, h := make([]byte, tun.BufferSize), tun.Header{}
	ours, theirs, v4 := packet6("fd5c:1:2::9", 1), packet6("2a00::8", 2), append([]byte{0x45}, make([]byte, 40)...)

	// Before the network is known, nothing is for it.
	inside.Inject(ours)
	if p, err := s.Read(buf, &h, false); p != nil || err != nil {
		t.Fatalf("% x, %v", p, err)
	}
	<-outside.Sent()
	s.Set(network)
	for _, p := range [][]byte{theirs, v4, {0x60}, ours, theirs} {
		inside.Inject(p)
	}
	p, err := s.Read(buf, &h, true)
	if err != nil || !bytes.Equal(p, ours) {
		t.Fatalf("% x, %v", p, err)
	}
	if p, err := s.Read(buf, &h, false); p != nil || err != nil {
		t.Fatalf("% x, %v", p, err)
	}
	for _, want := range [][]byte{theirs, v4, {0x60}, theirs} {
		if got := <-outside.Sent(); !bytes.Equal(got, want) {
			t.Errorf("outside: % x instead of % x", got, want)
		}
	}
	if s.MTU() != 1420 || s.Name() != "in" {
		t.Errorf("MTU %d, name %s", s.MTU(), s.Name())
	}
}

// Who reads without waiting gets to do other things too, however much goes outside.
func TestSplitterYields(t *testing.T) {
	inside, outside := tun.NewMemory("in", 65520), tun.NewMemory("out", 65520)
	s := &splitter{device: memory{inside}, mtu: 1420, outside: outside}
	s.Set(network)
	for range 2 * turns {
		inside.Inject(packet6("2a00::8", 2))
	}
	if p, err := s.Read(make([]byte, tun.BufferSize), new(tun.Header), false); p != nil || err != nil || len(outside.Sent()) != turns {
		t.Errorf("% x, %v; %d went outside", p, err, len(outside.Sent()))
	}
}

func TestSplitterRun(t *testing.T) {
	inside, outside := tun.NewMemory("in", 65520), tun.NewMemory("out", 65520)
	s := &splitter{device: memory{inside}, mtu: 1420, outside: outside}
	ended := make(chan error)
	go func() { ended <- s.run() }()
	outside.Inject(packet6("fd5c:1:2::7", 3))
	if got := <-inside.Sent(); got[40] != 3 {
		t.Errorf("% x", got)
	}
	outside.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.Close()
	if _, err := s.Read(make([]byte, 100), new(tun.Header), true); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// The path of a packet allocates nothing.
func TestSplitterAllocates(t *testing.T) {
	inside := tun.NewMemory("in", 65520)
	s := &splitter{device: memory{inside}, mtu: 1420, outside: sink{}}
	s.Set(network)
	buf, h := make([]byte, tun.BufferSize), new(tun.Header)
	for range 200 {
		inside.Inject(packet6("2a00::8", 2))
	}
	if n := testing.AllocsPerRun(10, func() {
		if _, err := s.Read(buf, h, false); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d packets", n, turns)
	}
}

// sink takes everything.
type sink struct{ tun.Device }

func (sink) Write(*tun.Header, [][]byte) error { return nil }
