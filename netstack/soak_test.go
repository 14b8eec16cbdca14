// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// hurry makes closed connections rest for a moment only, so that a test can see that nothing is left of them.
func hurry(t testing.TB, c *core) {
	t.Helper()
	rest := tcpip.TCPTimeWaitTimeoutOption(10 * time.Millisecond)
	if e := c.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &rest); e != nil {
		t.Fatal(e)
	}
}

// Thousands of short connections and flows, some of them refused or given up, leave no endpoint, port or goroutine.
func TestSoak(t *testing.T) {
	const workers, each = 8, 400
	a, b := wired(t, nil, nil)
	hurry(t, a.core)
	hurry(t, b.core)
	l, err := b.ListenTCP(netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	// One connection, so that all that starts lazily has started.
	shortConnection(t, a, addrA)
	until(t, func() bool { return len(a.stack.RegisteredEndpoints()) == 0 && len(b.stack.RegisteredEndpoints()) == 1 })
	goroutines := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for w := range workers {
		own := []netip.Addr{addrA, addrA2}[w%2]
		wg.Go(func() {
			for i := range each {
				switch i % 8 {
				case 6: // a closed port
					if _, err := a.Dial(context.Background(), "tcp", own, netip.AddrPortFrom(addrB, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("closed port: %v", err)
					}
				case 7: // given up at once
					ctx, cancel := context.WithCancel(context.Background())
					cancel()
					if _, err := a.Dial(ctx, "tcp", own, netip.AddrPortFrom(addrB, 80)); !errors.Is(err, context.Canceled) {
						t.Errorf("given up: %v", err)
					}
				default:
					shortConnection(t, a, own)
				}
			}
		})
	}
	wg.Wait()
	until(t, func() bool {
		return len(a.stack.RegisteredEndpoints()) == 0 && len(b.stack.RegisteredEndpoints()) == 1 /* the listener */ &&
			a.stack.Stats().TCP.CurrentEstablished.Value() == 0 && b.stack.Stats().TCP.CurrentEstablished.Value() == 0 &&
			runtime.NumGoroutine() <= goroutines
	})
	if n := a.queue.dropped.Load() + b.queue.dropped.Load(); n != 0 {
		t.Errorf("%d packets were dropped", n)
	}
	l.Close()
	serving.Wait()
}

func shortConnection(t *testing.T, a *Stack, own netip.Addr) {
	c, err := a.Dial(context.Background(), "tcp", own, netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Error(err)
	}
	if err := c.(*conn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(c); string(got) != "ping" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// The same of a gateway, with datagrams too.
func TestSoakGateway(t *testing.T) {
	const workers, each = 4, 250
	g, b := sandbox(t, GatewayOptions{UDPIdle: 2 * time.Second, Open: func(_ context.Context, f Flow) (func(net.Conn), error) {
		if f.Destination.Port() != world4.Port() {
			return nil, syscall.ECONNREFUSED
		}
		return echo, nil
	}})
	hurry(t, g.core)
	hurry(t, b.core)
	goroutines := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range each {
				to := []netip.AddrPort{world4, world6}[i%2]
				if i%8 > 5 {
					to = netip.AddrPortFrom(to.Addr(), 444)
				}
				c, err := b.dial(t, []string{"tcp", "udp"}[i/2%2], to)
				if to.Port() == 444 && i/2%2 == 0 {
					if err == nil {
						t.Error("a refused port was open")
					}
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				c.SetDeadline(time.Now().Add(10 * time.Second))
				c.Write([]byte("x"))
				if n, err := c.Read(make([]byte, 1)); (n == 1) != (to.Port() == world4.Port()) {
					t.Errorf("%v: %d bytes, %v", to, n, err)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	until(t, func() bool {
		g.mu.Lock()
		opened := len(g.opened)
		g.mu.Unlock()
		return g.Status().Active == 0 && opened == 0 && len(g.stack.RegisteredEndpoints()) == 0 && runtime.NumGoroutine() <= goroutines
	})
}
