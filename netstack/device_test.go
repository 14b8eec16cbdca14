// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/overlay/burst"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/tun"
)

const testSegments = 45

func newDevice(t testing.TB, addrs ...netip.Addr) (*Stack, *Device) {
	t.Helper()
	s, err := New(Options{Addresses: addrs, Segments: testSegments})
	if err != nil {
		t.Fatal(err)
	}
	d := s.Device("stack0")
	t.Cleanup(func() { d.Close(); s.Close() })
	return s, d
}

// carry moves what one device reads to another until the first is closed; as says how.
func carry(from, to *Device, as func(p []byte, h *tun.Header, write func(*tun.Header, [][]byte))) {
	buf, one := make([]byte, tun.BufferSize), make([][]byte, 1)
	var h tun.Header
	write := func(h *tun.Header, pieces [][]byte) { _ = to.Write(h, pieces) }
	for {
		p, err := from.Read(buf, &h, true)
		if err != nil {
			return
		}
		if as != nil {
			as(p, &h, write)
			continue
		}
		one[0] = p
		write(&h, one)
	}
}

// wired is two stacks, each the other's world.
func wired(t testing.TB, ab, ba func(p []byte, h *tun.Header, write func(*tun.Header, [][]byte))) (a, b *Stack) {
	a, da := newDevice(t, addrA, addrA2)
	b, db := newDevice(t, addrB)
	var wg sync.WaitGroup
	wg.Go(func() { carry(da, db, ab) })
	wg.Go(func() { carry(db, da, ba) })
	t.Cleanup(func() { da.Close(); db.Close(); wg.Wait() })
	return a, b
}

// cutAndJoined is what the overlay makes of a burst: records of one segment each, joined again where they arrive.
func cutAndJoined(t testing.TB, mtu int, lose func() bool) func(p []byte, h *tun.Header, write func(*tun.Header, [][]byte)) {
	c, j := burst.Cutter{}, burst.Joiner{Offloads: tun.OffloadChecksum | tun.OffloadTCP}
	return func(p []byte, h *tun.Header, write func(*tun.Header, [][]byte)) {
		var info packet.Info
		if err := packet.Parse(p, &info); err != nil {
			t.Errorf("%v: %x", err, p[:min(len(p), 80)])
			return
		}
		if h.Kind == tun.KindPacket {
			if len(p) > mtu {
				t.Errorf("a packet of %d bytes", len(p))
			}
			write(h, [][]byte{p})
			return
		}
		if err := c.Reset(p, h, &info); err != nil || c.Longest() > mtu {
			t.Errorf("%v, longest %d, %+v", err, c.Longest(), h)
			return
		}
		n := 0
		for s := c.Next(); s != nil; s = c.Next() {
			if n++; lose != nil && lose() {
				continue
			}
			s = bytes.Clone(s)
			var info packet.Info
			if err := packet.Parse(s, &info); err != nil {
				t.Error(err)
				return
			}
			if !j.Add(s, &info) {
				write(j.Take())
				j.Add(s, &info)
			}
		}
		if n > testSegments {
			t.Errorf("a burst of %d segments", n)
		}
		if !j.Empty() {
			write(j.Take())
		}
	}
}

func TestDeviceTransfer(t *testing.T) {
	bursts := 0
	whole := func(p []byte, h *tun.Header, write func(*tun.Header, [][]byte)) {
		if h.Kind == tun.KindTCP {
			bursts++
		}
		write(h, [][]byte{p})
	}
	t.Run("whole", func(t *testing.T) {
		a, b := wired(t, whole, nil)
		transfer(t, a, b, 16<<20)
	})
	if bursts < 16 {
		t.Errorf("only %d bursts", bursts)
	}
	t.Run("cut and joined", func(t *testing.T) {
		a, b := wired(t, cutAndJoined(t, DefaultMTU, nil), cutAndJoined(t, DefaultMTU, nil))
		transfer(t, a, b, 16<<20)
	})
	t.Run("lossy", func(t *testing.T) {
		count := 0
		a, b := wired(t, cutAndJoined(t, DefaultMTU, func() bool { count++; return count%200 == 0 }), nil)
		transfer(t, a, b, 4<<20)
	})
}

// Whoever reads the other end without knowing of bursts is told so, and a stack without them promises nothing.
func TestDeviceOffloads(t *testing.T) {
	s, d := newDevice(t, addrA)
	if d.Offloads() != tun.OffloadChecksum|tun.OffloadTCP || d.MTU() != DefaultMTU || d.Name() != "stack0" {
		t.Errorf("offloads %v, MTU %d, name %q", d.Offloads(), d.MTU(), d.Name())
	}
	if _, err := s.ReadPackets(testContext(t), [][]byte{make([]byte, 2000)}, make([]int, 1), 0); !errors.Is(err, errBursts) {
		t.Errorf("ReadPackets: %v", err)
	}
	if plain := newStack(t, addrA).Device("x"); plain.Offloads() != 0 {
		t.Errorf("plain stack offloads %v", plain.Offloads())
	}
	for name, w := range map[string]struct {
		h      *tun.Header
		pieces [][]byte
	}{
		"nothing":         {nil, nil},
		"too many pieces": {nil, make([][]byte, tun.MaxPieces+1)},
		"too long":        {nil, [][]byte{make([]byte, tun.MaxPacket), {0}}},
		"burst of UDP":    {&tun.Header{Kind: tun.KindUDP, Partial: true, Segment: 1}, [][]byte{make([]byte, 100)}},
	} {
		if err := d.Write(w.h, w.pieces); err == nil || errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, segments := range []int{-1, maxSegments + 1} {
		if _, err := New(Options{Addresses: []netip.Addr{addrA}, Segments: segments}); err == nil {
			t.Errorf("%d segments accepted", segments)
		}
	}
}

// A checksum that nobody has computed isn't looked at; one that somebody has is.
func TestDeviceChecksums(t *testing.T) {
	s, d := newDevice(t, addrA)
	u, err := s.ListenUDP(netip.AddrPortFrom(addrA, 7))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 52)
	copy(p, icmp6(addrB, addrA, 0, 0, nil)[:ipv6HeaderLen])
	p[offNextHeader], p[5] = nextHeaderUDP, 12
	copy(p[40:], []byte{0, 9, 0, 7, 0, 12, 0xbe, 0xef, 'g', 'o', 'o', 'd'})
	if err := d.Write(nil, [][]byte{p}); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(&tun.Header{Partial: true, Start: 40, Offset: 6}, [][]byte{p[:44], p[44:]}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	u.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, from, err := u.ReadFrom(buf); err != nil || string(buf[:n]) != "good" || from.String() != netip.AddrPortFrom(addrB, 9).String() {
		t.Errorf("%q from %v, %v", buf[:n], from, err)
	}
	u.SetReadDeadline(time.Now())
	if n, _, err := u.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the wrong checksum passed: %q, %v", buf[:n], err)
	}
}

func TestDeviceClose(t *testing.T) {
	s, d := newDevice(t, addrA)
	var h tun.Header
	if p, err := d.Read(make([]byte, 100), &h, false); p != nil || err != nil {
		t.Errorf("nothing to read: %x, %v", p, err)
	}
	done := make(chan error)
	go func() {
		var h tun.Header
		_, err := d.Read(make([]byte, 100), &h, true)
		done <- err
	}()
	d.Close()
	d.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read: %v", err)
	}
	if err := d.Write(nil, [][]byte{{0}}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write: %v", err)
	}
	if _, err := s.ListenTCP(netip.AddrPortFrom(addrA, 80)); err != nil {
		t.Errorf("the stack was closed too: %v", err)
	}
	other, d2 := newDevice(t, addrA)
	other.Close()
	if _, err := d2.Read(make([]byte, 100), &h, true); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after the stack's Close: %v", err)
	}
}

// A router that says that the path is narrower is believed (RFC 8201).
func TestPacketTooBig(t *testing.T) {
	const narrow = 1280
	var mu sync.Mutex
	var longest int
	var to *Device
	tell := func(p []byte, h *tun.Header, write func(*tun.Header, [][]byte)) {
		size := len(p)
		if h.Kind == tun.KindTCP {
			size = int(h.Length) + int(h.Segment)
		}
		if size > narrow {
			body := binary.BigEndian.AppendUint32(nil, narrow)
			e := icmp6(addrB, addrA, 2, 0, append(body, p[:200]...)[4:])
			copy(e[44:], body)
			e[offICMPChecksum], e[offICMPChecksum+1] = 0, 0
			binary.BigEndian.PutUint16(e[offICMPChecksum:], ^icmpSum(e))
			_ = to.Write(nil, [][]byte{e})
			return
		}
		mu.Lock()
		longest = max(longest, size)
		mu.Unlock()
		write(h, [][]byte{p})
	}
	a, da := newDevice(t, addrA)
	b, db := newDevice(t, addrB)
	to = da
	var wg sync.WaitGroup
	wg.Go(func() { carry(da, db, tell) })
	wg.Go(func() { carry(db, da, nil) })
	t.Cleanup(func() { da.Close(); db.Close(); wg.Wait() })
	transfer(t, a, b, 1<<20)
	if longest > narrow || longest < narrow-60 {
		t.Errorf("longest packet is %d", longest)
	}
}

// Many agents live in one stack: each socket is its agent's.
func TestManyAddresses(t *testing.T) {
	a, b := wired(t, nil, nil)
	l, err := b.ListenTCP(netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Fatal(err)
	}
	from := func(own netip.Addr, want error) {
		t.Helper()
		c, err := a.Dial(testContext(t), "tcp", own, netip.AddrPortFrom(addrB, 80))
		if !errors.Is(err, want) {
			t.Fatalf("dial from %v: %v, want %v", own, err, want)
		}
		if err != nil {
			return
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if !own.IsValid() {
			own = addrA
		}
		if got := s.RemoteAddr().(*net.TCPAddr).AddrPort(); got.Addr() != own || c.LocalAddr().String() != got.String() {
			t.Errorf("dialled from %v, seen as %v, want %v", c.LocalAddr(), got, own)
		}
	}
	addrC := netip.MustParseAddr("fd5c:1:2:5::c")
	from(netip.Addr{}, nil)
	from(addrA, nil)
	from(addrA2, nil)
	from(addrC, ErrAddress)
	from(addrB, ErrAddress)

	// One port, two agents.
	for _, own := range []netip.Addr{addrA, addrA2} {
		u, err := a.ListenUDP(netip.AddrPortFrom(own, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		go func() {
			buf := make([]byte, 100)
			if _, from, err := u.ReadFrom(buf); err == nil {
				u.WriteTo([]byte(own.String()), from)
			}
		}()
		c, err := b.Dial(testContext(t), "udp", addrB, netip.AddrPortFrom(own, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 100)
		c.Write([]byte("who"))
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != own.String() {
			t.Errorf("%v answered %q, %v", own, buf[:n], err)
		}
	}

	// Agents come and go; connections of those that stay go on.
	c, err := a.Dial(testContext(t), "tcp", addrA2, netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := a.Set([]netip.Addr{addrC, addrA2}, nil); err != nil {
		t.Fatal(err)
	}
	from(addrC, nil)
	from(addrA, ErrAddress)
	c.Write([]byte("still here"))
	c.(*conn).CloseWrite()
	s.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(s); string(got) != "still here" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := a.Set(nil, nil); !errors.Is(err, ErrAddress) {
		t.Errorf("no address: %v", err)
	}
	a.Close()
	if err := a.Set([]netip.Addr{addrA}, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Set after Close: %v", err)
	}
}

// A datagram that is refused fails what its socket does next, with the kernel's number.
func TestUnreachableUDP(t *testing.T) {
	for code, want := range map[uint8]error{
		codeNoRoute: syscall.ENETUNREACH, codeProhibited: syscall.EACCES, codeAddress: syscall.EHOSTUNREACH, codePortUnreach: syscall.ECONNREFUSED,
	} {
		a := newStack(t, addrA)
		c, err := a.DialContext(testContext(t), "udp", netip.AddrPortFrom(addrB, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("x"))
		a.Deliver(icmp6(addrB, addrA, icmpUnreachable, code, read(t, a, 10*time.Second)))
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("code %d: %v, want %v", code, err, want)
		}
	}
}
