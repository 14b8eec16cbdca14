// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	addrA  = netip.MustParseAddr("fd5c:1:2:3::a")
	addrA2 = netip.MustParseAddr("fd5c:1:2::53")
	addrB  = netip.MustParseAddr("fd5c:1:2:4::b")
)

func newStack(t testing.TB, addrs ...netip.Addr) *Stack {
	t.Helper()
	s, err := New(Options{Addresses: addrs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// wire carries packets one way until ctx ends; pass may drop or replace one.
func wire(ctx context.Context, from, to *Stack, pass func([]byte) []byte) {
	const burst, offset = 8, 16
	bufs, sizes := make([][]byte, burst), make([]int, burst)
	for i := range bufs {
		bufs[i] = make([]byte, offset+DefaultMTU)
	}
	for {
		n, err := from.ReadPackets(ctx, bufs, sizes, offset)
		if err != nil {
			return
		}
		for i := range n {
			p := bufs[i][offset : offset+sizes[i]]
			if pass != nil {
				p = pass(p)
			}
			if p != nil {
				to.Deliver(p)
			}
		}
	}
}

func pair(t testing.TB, passAB, passBA func([]byte) []byte) (a, b *Stack) {
	t.Helper()
	a, b = newStack(t, addrA, addrA2), newStack(t, addrB)
	connect(t, a, b, passAB, passBA)
	return a, b
}

func connect(t testing.TB, a, b *Stack, passAB, passBA func([]byte) []byte) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { wire(ctx, a, b, passAB) })
	wg.Go(func() { wire(ctx, b, a, passBA) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// transfer sends size random bytes from a to b and checks them there.
func transfer(t *testing.T, a, b *Stack, size int) {
	t.Helper()
	l, err := b.ListenTCP(netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := make([]byte, size)
	rand.Read(data)
	type result struct {
		sum [32]byte
		n   int64
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer c.Close()
		h := sha256.New()
		n, err := io.Copy(h, c)
		done <- result{[32]byte(h.Sum(nil)), n, err}
	}()
	c, err := a.DialContext(testContext(t), "tcp", net.JoinHostPort(addrB.String(), "80"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != addrA {
		t.Errorf("dialled from %v, want the first address %v", got, addrA)
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.Close()
	r := <-done
	if r.err != nil || r.n != int64(size) || r.sum != sha256.Sum256(data) {
		t.Fatalf("received %d bytes of %d, error %v, same content %v", r.n, size, r.err, r.sum == sha256.Sum256(data))
	}
}

func TestTCPTransfer(t *testing.T) {
	a, b := pair(t, nil, nil)
	transfer(t, a, b, 8<<20)
}

func TestTCPTransferWithLoss(t *testing.T) {
	count, sack := 0, false
	lossy := func(p []byte) []byte {
		if count++; count%50 == 49 {
			return nil
		}
		return p
	}
	sawSACK := func(p []byte) []byte {
		if p[6] == uint8(header.TCPProtocolNumber) {
			opts := header.ParseTCPOptions(header.TCP(p[header.IPv6MinimumSize:]).Options())
			sack = sack || len(opts.SACKBlocks) > 0
		}
		return p
	}
	a, b := newStack(t, addrA, addrA2), newStack(t, addrB)
	t.Run("transfer", func(t *testing.T) {
		connect(t, a, b, lossy, sawSACK)
		transfer(t, a, b, 1<<20)
	})
	if !sack {
		t.Error("no selective acknowledgement was sent in spite of loss")
	}
}

func TestUDP(t *testing.T) {
	a, b := pair(t, nil, nil)
	server, err := b.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), 53))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				done <- err
				return
			}
			if _, err := server.WriteTo(bytes.ToUpper(buf[:n]), from); err != nil {
				done <- err
				return
			}
		}
	}()
	c, err := a.DialContext(testContext(t), "udp", net.JoinHostPort(addrB.String(), "53"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 4096)
	for _, size := range []int{0, 1, 1372, 3000 /* in fragments */} {
		want := bytes.Repeat([]byte("X"), size)
		if _, err := c.Write(bytes.ToLower(want)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("echo of %d bytes: %d bytes, %v", size, n, err)
		}
	}
	server.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadFrom after Close: %v, want net.ErrClosed", err)
	}
	if err := server.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func read(t testing.TB, s *Stack, wait time.Duration) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
	n, err := s.ReadPackets(ctx, bufs, sizes, 10)
	if n != 1 || err != nil {
		return nil
	}
	return bufs[0][10 : 10+sizes[0]]
}

func TestPing(t *testing.T) {
	s := newStack(t, addrA, addrA2)
	for _, own := range []netip.Addr{addrA, addrA2} {
		s.Deliver(icmp6(addrB, own, icmpEchoRequest, 0, []byte("marker")))
		got := read(t, s, 10*time.Second)
		want := icmp6(own, addrB, icmpEchoReply, 0, []byte("marker"))
		if len(got) != len(want) || got[offICMPType] != icmpEchoReply || icmpSum(got) != 0xffff ||
			!bytes.Equal(got[offSource:offICMPType], want[offSource:offICMPType]) || !bytes.HasSuffix(got, []byte("marker")) {
			t.Errorf("reply of %v: %x, want %x", own, got, want)
		}
	}
}

func TestClosedPorts(t *testing.T) {
	a, _ := pair(t, nil, nil)
	_, err := a.DialContext(testContext(t), "tcp", net.JoinHostPort(addrB.String(), "81"))
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("TCP: %v, want ECONNREFUSED", err)
	}
	b := newStack(t, addrB)
	datagram := icmp6(addrA, addrB, 0, 0, nil)
	datagram[offNextHeader] = 17
	copy(datagram[ipv6HeaderLen:], []byte{0, 80, 0, 81, 0, 8, 0, 0})
	udp := header.UDP(datagram[ipv6HeaderLen:])
	udp.SetChecksum(^udp.CalculateChecksum(header.PseudoHeaderChecksum(header.UDPProtocolNumber,
		header.IPv6(datagram).SourceAddress(), header.IPv6(datagram).DestinationAddress(), 8)))
	b.Deliver(datagram)
	got := read(t, b, 10*time.Second)
	if len(got) < 2*ipv6HeaderLen || got[offICMPType] != icmpUnreachable || got[offICMPCode] != codePortUnreach {
		t.Errorf("UDP: answer is %x, want port unreachable", got)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"none":       {},
		"IPv4":       {Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		"mapped":     {Addresses: []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}},
		"loopback":   {Addresses: []netip.Addr{netip.IPv6Loopback()}},
		"link":       {Addresses: []netip.Addr{netip.MustParseAddr("fe80::1")}},
		"zone":       {Addresses: []netip.Addr{addrA.WithZone("x")}},
		"IPv4 route": {Addresses: []netip.Addr{addrA}, Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
	} {
		if _, err := New(o); !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v, want ErrAddress", name, err)
		}
	}
	for _, mtu := range []int{-1, 1279, 65536} {
		if _, err := New(Options{Addresses: []netip.Addr{addrA}, MTU: mtu}); err == nil {
			t.Errorf("MTU %d accepted", mtu)
		}
	}
	s, err := New(Options{Addresses: []netip.Addr{addrA, addrA}, MTU: minMTU, Routes: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Deliver(icmp6(netip.MustParseAddr("fd99::1"), addrA, icmpEchoRequest, 0, nil))
	if read(t, s, 10*time.Second) == nil {
		t.Error("no answer along an explicit route")
	}
}

func TestReadPackets(t *testing.T) {
	s := newStack(t, addrA)
	for i := range 5 {
		s.Deliver(icmp6(addrB, addrA, icmpEchoRequest, 0, make([]byte, i)))
	}
	if _, err := s.ReadPackets(context.Background(), nil, nil, 0); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("no buffers: %v", err)
	}
	bufs, sizes := [][]byte{make([]byte, 100), make([]byte, 100), make([]byte, 100)}, make([]int, 3)
	if n, err := s.ReadPackets(context.Background(), bufs, sizes, 0); n != 3 || err != nil || sizes[2] != 50 {
		t.Errorf("first burst: %d packets, sizes %v, %v", n, sizes, err)
	}
	// The fourth packet (51 bytes) doesn't fit and is dropped, nor does the fifth.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, offset := range []int{51, 101, -1} {
		if n, err := s.ReadPackets(ctx, bufs, sizes, offset); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("too small: %d packets, %v", n, err)
		}
	}
}

func TestClose(t *testing.T) {
	a, b := pair(t, nil, nil)
	l, err := b.ListenTCP(netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Fatal(err)
	}
	udp, err := b.ListenUDP(netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ListenTCP(netip.AddrPortFrom(addrB, 80)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v, want EADDRINUSE", err)
	}
	c, err := a.DialContext(testContext(t), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	blocked := map[string]func() error{
		"Accept":   func() error { _, err := l.Accept(); return err },
		"ReadFrom": func() error { _, _, err := udp.ReadFrom(make([]byte, 1)); return err },
		"Read":     func() error { _, err := served.Read(make([]byte, 1)); return err },
		"ReadPackets": func() error {
			for {
				if _, err := b.ReadPackets(context.Background(), [][]byte{make([]byte, 2000)}, make([]int, 1), 0); err != nil {
					return err
				}
			}
		},
	}
	for name, f := range blocked {
		wg.Go(func() {
			if err := f(); err == nil || name != "Read" && !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after Close: %v", name, err)
			}
		})
	}
	wg.Go(func() { b.Close() })
	b.Close()
	wg.Wait()
	b.Deliver(icmp6(addrA, addrB, icmpEchoRequest, 0, nil))
	if _, err := b.ListenTCP(netip.AddrPortFrom(addrB, 81)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listen after Close: %v", err)
	}
	if _, err := b.DialContext(testContext(t), "tcp", net.JoinHostPort(addrA.String(), "80")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after Close: %v", err)
	}
	c.Close()
}

func TestListenerClose(t *testing.T) {
	s := newStack(t, addrA)
	l, err := s.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := l.Accept(); done <- err }()
	l.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

// What an address sends to itself stays inside of the stack; what it sends to another one of the stack's leaves it.
func TestDialSelf(t *testing.T) {
	s := newStack(t, addrA, addrA2)
	l, err := s.ListenTCP(netip.AddrPortFrom(addrA2, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := netip.AddrPortFrom(addrA2, 80)
	c, err := s.Dial(testContext(t), "tcp6", addrA2, to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	sent := make(chan error, 1)
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	go func() {
		_, err := served.Write(big)
		sent <- errors.Join(err, served.Close())
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes arrived, %v", len(got), err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if n := s.queue.len(); n != 0 {
		t.Errorf("%d packets left the stack", n)
	}

	ctx, cancel := context.WithCancel(testContext(t))
	left := make(chan error, 1)
	go func() {
		_, err := s.Dial(ctx, "tcp6", addrA, to)
		left <- err
	}()
	bufs, sizes := [][]byte{make([]byte, 2048)}, []int{0}
	if n, err := s.ReadPackets(testContext(t), bufs, sizes, 0); err != nil || n != 1 ||
		[16]byte(bufs[0][8:24]) != addrA.As16() || [16]byte(bufs[0][24:40]) != addrA2.As16() {
		t.Errorf("%d packets, the first %x, %v", n, bufs[0][:sizes[0]], err)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestDialCancelled(t *testing.T) {
	s := newStack(t, addrA)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := s.DialContext(ctx, "tcp", net.JoinHostPort(addrB.String(), "80"))
		done <- err
	}()
	read(t, s, 20*time.Second) // the SYN
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("dial: %v, want context.Canceled", err)
	}
}
