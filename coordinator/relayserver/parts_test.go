// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

// lockedBuffer is a buffer that many may write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestMeter(t *testing.T) {
	var m meter
	m.set(1000_000, 10_000)
	now := int64(1_000_000_000)
	if got := m.take(now, 10_000, 1000); got != 10_000 {
		t.Errorf("the burst: %d", got)
	}
	if got := m.take(now, 1000, 1000); got != 0 {
		t.Errorf("more than the burst: %d", got)
	}
	now += int64(3500 * time.Microsecond)
	if got := m.take(now, 10_000, 1000); got != 3000 {
		t.Errorf("after 3.5 ms: %d", got)
	}
	total := 0
	for range 1000 { // a second in steps
		now += int64(time.Millisecond)
		total += m.take(now, 5000, 100)
	}
	if total < 990_000 || total > 1_011_000 {
		t.Errorf("%d bytes in a second", total)
	}
	var free meter
	free.set(-1, 1)
	if got := free.take(now, 1<<30, 1); got != 1<<30 {
		t.Errorf("without a limit: %d", got)
	}
}

func TestSTUN(t *testing.T) {
	for _, from := range []string{"192.0.2.1:4242", "[2001:db8::9]:65535"} {
		at := netip.MustParseAddrPort(from)
		request := stunRequestOf(64)
		answer := answerSTUN(nil, request, at, netip.AddrPort{})
		want := 32
		if at.Addr().Is6() {
			want = 44
		}
		if len(answer) != want || binary.BigEndian.Uint16(answer) != stunSuccess || !bytes.Equal(answer[4:20], request[4:20]) {
			t.Fatalf("%x", answer)
		}
		ip := bytes.Clone(answer[28:])
		for i := range ip {
			ip[i] ^= request[4+i]
		}
		addr, _ := netip.AddrFromSlice(ip)
		if port := binary.BigEndian.Uint16(answer[26:]) ^ 0x2112; netip.AddrPortFrom(addr, port) != at {
			t.Errorf("says %v, port %d", addr, port)
		}
	}
	at := netip.MustParseAddrPort("192.0.2.1:4242")
	second := netip.MustParseAddrPort("0.0.0.0:4243")
	for n, want := range map[int]int{32: 32, 40: 32, 44: 44, 80: 44} { // the second port is told where there is room for it
		if got := len(answerSTUN(nil, stunRequestOf(n), at, second)); got != want {
			t.Errorf("%d bytes for %d, want %d", got, n, want)
		}
	}
	long := stunRequestOf(32)
	for name, d := range map[string][]byte{
		"too short to answer": stunRequestOf(28), "cut": long[:30], "an indication": append([]byte{0, 0x11}, long[2:]...),
		"no magic": append(append(bytes.Clone(long[:4]), 0, 0, 0, 0), long[8:]...), "a length that lies": append(append([]byte{0, 1, 0, 4}, long[4:]...), 0),
	} {
		if answerSTUN(nil, d, at, netip.AddrPort{}) != nil {
			t.Errorf("%s: answered", name)
		}
	}
}

// TestSecondPort asks a running relay with the nodes' own client.
func TestSecondPort(t *testing.T) {
	p := newPlace(t, nil)
	conn := stranger(t)
	c := stun.NewClient(func(to netip.AddrPort, d []byte) error {
		_, err := conn.WriteToUDPAddrPort(d, to)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 2048); ; {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.Accept(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
	}()
	defer func() { conn.Close(); <-done }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.UDPPort())
	first, err := c.Ask(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	if first.OtherPort == 0 || first.OtherPort == at.Port() {
		t.Fatalf("no second port: %+v", first)
	}
	second := netip.AddrPortFrom(at.Addr(), first.OtherPort)
	if other, err := c.AskOtherPort(ctx, at); err != nil || other.From != second {
		t.Errorf("%+v, %v", other, err)
	}
	if r, err := c.Ask(ctx, second); err != nil || r.Mapped != first.Mapped || r.OtherPort != at.Port() {
		t.Errorf("%+v, %v", r, err)
	}
	// It is for STUN alone.
	if _, err := conn.WriteToUDPAddrPort(append([]byte{relay.TypeControl}, make([]byte, relay.ControlSize-1)...), second); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ask(ctx, second); err != nil {
		t.Error(err)
	}
	if n := p.counts.unknown.Load(); n != 1 {
		t.Errorf("%d unknown datagrams", n)
	}
}

func FuzzSTUN(f *testing.F) {
	f.Add(stunRequestOf(32), true)
	f.Add(stunRequestOf(44), false)
	f.Add(stunRequestOf(80), true)
	f.Add(otherPort(stunRequestOf(80)), false)
	f.Fuzz(func(t *testing.T, d []byte, v4 bool) {
		at := netip.MustParseAddrPort("[2001:db8::1]:1")
		if v4 {
			at = netip.MustParseAddrPort("192.0.2.1:1")
		}
		for _, other := range []netip.AddrPort{{}, netip.MustParseAddrPort("0.0.0.0:2"), netip.MustParseAddrPort("[2001:db8::9]:2")} {
			if a := answerSTUN(nil, d, at, other); len(a) > len(d) {
				t.Errorf("%d bytes for %d", len(a), len(d))
			} else if len(a) > 0 {
				changesPort(d)
			}
		}
	})
}

// forwarder is a loop between two clients that are there for it alone.
func forwarder(t testing.TB) (*loop, *client, *client, *Server) {
	t.Helper()
	s := must(New(Options{Network: must(identity.NewAuthorityKey(rand.Reader)).Public(), Key: must(identity.NewAgentKey(rand.Reader)), Host: "127.0.0.1"}))
	t.Cleanup(s.Close)
	add := func(last byte) *client {
		c := &client{
			server: s, addr: netip.AddrFrom16([16]byte{0: 0xfd, 15: last}), token: relay.Token{last},
			theirs: relay.Header{Slot: 100 + uint32(last), Token: relay.Token{7: last}}, queue: relay.NewQueue(1<<20, 2),
		}
		c.meter.set(-1, 0)
		if _, err := s.table.add(c); err != nil {
			t.Fatal(err)
		}
		c.udp.Store(&endpoint{remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 40000+uint16(last))})
		return c
	}
	return s.udp.loops[0], add(1), add(2), s
}

func (c *client) header(to *client) relay.Header {
	return relay.Header{Slot: c.slot, Token: c.token, Address: to.addr}
}

// TestRuns: datagrams with one header leave as one burst, rewritten in place; a change of header, of size or of the
// receiver begins another, and nothing is lost or out of order in between.
func TestRuns(t *testing.T) {
	l, a, b, s := forwarder(t)
	message := func(from, to *client, sizes ...int) *message {
		m := &message{data: make([]byte, 0, messageSize), size: relay.HeaderSize + sizes[0], remote: from.udp.Load().remote}
		for i, n := range sizes {
			m.data = append(from.header(to).Append(m.data), bytes.Repeat([]byte{byte(i)}, n)...)
		}
		return m
	}
	l.take(message(a, b, 100, 100, 100), time.Now())
	if l.out.n != 1 || l.out.count != 3 || l.out.size != 132 || l.out.to != b.udp.Load() {
		t.Fatalf("%+v", l.out)
	}
	h, ok := relay.ParseHeader(l.out.parts[0][132:])
	if !ok || h.Slot != b.theirs.Slot || h.Token != b.theirs.Token || h.Address != a.addr {
		t.Errorf("rewritten as %+v", h)
	}
	l.take(message(a, b, 100, 50), time.Now()) // goes along, and is the last
	if l.out.count != 5 || !l.out.closed {
		t.Errorf("%d datagrams", l.out.count)
	}
	l.take(message(b, a, 100), time.Now())
	if l.out.count != 1 || l.out.to != a.udp.Load() || s.counts.unsent.Load() != 0 {
		t.Errorf("%d datagrams to %v", l.out.count, l.out.to.remote)
	}
	for range 3 * maxSegments {
		l.take(message(b, a, 100), time.Now())
		if l.out.count > maxSegments || l.out.n > maxSegments {
			t.Fatalf("%d datagrams", l.out.count)
		}
	}
	l.flush()
	if n := s.counts.datagrams.Load(); n != 5+1+3*maxSegments {
		t.Errorf("%d datagrams", n)
	}
}

func TestForwardingDoesNotAllocate(t *testing.T) {
	l, a, b, _ := forwarder(t)
	m := &message{data: make([]byte, 0, messageSize), size: 132, remote: a.udp.Load().remote}
	now := time.Now()
	if n := testing.AllocsPerRun(200, func() {
		m.data = m.data[:0]
		for range 40 {
			m.data = a.header(b).Append(m.data)
			m.data = m.data[:len(m.data)+100]
		}
		l.take(m, now)
		l.flush()
	}); n != 0 {
		t.Errorf("%v allocations for 40 datagrams", n)
	}
}

// FuzzMessage: whatever comes in one message, nothing leaves for anybody but the two clients, and nothing breaks.
func FuzzMessage(f *testing.F) {
	l, a, b, _ := forwarder(f)
	d := append(a.header(b).Append(nil), 1, 2, 3)
	f.Add(d, 35, true)
	f.Add(append(bytes.Clone(d), d...), 35, true)
	f.Add(append(bytes.Clone(d), 0x26), 35, false)
	f.Add(stunRequestOf(44), 44, false)
	f.Fuzz(func(t *testing.T, d []byte, size int, bound bool) {
		if len(d) == 0 || len(d) > messageSize {
			return
		}
		m := &message{data: append(make([]byte, 0, messageSize), d...), size: min(len(d), max(1, size)), remote: netip.MustParseAddrPort("127.0.0.1:9")}
		if bound {
			m.remote = a.udp.Load().remote
		}
		l.take(m, time.Now())
		if l.out.n > 0 && (!bound || l.out.to != b.udp.Load() && l.out.to != a.udp.Load()) {
			t.Errorf("something leaves for %v", l.out.to.remote)
		}
		l.flush()
	})
}
