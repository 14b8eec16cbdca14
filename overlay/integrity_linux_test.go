// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pilot-protocol/pilot/underlay"
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
	exchange(t, ka, kb, b.addr, 6<<20)
	t.Logf("a: %v, b: %v", a.o.Status().Drops, b.o.Status().Drops)
}

// exchange sends size random bytes both ways at once over a TCP connection, and compares what arrives.
func exchange(t *testing.T, ka, kb *kernel, addr netip.Addr, size int64) {
	t.Helper()
	var ln net.Listener
	var err error
	at := netip.AddrPortFrom(addr, 80).String()
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
			source := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
			if _, err := io.Copy(c, io.TeeReader(source, sums[i][0])); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
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
}

// cable joins two namespaces by a pair of virtual Ethernet interfaces.
func cable(t *testing.T, ka, kb *kernel, addressA, addressB string, mtu int) {
	t.Helper()
	var other *os.File
	var err error
	kb.run(func() { other, err = os.Open("/proc/thread-self/ns/net") })
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	configure := func(address string) error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		if address == addressA {
			if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(other.Fd()))}); err != nil {
				return err
			}
		}
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		own, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		return errors.Join(h.LinkSetMTU(link, mtu), h.AddrAdd(link, own), h.LinkSetUp(link))
	}
	ka.run(func() { err = configure(addressA) })
	if err != nil {
		t.Fatal(err)
	}
	kb.run(func() { err = configure(addressB) })
	if err != nil {
		t.Fatal(err)
	}
}

// The whole way with real sockets: one thread for both directions, then one for each, then over a path on which no record
// of a full packet fits.
func TestKernelsTalkOverACable(t *testing.T) {
	for _, tt := range []struct {
		processors, mtu int
		size            int64
	}{{1, 1500, 32 << 20}, {64, 1500, 32 << 20}, {1, 1300, 4 << 20}} {
		w := newWorld(t)
		var nodes [2]*node
		var kernels [2]*kernel
		var sockets [2]*underlay.Underlay
		for i, at := range []string{"192.0.2.1:7745", "192.0.2.2:7745"} {
			n := w.idleNode(w.agent(), at)
			k := newKernel(t, n.addr)
			var err error
			k.run(func() { sockets[i], err = underlay.New(underlay.Options{Port: 7745}) })
			if err != nil {
				t.Fatal(err)
			}
			n.o = must(New(Options{Network: w.authority.Public(), Device: k.dev, Underlay: sockets[i], Stack: n.stack, AES: true}))
			n.o.processors = tt.processors
			if one := newDuplex(n.o) != nil; one != (tt.processors == 1) {
				t.Errorf("%d processors: one thread %v", tt.processors, one)
			}
			nodes[i], kernels[i] = n, k
		}
		cable(t, kernels[0], kernels[1], "192.0.2.1/24", "192.0.2.2/24", tt.mtu)
		for _, n := range nodes {
			n.run()
		}
		trust(nodes[0], nodes[1])
		exchange(t, kernels[0], kernels[1], nodes[1].addr, tt.size)
		t.Logf("a: %v, b: %v", nodes[0].o.Status().Drops, nodes[1].o.Status().Drops)
		w.stop()
	}
}
