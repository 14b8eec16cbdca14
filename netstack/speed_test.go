// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	wgtun "golang.zx2c4.com/wireguard/tun"
	wgstack "golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/pilot-protocol/pilot/tun"
)

// One TCP connection between two stacks whose devices are wired to each other, by us and by wireguard-go's netstack, with
// the same MTU: what the stacks and their devices cost, without any tunnel.
func BenchmarkStackToStack(b *testing.B) {
	b.Run("pilot", func(b *testing.B) {
		x, y := wired(b, nil, nil)
		stream(b, func() (net.Listener, error) { return y.ListenTCP(netip.AddrPortFrom(addrB, 80)) },
			func() (net.Conn, error) {
				return x.Dial(context.Background(), "tcp", netip.Addr{}, netip.AddrPortFrom(addrB, 80))
			})
	})
	b.Run("pilot-cut-and-joined", func(b *testing.B) {
		x, y := wired(b, cutAndJoined(b, DefaultMTU, nil), cutAndJoined(b, DefaultMTU, nil))
		stream(b, func() (net.Listener, error) { return y.ListenTCP(netip.AddrPortFrom(addrB, 80)) },
			func() (net.Conn, error) {
				return x.Dial(context.Background(), "tcp", netip.Addr{}, netip.AddrPortFrom(addrB, 80))
			})
	})
	b.Run("pilot-single-packets", func(b *testing.B) {
		x, y := pair(b, nil, nil)
		stream(b, func() (net.Listener, error) { return y.ListenTCP(netip.AddrPortFrom(addrB, 80)) },
			func() (net.Conn, error) {
				return x.Dial(context.Background(), "tcp", netip.Addr{}, netip.AddrPortFrom(addrB, 80))
			})
	})
	b.Run("wireguard-go", func(b *testing.B) {
		x, y := wgWired(b)
		stream(b, func() (net.Listener, error) { return y.ListenTCPAddrPort(netip.AddrPortFrom(addrB, 80)) },
			func() (net.Conn, error) {
				return x.DialContextTCPAddrPort(context.Background(), netip.AddrPortFrom(addrB, 80))
			})
	})
}

// stream measures one connection in one direction.
func stream(b *testing.B, listen func() (net.Listener, error), dial func() (net.Conn, error)) {
	l, err := listen()
	if err != nil {
		b.Fatal(err)
	}
	received := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			received <- 0
			return
		}
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, c, make([]byte, 256<<10))
		c.Close()
		received <- n
	}()
	c, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	chunk := make([]byte, 128<<10)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	sent := int64(0)
	for b.Loop() {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
		sent += int64(len(chunk))
	}
	// What is still under way counts.
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		b.Fatal(err)
	}
	b.StartTimer()
	if n := <-received; n != sent {
		b.Fatalf("%d bytes of %d arrived", n, sent)
	}
	b.StopTimer()
	c.Close()
	l.Close()
}

func wgWired(b *testing.B) (x, y *wgstack.Net) {
	dx, x, err := wgstack.CreateNetTUN([]netip.Addr{addrA}, nil, DefaultMTU)
	if err != nil {
		b.Fatal(err)
	}
	dy, y, err := wgstack.CreateNetTUN([]netip.Addr{addrB}, nil, DefaultMTU)
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	pump := func(from, to wgtun.Device) {
		wg.Go(func() {
			bufs, whole, sizes := make([][]byte, 1), make([]byte, tun.MaxPacket), make([]int, 1)
			for {
				bufs[0] = whole
				if _, err := from.Read(bufs, sizes, 0); err != nil {
					return
				}
				bufs[0] = whole[:sizes[0]]
				if _, err := to.Write(bufs, 0); err != nil {
					return
				}
			}
		})
	}
	pump(dx, dy)
	pump(dy, dx)
	b.Cleanup(func() { dx.Close(); dy.Close(); wg.Wait() })
	return x, y
}
