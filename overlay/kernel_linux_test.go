// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// kernel is a network namespace with a TUN interface, and a thread that lives in it.
type kernel struct {
	do  chan func()
	dev tun.Device
}

// newKernel makes a namespace in which the agent has its address and route. Tests without the rights are skipped.
func newKernel(t testing.TB, addr netip.Addr) *kernel {
	t.Helper()
	return inNamespace(t, func(k *kernel) error { return k.configure(addr) })
}

// inNamespace makes a namespace and sets it up.
func inNamespace(t testing.TB, configure func(*kernel) error) *kernel {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "needs root for a network namespace")
	}
	k := &kernel{do: make(chan func())}
	t.Cleanup(func() { close(k.do) })
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the namespace
		for f := range k.do {
			f()
		}
	}()
	var err error
	k.run(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			err = configure(k)
		}
	})
	if err != nil {
		skip(t, "no namespace or TUN to be had: "+err.Error())
	}
	return k
}

func (k *kernel) run(f func()) {
	done := make(chan struct{})
	k.do <- func() { defer close(done); f() }
	<-done
}

func (k *kernel) configure(addr netip.Addr) (err error) {
	if k.dev, err = tun.Open("pilot0", 1420); err != nil {
		return err
	}
	// One handle for the namespace: the package's own would be of the namespace that was there first.
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	link, err := h.LinkByName(k.dev.Name())
	if err != nil {
		return err
	}
	own := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD}
	prefix := must(addr.Prefix(48))
	return errors.Join(h.LinkSetUp(lo), h.LinkSetMTU(link, k.dev.MTU()), h.LinkSetUp(link), h.AddrAdd(link, own),
		h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(48, 128)}}))
}

// connect is a blocking connect() of a program in the namespace.
func (k *kernel) connect(to netip.Addr, port int) (err error) {
	k.run(func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		err = errors.Join(unix.Connect(fd, &unix.SockaddrInet6{Addr: to.As16(), Port: port}), unix.Close(fd))
	})
	return err
}

// kernelNode is a node with a real interface on the wire in memory.
func (w *world) kernelNode(t *testing.T, at string) (*node, *kernel) {
	t.Helper()
	n := w.idleNode(w.agent(), at)
	k := newKernel(t, n.addr)
	n.o = must(New(Options{Network: w.authority.Public(), Device: k.dev, Underlay: n.port, Stack: n.stack}))
	n.run()
	return n, k
}

func TestKernelReportsDenialsToPrograms(t *testing.T) {
	w := newWorld(t)
	defer w.stop()
	a, k := w.kernelNode(t, addrA)
	b, c, d := w.idleNode(w.agent(), addrB), w.idleNode(w.agent(), addrC), w.agent()
	a.know(b, &policy.Grant{}, nil).know(c, &policy.Grant{}, &policy.Grant{})
	a.state.Peers[1].Offline = true
	a.set()
	for _, tt := range []struct {
		name string
		to   netip.Addr
		want error
		drop string
	}{
		{"no consent", b.addr, unix.EACCES, "denied-out-no-consent-peer"},
		{"unknown", d.addr, unix.EACCES, "unknown-peer"},
		{"offline", c.addr, unix.EHOSTUNREACH, "unreachable"},
		{"reserved", a.state.Prefix.Addr().Next(), unix.ENETUNREACH, "no-route"},
	} {
		start := time.Now()
		err := k.connect(tt.to, 80)
		t.Logf("%s: %v after %v", tt.name, err, time.Since(start))
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		if n := a.drops(tt.drop); n != 1 {
			t.Errorf("%s: the kernel had to ask %d times", tt.name, n)
		}
	}
}

// Two kernels, a TCP connection through both overlays: bursts with offloads, then the consent goes.
func TestKernelsTalk(t *testing.T) {
	w := newWorld(t)
	defer w.stop()
	w.setWeather(func(_, _ netip.AddrPort, _ []byte) []time.Duration { return []time.Duration{time.Millisecond} })
	a, ka := w.kernelNode(t, addrA)
	b, kb := w.kernelNode(t, addrB)
	trust(a, b)
	var ln net.Listener
	var err error
	kb.run(func() { ln, err = net.Listen("tcp6", netip.AddrPortFrom(b.addr, 80).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const size = 4 << 20
	got, served, stop := make(chan int64, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(served)
		c, err := ln.Accept()
		if err != nil {
			got <- -1
			return
		}
		n, _ := io.CopyN(io.Discard, c, size)
		got <- n
		<-stop
		_ = c.Close()
	}()
	defer func() { close(stop); <-served }()
	var c net.Conn
	ka.run(func() {
		c, err = (&net.Dialer{}).DialContext(context.Background(), "tcp6", netip.AddrPortFrom(b.addr, 80).String())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != size {
		t.Fatalf("%d of %d bytes", n, size)
	}
	t.Logf("a: %v, b: %v", a.o.Status().Drops, b.o.Status().Drops)

	// b withdraws: a's running connection is reset, and a new one fails at once, though a has heard nothing but b's word.
	clear(b.rules)
	b.know(a, nil, &policy.Grant{}).set()
	for err = nil; err == nil; {
		_, err = c.Write(make([]byte, 1<<16))
	}
	t.Logf("running connection: %v", err)
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("running connection: %v", err)
	}
	if err := ka.connect(b.addr, 80); !errors.Is(err, unix.EACCES) {
		t.Errorf("new connection: %v", err)
	}
}

// The one thread for both directions waits for as long as nothing happens, and must be woken to end: at whichever moment
// that is, and also where its descriptors' numbers are others' at once.
func TestOneThreadForBothDirectionsEnds(t *testing.T) {
	w := newWorld(t)
	for range 20 {
		n := w.idleNode(w.agent(), "127.0.0.1:1")
		k := newKernel(t, n.addr)
		u := must(underlay.New(underlay.Options{}))
		n.o = must(New(Options{Network: w.authority.Public(), Device: k.dev, Underlay: u}))
		n.o.processors = 1
		if d := newDuplex(n.o); d == nil {
			t.Fatal("there are two threads")
		} else if err := d.close(); err != nil {
			t.Fatal(err)
		}
		n.run()
		n.stop()
		if fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			t.Fatal(err)
		} else {
			defer unix.Close(fd)
		}
	}
}

// sharedAddress is that of a host whose loopback interface has one which is not for itself alone: no peer is sought at
// another host's loopback address.
var sharedAddress = netip.MustParseAddr("192.0.2.1")

// sharedHost is a namespace with sharedAddress.
func sharedHost(t testing.TB) *kernel {
	return inNamespace(t, func(*kernel) error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: sharedAddress.AsSlice(), Mask: net.CIDRMask(32, 32)}}
		return errors.Join(h.LinkSetUp(lo), h.AddrAdd(lo, addr))
	})
}

// BenchmarkKernelTransfer is TCP between two namespaces, over UDP sockets on the loopback interface of a third.
func BenchmarkKernelTransfer(b *testing.B) {
	w := newWorld(b)
	defer w.stop()
	host := sharedHost(b)
	var sockets [2]*underlay.Underlay
	host.run(func() {
		for i := range sockets {
			sockets[i] = must(underlay.New(underlay.Options{}))
		}
	})
	x, kx := w.kernelNodeOver(b, sockets[0])
	y, ky := w.kernelNodeOver(b, sockets[1])
	trust(x, y)
	var ln net.Listener
	ky.run(func() { ln = must(net.Listen("tcp6", netip.AddrPortFrom(y.addr, 80).String())) })
	defer ln.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c := must(ln.Accept())
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	}()
	var c net.Conn
	kx.run(func() { c = must(net.Dial("tcp6", netip.AddrPortFrom(y.addr, 80).String())) })
	data := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		_ = must(c.Write(data))
	}
	_ = c.Close()
	<-served
	b.Logf("%v %v", x.o.Status().Drops, y.o.Status().Drops)
}

// kernelNodeOver is a node with a real interface and real sockets.
func (w *world) kernelNodeOver(tb testing.TB, u *underlay.Underlay) (*node, *kernel) {
	n := w.idleNode(w.agent(), netip.AddrPortFrom(sharedAddress, u.Port()).String())
	k := newKernel(tb, n.addr)
	n.o = must(New(Options{Network: w.authority.Public(), Device: k.dev, Underlay: u, AES: true}))
	n.run()
	return n, k
}

// skip leaves a test out where this host can't run it. CI can run all: there it fails.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
