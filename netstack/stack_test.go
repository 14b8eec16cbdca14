// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
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

// icmp6 builds a checksummed ICMPv6 packet.
func icmp6(src, dst netip.Addr, kind, code uint8, body []byte) []byte {
	p := make([]byte, ipv6HeaderLen+icmpHeaderLen, ipv6HeaderLen+icmpHeaderLen+len(body))
	p[0] = 6 << 4
	p[offNextHeader], p[7] = nextHeaderICMPv6, 255
	s, d := src.As16(), dst.As16()
	copy(p[offSource:], s[:])
	copy(p[offDestination:], d[:])
	p[offICMPType], p[offICMPCode] = kind, code
	p = append(p, body...)
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ipv6HeaderLen))
	binary.BigEndian.PutUint16(p[offICMPChecksum:], ^icmpSum(p))
	return p
}

// icmpSum is the ones' complement sum over an ICMPv6 packet: 0xffff where its
// checksum is right.
func icmpSum(p []byte) uint16 {
	length := binary.BigEndian.AppendUint32(nil, uint32(len(p)-ipv6HeaderLen))
	sum := checksum.Checksum(p[offSource:ipv6HeaderLen], nextHeaderICMPv6)
	return checksum.Checksum(p[ipv6HeaderLen:], checksum.Checksum(length, sum))
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

// A policy's refusal must end a dial at once, whatever ICMPv6 code it has.
func TestUnreachableEndsDial(t *testing.T) {
	for code := uint8(0); code <= 6; code++ {
		a := newStack(t, addrA)
		answered := make(chan struct{})
		ctx := testContext(t)
		go func() {
			defer close(answered)
			if syn := read(t, a, 20*time.Second); syn != nil {
				a.Deliver(icmp6(addrB, addrA, icmpUnreachable, code, syn))
			}
		}()
		_, err := a.DialContext(ctx, "tcp", net.JoinHostPort(addrB.String(), "80"))
		want := syscall.ENETUNREACH
		if code == codePortUnreach {
			want = syscall.ECONNREFUSED
		}
		if !errors.Is(err, want) {
			t.Errorf("code %d: %v, want %v", code, err, want)
		}
		<-answered
	}
}

func TestPlainUnreachableKeepsChecksum(t *testing.T) {
	for code := range 256 {
		for _, body := range []string{"", "abcd", "\xff\xff\xff\xff", "\x00\x00"} {
			p := icmp6(addrB, addrA, icmpUnreachable, uint8(code), []byte(body))
			plainUnreachable(p)
			if icmpSum(p) != 0xffff {
				t.Fatalf("code %d, body %q: checksum is wrong", code, body)
			}
		}
	}
}

func TestForeignPacketsIgnored(t *testing.T) {
	s := newStack(t, addrA)
	ip := netip.MustParseAddr
	link := icmp6(ip("fe80::1"), addrA, 135, 0, make([]byte, 16))
	solicit := icmp6(addrB, addrA, 135, 0, append(make([]byte, 0), addrBytes(addrA)...))
	version4 := icmp6(addrB, addrA, icmpEchoRequest, 0, nil)
	version4[0] = 0x45
	badSum := icmp6(addrB, addrA, icmpEchoRequest, 0, []byte("x"))
	badSum[offICMPChecksum]++
	for name, p := range map[string][]byte{
		"other agent":        icmp6(addrB, addrB, icmpEchoRequest, 0, nil),
		"other service":      icmp6(addrB, addrA2, icmpEchoRequest, 0, nil),
		"all nodes":          icmp6(addrB, ip("ff02::1"), icmpEchoRequest, 0, nil),
		"solicited node":     icmp6(addrB, ip("ff02::1:ff00:a"), icmpEchoRequest, 0, nil),
		"loopback":           icmp6(addrB, ip("::1"), icmpEchoRequest, 0, nil),
		"from loopback":      icmp6(ip("::1"), addrA, icmpEchoRequest, 0, nil),
		"from mapped":        icmp6(ip("::ffff:127.0.0.1"), addrA, icmpEchoRequest, 0, nil),
		"from multicast":     icmp6(ip("ff02::1"), addrA, icmpEchoRequest, 0, nil),
		"from unspecified":   icmp6(ip("::"), addrA, icmpEchoRequest, 0, nil),
		"from link":          link,
		"from outside":       icmp6(ip("2001:db8::1"), addrA, icmpEchoRequest, 0, nil),
		"from other network": icmp6(ip("fd5c:1:3::1"), addrA, icmpEchoRequest, 0, nil),
		"neighbour":          solicit,
		"not IPv6":           version4,
		"empty":              {},
		"header only":        icmp6(addrB, addrA, icmpEchoRequest, 0, nil)[:ipv6HeaderLen],
		"bad checksum":       badSum,
	} {
		s.Deliver(p)
		if n := s.link.NumQueued(); n != 0 {
			t.Errorf("%s: %d packets sent", name, n)
			s.link.Drain()
		}
	}
	// What is heard at last proves that the stack was listening all the time.
	s.Deliver(icmp6(addrB, addrA, icmpEchoRequest, 0, nil))
	if s.link.NumQueued() != 1 {
		t.Error("a proper packet wasn't answered")
	}
}

func addrBytes(a netip.Addr) []byte { b := a.As16(); return b[:] }

func TestAbuse16TargetsOutsideTheOverlay(t *testing.T) {
	s := newStack(t, addrA)
	udp, err := s.ListenUDP(netip.AddrPortFrom(addrA, 5353))
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{
		"127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "[::ffff:169.254.169.254]:80", "169.254.169.254:80",
		"[fd00:ec2::254]:80", "[fe80::1]:80", "[fe80::1%lo]:80", "[ff02::1]:80", "[::]:80", "0.0.0.0:80",
		"[64:ff9b::7f00:1]:80", "[::127.0.0.1]:80", "[2001:db8::1]:80", "10.0.0.1:80", "localhost:80", "planner:80",
		"[fd5c:1:2:3::a%x]:80", "[fd5c:1:2::1]:0", "", "[fd5c:1:2::1]", "/run/pilot/pilot.sock",
	} {
		for _, network := range []string{"tcp", "udp"} {
			if c, err := s.DialContext(testContext(t), network, target); !errors.Is(err, ErrAddress) {
				t.Errorf("dial %s %q: %v, %v, want ErrAddress", network, target, c, err)
			}
		}
		if ap, err := netip.ParseAddrPort(target); err == nil {
			if _, err := udp.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(ap)); !errors.Is(err, ErrAddress) {
				t.Errorf("WriteTo %q: %v, want ErrAddress", target, err)
			}
		}
	}
	if _, err := udp.WriteTo([]byte("x"), &net.TCPAddr{}); !errors.Is(err, ErrAddress) {
		t.Errorf("WriteTo a TCP address: %v", err)
	}
	if _, err := s.DialContext(testContext(t), "unix", "[fd5c:1:2::1]:1"); err == nil {
		t.Error("dial of an unknown network succeeded")
	}
	for _, a := range []netip.Addr{addrB, netip.MustParseAddr("::1"), netip.IPv4Unspecified(), {}} {
		if _, err := s.ListenTCP(netip.AddrPortFrom(a, 80)); !errors.Is(err, ErrAddress) {
			t.Errorf("listen on %v: %v, want ErrAddress", a, err)
		}
		if _, err := s.ListenUDP(netip.AddrPortFrom(a, 80)); !errors.Is(err, ErrAddress) {
			t.Errorf("listen UDP on %v: %v, want ErrAddress", a, err)
		}
	}
	if n := s.link.NumQueued(); n != 0 {
		t.Errorf("%d packets sent", n)
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

// A dial to an own address stays inside of the stack.
func TestDialSelf(t *testing.T) {
	s := newStack(t, addrA, addrA2)
	l, err := s.ListenTCP(netip.AddrPortFrom(addrA2, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := s.DialContext(testContext(t), "tcp6", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := s.link.NumQueued(); n != 0 {
		t.Errorf("%d packets left the stack", n)
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

func FuzzDeliver(f *testing.F) {
	tcp := make([]byte, 60)
	copy(tcp, icmp6(addrB, addrA, 0, 0, nil)[:ipv6HeaderLen])
	tcp[offNextHeader], tcp[5], tcp[52], tcp[53] = 6, 20, 5<<4, 2
	udp := make([]byte, 48)
	copy(udp, tcp[:ipv6HeaderLen])
	udp[offNextHeader], udp[5], udp[45] = 17, 8, 8
	fragment := append(bytes.Clone(udp[:ipv6HeaderLen]), 17, 0, 0, 1, 0, 0, 0, 1, 0, 80, 0, 80, 0, 8, 0, 0)
	fragment[offNextHeader], fragment[5] = 44, 16
	for _, h := range []byte{0, 43, 60, 59, 50, 51, 135, 255} {
		p := append(bytes.Clone(udp[:ipv6HeaderLen]), 58, 0, 1, 4, 0, 0, 0, 0)
		p[offNextHeader], p[5] = h, 8
		f.Add(p)
	}
	for _, p := range [][]byte{
		{}, {0x60}, tcp, udp, fragment, icmp6(addrB, addrA, icmpEchoRequest, 0, []byte("x")),
		icmp6(addrB, addrA, icmpUnreachable, 1, tcp), icmp6(addrB, addrA, 2, 0, tcp), icmp6(addrB, addrA, 3, 0, udp),
	} {
		f.Add(p)
	}
	s := newStack(f, addrA)
	l, err := s.ListenTCP(netip.AddrPortFrom(addrA, 80))
	if err != nil {
		f.Fatal(err)
	}
	u, err := s.ListenUDP(netip.AddrPortFrom(addrA, 80))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close(); u.Close() })
	src, dst := addrB.As16(), addrA.As16()
	f.Fuzz(func(t *testing.T, p []byte) {
		before := bytes.Clone(p)
		s.Deliver(p)
		if !bytes.Equal(before, p) {
			t.Fatal("the caller's bytes were changed")
		}
		// Once more with addresses that get it past the first checks.
		if len(p) >= ipv6HeaderLen {
			p = bytes.Clone(p)
			p[0] = 6<<4 | p[0]&15
			copy(p[offSource:], src[:])
			copy(p[offDestination:], dst[:])
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ipv6HeaderLen))
			if p[offNextHeader] == nextHeaderICMPv6 && len(p) >= ipv6HeaderLen+icmpHeaderLen {
				p[offICMPChecksum], p[offICMPChecksum+1] = 0, 0
				binary.BigEndian.PutUint16(p[offICMPChecksum:], ^icmpSum(p))
			}
			s.Deliver(p)
		}
		s.link.Drain()
	})
}

func BenchmarkTransfer(b *testing.B) {
	x, y := pair(b, nil, nil)
	l, err := y.ListenTCP(netip.AddrPortFrom(addrB, 80))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	c, err := x.DialContext(testContext(b), "tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	chunk := make([]byte, 64<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	<-done
}
