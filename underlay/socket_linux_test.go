// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// receiveAll reads datagrams until there are count of them.
func receiveAll(t *testing.T, u *Underlay, v6 bool, count int) (got [][]byte, classes map[uint8]bool) {
	t.Helper()
	in, classes := arena(4), make(map[uint8]bool)
	for len(got) < count {
		n, err := u.Receive(u.loopOf(v6), in)
		if err != nil {
			t.Fatal(err)
		}
		for i := range in[:n] {
			classes[in[i].Class] = true
			for d := range in[i].Each {
				got = append(got, bytes.Clone(d))
			}
		}
	}
	return got, classes
}

func TestBurstsArriveWhole(t *testing.T) {
	a, b := open(t), open(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		remote := netip.MustParseAddr(host)
		if b.loopOf(remote.Is6()) < 0 {
			continue
		}
		path := Path{Remote: netip.AddrPortFrom(remote, b.Port()), Local: remote}
		for _, gso := range []bool{true, false} {
			for _, s := range a.sockets {
				if gso && !s.gso.Load() {
					t.Log("this kernel does not cut bursts")
				}
				s.gso.Store(gso)
			}
			for _, tt := range []struct{ count, size, last int }{{1, 100, 100}, {2, 1452, 1}, {45, 1452, 1452}, {MaxSegments, 144, 144}, {MaxSegments, 1000, 7}} {
				want := burstOf(path, tt.count, tt.size, tt.last)
				want.Class = 0xb9 // expedited forwarding, ECN-capable
				if err := a.SendBurst(want); err != nil {
					t.Fatal(err)
				}
				got, classes := receiveAll(t, b, remote.Is6(), tt.count)
				i := 0
				for d := range want.Each {
					if !bytes.Equal(got[i], d) {
						t.Fatalf("%s, %+v: datagram %d has %d bytes", host, tt, i, len(got[i]))
					}
					i++
				}
				if len(got) != i || len(classes) != 1 || !classes[0xb9] {
					t.Errorf("%s, %+v: %d datagrams, classes %v", host, tt, len(got), classes)
				}
			}
			for _, s := range a.sockets {
				s.gso.Store(true)
			}
		}
	}
}

// What differs in length, class, path or family leaves in its order; what can't be sent is told, and ends nothing else.
func TestManyBursts(t *testing.T) {
	a, b := open(t), open(t)
	v4 := Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.Port())}
	mapped := Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), b.Port())}
	stale := Path{Remote: v4.Remote, Local: netip.MustParseAddr("192.0.2.77")}
	for _, gso := range []bool{true, false} {
		for _, s := range a.sockets {
			s.gso.Store(gso)
		}
		var all []Burst
		var want [][]byte
		add := func(p Path, count, size, last int) {
			u := burstOf(p, count, size, last)
			u.Class = uint8(len(all)) << 2
			all = append(all, *u)
			for d := range u.Each {
				want = append(want, d)
			}
		}
		for i := range 2*sendBatch + 3 {
			add([]Path{v4, mapped, stale}[i%3], 1+i%4, 100+i, 50)
		}
		if done, err := a.SendBursts(all); done != len(all) || err != nil {
			t.Fatalf("%d of %d, %v", done, len(all), err)
		}
		got, classes := receiveAll(t, b, false, len(want))
		if !slices.EqualFunc(got, want, bytes.Equal) || len(classes) != len(all) {
			t.Errorf("gso %v: %d datagrams instead of %d, %d classes", gso, len(got), len(want), len(classes))
		}
	}
	refused := *burstOf(Path{Remote: v4.Remote, Relay: 9}, 1, 10, 10)
	far := *burstOf(Path{Remote: netip.MustParseAddrPort("255.255.255.255:9")}, 1, 10, 10) // EACCES
	good := *burstOf(v4, 1, 10, 10)
	for _, bad := range []Burst{refused, far} {
		all := []Burst{good, good, bad, good}
		if done, err := a.SendBursts(all); done != 3 || err == nil {
			t.Fatalf("%d, %v", done, err)
		}
		if done, err := a.SendBursts(all[3:]); done != 1 || err != nil {
			t.Fatalf("%d, %v", done, err)
		}
		if got, _ := receiveAll(t, b, false, 3); len(got) != 3 {
			t.Errorf("%d datagrams", len(got))
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if done, err := a.SendBursts([]Burst{good, good}); done != 1 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %d, %v", done, err)
	}
}

func TestBurstFromAnAddressThatMovedAway(t *testing.T) {
	a, b := open(t), open(t)
	path := Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.Port()), Local: netip.MustParseAddr("192.0.2.77")}
	if err := a.SendBurst(burstOf(path, 3, 10, 10)); err != nil {
		t.Fatal(err)
	}
	if got, _ := receiveAll(t, b, false, 3); len(got) != 3 {
		t.Errorf("%d datagrams", len(got))
	}
}

func TestBurstsDoNotAllocate(t *testing.T) {
	a, b := open(t), open(t)
	host := netip.MustParseAddr("127.0.0.1")
	out := burstOf(Path{Remote: netip.AddrPortFrom(host, b.Port()), Local: host}, 40, 1400, 1000)
	small := []Burst{*burstOf(out.Path, 1, 100, 100), *burstOf(out.Path, 2, 200, 100), *burstOf(out.Path, 1, 7, 7)}
	in, loop := arena(8), b.loopOf(false)
	if n := testing.AllocsPerRun(200, func() {
		if err := a.SendBurst(out); err != nil {
			t.Fatal(err)
		}
		if _, err := a.SendBursts(small); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(out.Data)+407; {
			n, err := b.Receive(loop, in)
			if err != nil {
				t.Fatal(err)
			}
			for i := range in[:n] {
				got += len(in[i].Data)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What came before somebody waits for the descriptor must be taken too: nothing rings for it again.
func TestBellRingsForWhatWasThere(t *testing.T) {
	r, err := newRing()
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	rings := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(r.bell.fd), Events: unix.POLLIN}}, 0)
		return n == 1 && err == nil
	}
	r.put(single(Path{Relay: 1}, "early"))
	if rings() {
		t.Error("it rings for nobody")
	}
	r.poll()
	if !rings() {
		t.Error("it does not ring for what was there")
	}
	if n, err := r.receive([]Burst{{}}, false); n != 1 || err != nil {
		t.Fatalf("received %d, %v", n, err)
	}
	if rings() {
		t.Error("it still rings")
	}
}

func FuzzControl(f *testing.F) {
	for _, local := range []string{"127.0.0.1", "::1"} {
		var b [controlSize]byte
		a := netip.MustParseAddr(local)
		f.Add(b[:encodeControl(&b, a, 1400, 3, a.Is6())], a.Is6())
	}
	f.Fuzz(func(t *testing.T, oob []byte, v6 bool) {
		var c control
		if c.parse(oob, v6); c.local.IsValid() && c.local.Is6() != v6 {
			t.Errorf("%v for IPv6 %v", c.local, v6)
		}
	})
}

func BenchmarkBurst(b *testing.B) {
	x, y := open(b), open(b)
	host := netip.MustParseAddr("127.0.0.1")
	out := burstOf(Path{Remote: netip.AddrPortFrom(host, y.Port())}, 45, 1452, 1452)
	in, loop := arena(8), y.loopOf(false)
	b.SetBytes(int64(len(out.Data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := x.SendBurst(out); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < len(out.Data); {
			n, err := y.Receive(loop, in)
			if err != nil {
				b.Fatal(err)
			}
			for i := range in[:n] {
				got += len(in[i].Data)
			}
		}
	}
}
