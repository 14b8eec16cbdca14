// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"
)

// running is an underlay with Run under way.
func running(t *testing.T) *Underlay {
	t.Helper()
	u := open(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return u
}

func TestFanSocketsSendAndReceive(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		a, b := running(t), open(t)
		addr := netip.MustParseAddr(host)
		if b.loopOf(addr.Is6()) < 0 {
			continue
		}
		const n = 40
		paths, err := a.Fan(netip.AddrPortFrom(addr, b.Port()), n)
		if err != nil || len(paths) != n {
			t.Fatal(len(paths), err)
		}
		ports, sockets := map[uint16]bool{}, map[uint16]bool{}
		for _, p := range paths {
			if p.Socket == 0 || sockets[p.Socket] {
				t.Fatalf("socket %d", p.Socket)
			}
			sockets[p.Socket] = true
			if err := a.Send(p, [][]byte{[]byte("knock")}); err != nil {
				t.Fatal(err)
			}
			got, back := receiveOne(t, b, addr.Is6())
			if got != "knock" || back.Remote.Port() == a.Port() || ports[back.Remote.Port()] {
				t.Fatalf("%q from %v", got, back.Remote)
			}
			ports[back.Remote.Port()] = true
			if err := b.Send(back, [][]byte{[]byte("answer")}); err != nil {
				t.Fatal(err)
			}
		}
		in := arena(n)
		for got := 0; got < n; {
			k, err := a.Receive(a.Loops()-1, in)
			if err != nil {
				t.Fatal(err)
			}
			for _, burst := range in[:k] {
				for d := range burst.Each {
					if string(d) != "answer" || !sockets[burst.Path.Socket] || burst.Path.Remote != paths[0].Remote {
						t.Fatalf("%q by %+v", d, burst.Path)
					}
					got++
				}
			}
		}
		a.Unfan(paths[3:4])
		if err := a.Send(paths[0], [][]byte{[]byte("x")}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed socket: %v", err)
		}
		if err := a.Send(paths[3], [][]byte{[]byte("still")}); err != nil {
			t.Errorf("the kept one: %v", err)
		}
		if got, _ := receiveOne(t, b, addr.Is6()); got != "still" {
			t.Errorf("got %q", got)
		}
	}
}

func TestFanIsBounded(t *testing.T) {
	a := running(t)
	to := netip.MustParseAddrPort("127.0.0.1:9")
	first, err := a.Fan(to, maxFan-5)
	if err != nil {
		if runtime.GOOS != "linux" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	rest, err := a.Fan(to, 50)
	if err != nil || len(first)+len(rest) != maxFan && len(first) == maxFan-5 {
		t.Errorf("%d and %d, %v", len(first), len(rest), err)
	}
	if _, err := a.Fan(to, 1); len(first)+len(rest) == maxFan && !errors.Is(err, ErrFan) {
		t.Errorf("got %v", err)
	}
	a.Unfan(nil)
	if again, err := a.Fan(to, 2); err != nil || len(again) != 2 || again[0].Socket == first[0].Socket {
		t.Errorf("%v, %v", again, err)
	}
}
