// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Two kernels with their own offloads, TCP both ways at once, over a wire that loses, reorders and doubles: what one
// program writes the other one reads.
func TestKernelsTalkOverABadWire(t *testing.T) {
	w := newWorld(t)
	defer w.stop()
	w.setWeather(func(_, _ netip.AddrPort, _ []byte) []time.Duration {
		switch n := rand.IntN(200); {
		case n < 2:
			return nil
		case n < 4:
			return []time.Duration{time.Millisecond, time.Millisecond}
		case n < 8:
			return []time.Duration{3 * time.Millisecond}
		}
		return []time.Duration{time.Millisecond}
	})
	a, ka := w.kernelNode(t, addrA)
	b, kb := w.kernelNode(t, addrB)
	trust(a, b)
	var ln net.Listener
	var err error
	at := netip.AddrPortFrom(b.addr, 80).String()
	kb.run(func() { ln, err = net.Listen("tcp6", at) })
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	var out net.Conn
	ka.run(func() { out, err = (&net.Dialer{}).DialContext(context.Background(), "tcp6", at) })
	if err != nil {
		t.Fatal(err)
	}
	in := <-accepted
	if in == nil {
		return
	}
	var group sync.WaitGroup
	sums := [2][2]hash.Hash{}
	for i, c := range []net.Conn{out, in} {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		sums[i] = [2]hash.Hash{sha256.New(), sha256.New()}
		group.Go(func() {
			const size = 6 << 20
			source := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
			if _, err := io.Copy(c, io.TeeReader(source, sums[i][0])); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
			const size = 6 << 20
			if n, err := io.CopyN(sums[i][1], c, size); err != nil {
				t.Errorf("after %d bytes: %v", n, err)
			}
		})
	}
	group.Wait()
	for i := range sums {
		if string(sums[i][0].Sum(nil)) != string(sums[1-i][1].Sum(nil)) {
			t.Errorf("direction %d: other bytes", i)
		}
	}
	_ = out.Close()
	_ = in.Close()
	t.Logf("a: %v, b: %v", a.o.Status().Drops, b.o.Status().Drops)
}
