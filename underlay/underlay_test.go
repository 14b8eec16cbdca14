// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB) *Underlay {
	t.Helper()
	u, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	return u
}

func (u *Underlay) loopOf(v6 bool) int {
	for i, s := range u.sockets {
		if s.v6 == v6 {
			return i
		}
	}
	return -1
}

func arena(n int) []Burst {
	in := make([]Burst, n)
	for i := range in {
		in[i].Data = make([]byte, 0, ReceiveSize)
	}
	return in
}

func receiveOne(t testing.TB, u *Underlay, v6 bool) (string, Path) {
	t.Helper()
	in := arena(1)
	n, err := u.Receive(u.loopOf(v6), in)
	if err != nil || n != 1 {
		t.Fatal(n, err)
	}
	return string(in[0].Data), in[0].Path
}

func TestBothFamiliesOnOnePort(t *testing.T) {
	a, b := open(t), open(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		addr := netip.MustParseAddr(host)
		if addr.Is6() && b.v6 == nil {
			t.Log("no IPv6 on this host")
			continue
		}
		to := Path{Remote: netip.AddrPortFrom(addr, b.Port())}
		if err := a.Send(to, [][]byte{[]byte("one"), []byte("two")}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"one", "two"} {
			got, path := receiveOne(t, b, addr.Is6())
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if path.Remote != netip.AddrPortFrom(addr, a.Port()) {
				t.Errorf("from %v", path.Remote)
			}
			if runtime.GOOS == "linux" && path.Local != addr {
				t.Errorf("asked %v, not %v", path.Local, addr)
			}
		}
	}
}

func TestReplyLeavesFromTheAddressThatWasAsked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127/8 on the loopback interface")
	}
	a, b := open(t), open(t)
	asked := netip.AddrPortFrom(netip.MustParseAddr("127.9.8.7"), b.Port())
	if err := a.Send(Path{Remote: asked}, [][]byte{[]byte("question")}); err != nil {
		t.Fatal(err)
	}
	_, back := receiveOne(t, b, false)
	if err := b.Send(back, [][]byte{[]byte("answer")}); err != nil {
		t.Fatal(err)
	}
	if got, path := receiveOne(t, a, false); got != "answer" || path.Remote != asked {
		t.Errorf("%q from %v, asked %v", got, path.Remote, asked)
	}
}

func TestSourceThatMovedAway(t *testing.T) {
	a, b := open(t), open(t)
	for _, tt := range []struct{ local, remote string }{{"192.0.2.77", "127.0.0.1"}, {"2001:db8::77", "::1"}} {
		remote := netip.MustParseAddr(tt.remote)
		if b.loopOf(remote.Is6()) < 0 {
			continue
		}
		p := Path{Local: netip.MustParseAddr(tt.local), Remote: netip.AddrPortFrom(remote, b.Port())}
		if err := a.Send(p, [][]byte{[]byte("hello")}); err != nil {
			t.Fatal(err)
		}
		if got, path := receiveOne(t, b, remote.Is6()); got != "hello" || path.Remote.Addr() != remote {
			t.Errorf("%q from %v", got, path.Remote)
		}
	}
}

func TestMappedAddressIsIPv4(t *testing.T) {
	a, b := open(t), open(t)
	p := Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), b.Port())}
	if err := a.Send(p, [][]byte{[]byte("hello")}); err != nil {
		t.Fatal(err)
	}
	if got, _ := receiveOne(t, b, false); got != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestTakenPortFallsBack(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		busy, err := net.ListenPacket(network, ":0")
		if err != nil {
			t.Logf("%s: %v", network, err)
			continue
		}
		taken := busy.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		u, err := New(Options{Port: taken})
		if err != nil {
			t.Fatal(err)
		}
		if u.Port() == taken || u.Port() == 0 {
			t.Errorf("%s: port %d, taken %d", network, u.Port(), taken)
		}
		if err := errors.Join(u.Close(), busy.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestRefusalsDoNotEndTheLoop(t *testing.T) {
	a, b := open(t), open(t)
	gone := open(t)
	nobody := Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), gone.Port())}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_ = a.Send(nobody, [][]byte{[]byte("is anybody there?")})
	}
	if err := b.Send(Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), a.Port())}, [][]byte{[]byte("here")}); err != nil {
		t.Fatal(err)
	}
	if got, _ := receiveOne(t, a, false); got != "here" {
		t.Errorf("got %q", got)
	}
}

func TestRunEndsReceive(t *testing.T) {
	u := open(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	for loop := range u.Loops() {
		go func() {
			_, err := u.Receive(loop, arena(1))
			ended <- err
		}()
	}
	run := make(chan error)
	go func() { run <- u.Run(ctx) }()
	cancel()
	if err := <-run; err != nil {
		t.Error(err)
	}
	for range u.Loops() {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := u.Receive(0, arena(1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Run: %v", err)
	}
	if _, err := u.Receive(9, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("loop that is not there: %v", err)
	}
}

func TestRelayPathsAreRefused(t *testing.T) {
	if err := open(t).Send(Path{Relay: 1}, [][]byte{nil}); !errors.Is(err, ErrNoRelay) {
		t.Errorf("got %v", err)
	}
}

func TestNoAllocation(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("packet info is read without allocation on Linux only")
	}
	a, b := open(t), open(t)
	datagram := [][]byte{make([]byte, 1400)}
	in := arena(1)
	p := Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.Port()), Local: netip.MustParseAddr("127.0.0.1")}
	loop := b.loopOf(false)
	if n := testing.AllocsPerRun(200, func() {
		if err := a.Send(p, datagram); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Receive(loop, in); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSendReceive(b *testing.B) {
	x, y := open(b), open(b)
	datagram := [][]byte{make([]byte, 1452)}
	in := arena(1)
	p := Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), y.Port())}
	b.SetBytes(1452)
	for b.Loop() {
		if err := x.Send(p, datagram); err != nil {
			b.Fatal(err)
		}
		if _, err := y.Receive(y.loopOf(false), in); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTooBig(t *testing.T) {
	u := open(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		remote := netip.MustParseAddr(host)
		if u.loopOf(remote.Is6()) < 0 {
			continue
		}
		d := make([]byte, 1<<16)
		err := u.Send(Path{Remote: netip.AddrPortFrom(remote, u.Port())}, [][]byte{d, d[:1]})
		if !errors.Is(err, ErrTooBig) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// burstOf makes datagrams that differ from one another.
func burstOf(p Path, count, size, last int) *Burst {
	b := &Burst{Path: p, Size: size}
	for i := range count {
		n := size
		if i == count-1 {
			n = last
		}
		b.Data = append(b.Data, bytes.Repeat([]byte{byte(i + 1)}, n)...)
	}
	return b
}
