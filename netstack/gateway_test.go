// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/pilot-protocol/pilot/netstack/target"
	"github.com/pilot-protocol/pilot/tun"
)

var (
	box4   = netip.MustParseAddr("10.9.8.7")
	box6   = netip.MustParseAddr("fd5c:1:2:9::7")
	world4 = netip.MustParseAddrPort("8.8.8.8:443")
	world6 = netip.MustParseAddrPort("[2a00::8]:443")
)

func gateway(t testing.TB, o GatewayOptions) *Gateway {
	t.Helper()
	o.Sources = []netip.Prefix{netip.PrefixFrom(box4, 32), netip.PrefixFrom(box6, 128)}
	g, err := NewGateway(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// box is a system whose only way out is a gateway.
type box struct{ *core }

func sandbox(t testing.TB, o GatewayOptions) (*Gateway, box) {
	t.Helper()
	g := gateway(t, o)
	c, err := newCore(0, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	for nic, a := range map[tcpip.NICID]tcpip.ProtocolAddress{
		nic4: {Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(box4.As4()).WithPrefix()},
		nic6: {Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom16(box6.As16()).WithPrefix()},
	} {
		if e := c.stack.AddProtocolAddress(nic, a, stack.AddressProperties{}); e != nil {
			t.Fatal(e)
		}
	}
	c.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: nic6}, {Destination: header.IPv4EmptySubnet, NIC: nic4}})
	inside := &Device{core: c, closed: make(chan struct{}), deliver: func(pieces [][]byte, size int, verified bool) {
		c.inject(gather(pieces, size), verified)
	}}
	outside := g.Device("box0")
	var wg sync.WaitGroup
	wg.Go(func() { carry(inside, outside, nil) })
	wg.Go(func() { carry(outside, inside, nil) })
	t.Cleanup(func() { inside.Close(); outside.Close(); c.Close(); wg.Wait() })
	return g, box{c}
}

func (b box) dial(t testing.TB, network string, to netip.AddrPort) (net.Conn, error) {
	full, protocol := fullAddress(to), ipv6.ProtocolNumber
	if to.Addr().Is4() {
		protocol = ipv4.ProtocolNumber
	}
	if network == "udp" {
		wq := new(waiter.Queue)
		ep, e := b.stack.NewEndpoint(udp.ProtocolNumber, protocol, wq)
		if e == nil {
			e = ep.Connect(full)
		}
		if e != nil {
			return nil, stackError(e)
		}
		return newPacketConn(b.core, ep, wq, nil), nil
	}
	return gonet.DialContextTCP(testContext(t), b.stack, full, protocol)
}

// echo serves a flow by giving back what comes, in capitals.
func echo(c net.Conn) {
	if c == nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(bytes.ToUpper(buf[:n])); err != nil {
			return
		}
	}
}

func TestGatewayFlows(t *testing.T) {
	var mu sync.Mutex
	var asked []Flow
	g, box := sandbox(t, GatewayOptions{Open: func(_ context.Context, f Flow) (func(net.Conn), error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, f)
		return echo, nil
	}})
	for _, to := range []netip.AddrPort{world4, world6} {
		for _, network := range []string{"tcp", "udp"} {
			c, err := box.dial(t, network, to)
			if err != nil {
				t.Fatalf("%s %v: %v", network, to, err)
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			for _, word := range []string{"hello", strings.Repeat("x", 1200)} {
				if _, err := c.Write([]byte(word)); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, len(word))
				if _, err := io.ReadFull(c, buf); err != nil || string(buf) != strings.ToUpper(word) {
					t.Errorf("%s %v: %q, %v", network, to, buf, err)
				}
			}
			mu.Lock()
			f := asked[len(asked)-1]
			mu.Unlock()
			if f.Network != network || f.Destination != to || f.Source.String() != c.LocalAddr().String() {
				t.Errorf("asked about %+v, want %s from %v to %v", f, network, c.LocalAddr(), to)
			}
			c.Close()
		}
	}
	if len(asked) != 4 {
		t.Errorf("asked %d times", len(asked))
	}
	if s := g.Status(); s.Accepted != 4 || s.Refused != 0 || s.Full != 0 {
		t.Errorf("%+v", s)
	}
}

// Large transfers work in both directions, and an end of one direction is passed on.
func TestGatewayTransfer(t *testing.T) {
	const size = 4 << 20
	_, box := sandbox(t, GatewayOptions{Segments: testSegments, Open: func(context.Context, Flow) (func(net.Conn), error) {
		return func(c net.Conn) {
			n, _ := io.Copy(io.Discard, c)
			if n == size {
				_, _ = c.Write(make([]byte, size))
			}
		}, nil
	}})
	for _, to := range []netip.AddrPort{world4, world6} {
		c, err := box.dial(t, "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		c.(*gonet.TCPConn).CloseWrite()
		if n, err := io.Copy(io.Discard, c); n != size || err != nil {
			t.Errorf("%v: %d bytes, %v", to, n, err)
		}
		c.Close()
	}
}

// send builds a packet of the sandbox.
func send(proto uint8, from, to netip.AddrPort, flags byte, data string) []byte {
	var u []byte
	u = binary.BigEndian.AppendUint16(u, from.Port())
	u = binary.BigEndian.AppendUint16(u, to.Port())
	sumAt := 6
	if proto == nextHeaderTCP {
		u = append(u, 0, 0, 0, 9, 0, 0, 0, 0, 5<<4, flags, 255, 255, 0, 0, 0, 0)
		sumAt = 16
	} else {
		u = binary.BigEndian.AppendUint16(u, uint16(8+len(data)))
		u = append(u, 0, 0)
	}
	u = append(u, data...)
	src, dst := from.Addr().AsSlice(), to.Addr().AsSlice()
	sum := checksum.Checksum(append(append(bytes.Clone(src), dst...), 0, proto, byte(len(u)>>8), byte(len(u))), 0)
	binary.BigEndian.PutUint16(u[sumAt:], ^checksum.Checksum(u, sum))
	if from.Addr().Is4() {
		p := header.IPv4(make([]byte, 20, 20+len(u)))
		p[0], p[8], p[9] = 0x45, 64, proto
		p.SetTotalLength(uint16(20 + len(u)))
		copy(p[12:], src)
		copy(p[16:], dst)
		p.SetChecksum(^p.CalculateChecksum())
		return append(p, u...)
	}
	p := append([]byte{0x60, 0, 0, 0, byte(len(u) >> 8), byte(len(u)), proto, 64}, src...)
	return append(append(p, dst...), u...)
}

// recv returns the next packet that the gateway sends.
func recv(t testing.TB, g *Gateway, within time.Duration) []byte {
	t.Helper()
	d := g.Device("")
	timer := time.AfterFunc(within, func() { d.Close() })
	defer timer.Stop()
	var h tun.Header
	p, err := d.Read(make([]byte, tun.BufferSize), &h, true)
	if err != nil {
		return nil
	}
	return p
}

// A refusal is an answer at once, which names the packet it is about so well that a kernel believes it.
func TestGatewayRefusal(t *testing.T) {
	for _, tt := range []struct {
		err    error
		v6, v4 uint8
		reset  bool
	}{
		{errors.New("rules"), codeProhibited, icmpv4Prohibited, false},
		{syscall.EACCES, codeProhibited, icmpv4Prohibited, false},
		{syscall.ENETUNREACH, codeNoRoute, icmpv4Net, false},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, codeAddress, icmpv4Host, false},
		{syscall.ETIMEDOUT, codeAddress, icmpv4Host, false},
		{syscall.ECONNREFUSED, codePortUnreach, icmpv4Port, true},
	} {
		g := gateway(t, GatewayOptions{Open: func(context.Context, Flow) (func(net.Conn), error) { return nil, tt.err }})
		d := g.Device("")
		for i, to := range []netip.AddrPort{world4, world6} {
			from := netip.AddrPortFrom([]netip.Addr{box4, box6}[i], 5000)
			for _, proto := range []uint8{nextHeaderTCP, nextHeaderUDP} {
				p := send(proto, from, to, byte(header.TCPFlagSyn), "")
				if err := d.Write(nil, [][]byte{p}); err != nil {
					t.Fatal(err)
				}
				got := recv(t, g, 10*time.Second)
				if got == nil {
					t.Fatalf("%v: no answer to protocol %d to %v", tt.err, proto, to)
				}
				if proto == nextHeaderTCP && tt.reset {
					n := len(got) - 20
					if h := header.TCP(got[n:]); h.Flags() != header.TCPFlagRst|header.TCPFlagAck || h.AckNumber() != 10 {
						t.Errorf("%v: %x, want a reset", tt.err, got)
					}
					continue
				}
				kind, code, head := uint8(icmpUnreachable), tt.v6, 48
				sum := checksum.Checksum
				if i == 0 {
					kind, code, head = icmpv4Unreachable, tt.v4, 28
					if sum(got[:20], 0) != 0xffff || sum(got[20:], 0) != 0xffff || got[9] != protocolICMPv4 {
						t.Errorf("checksums of %x", got)
					}
				} else if icmpSum(got) != 0xffff {
					t.Errorf("checksum of %x", got)
				}
				if got[head-8] != kind || got[head-7] != code || !bytes.Equal(got[head:], p) {
					t.Errorf("%v: %x\nwant code %d about %x", tt.err, got, code, p)
				}
			}
		}
		if s := g.Status(); s.Refused != 4 || s.Accepted != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// What no rule can allow is refused without asking; what could not be answered rightly isn't answered.
func TestAbuse16Gateway(t *testing.T) {
	g := gateway(t, GatewayOptions{Open: func(_ context.Context, f Flow) (func(net.Conn), error) {
		t.Errorf("asked about %+v", f)
		return nil, syscall.EACCES
	}})
	d := g.Device("")
	for _, to := range []string{
		"127.0.0.1:80", "169.254.169.254:80", "169.254.1.1:80", "240.0.0.1:80", "100.100.100.200:80", "168.63.129.16:80", "8.8.8.8:0",
		"[fd00:ec2::254]:80", "[fe80::a9fe:a9fe]:80", "[64:ff9b::169.254.169.254]:80", "[64:ff9b::127.0.0.1]:80", "[2002:7f00:1::1]:80",
		"[2001:0:102:304:0:0:5601:5601]:80", "[::127.0.0.1]:80", "[fe80::1]:80", "[2001:db8::1]:80",
	} {
		ap := netip.MustParseAddrPort(to)
		from := netip.AddrPortFrom(box6, 5000)
		if ap.Addr().Is4() {
			from = netip.AddrPortFrom(box4, 5000)
		}
		for _, proto := range []uint8{nextHeaderTCP, nextHeaderUDP} {
			if err := d.Write(nil, [][]byte{send(proto, from, ap, byte(header.TCPFlagSyn), "x")}); err != nil {
				t.Fatal(err)
			}
		}
		// gVisor itself drops some of these.
		g.queue.drain()
	}
	for _, silent := range [][]byte{
		send(nextHeaderUDP, netip.AddrPortFrom(box4, 1), netip.MustParseAddrPort("224.0.0.1:1"), 0, "x"),
		send(nextHeaderUDP, netip.AddrPortFrom(box4, 1), netip.MustParseAddrPort("255.255.255.255:1"), 0, "x"),
		send(nextHeaderUDP, netip.AddrPortFrom(box6, 1), netip.MustParseAddrPort("[ff02::1]:1"), 0, "x"),
		send(nextHeaderUDP, netip.AddrPortFrom(box6, 1), netip.MustParseAddrPort("[::]:1"), 0, "x"),
		send(nextHeaderUDP, netip.AddrPortFrom(box6, 1), netip.MustParseAddrPort("[::ffff:8.8.8.8]:1"), 0, "x"),
		send(nextHeaderUDP, netip.AddrPortFrom(box6.Next(), 1), world6, 0, "x"),
		send(nextHeaderUDP, netip.AddrPortFrom(box4.Next(), 1), world4, 0, "x"),
		send(nextHeaderUDP, netip.AddrPortFrom(box4, 1), netip.AddrPortFrom(box4, 1), 0, "x"),
		{}, {0x45}, {0x60}, make([]byte, 100),
	} {
		if err := d.Write(nil, [][]byte{silent}); err != nil {
			t.Fatal(err)
		}
		if n := g.queue.len(); n != 0 {
			t.Errorf("%d answers to %x", n, silent)
			g.queue.drain()
		}
	}
	// The commonest one is refused aloud.
	p := send(nextHeaderTCP, netip.AddrPortFrom(box4, 5000), netip.MustParseAddrPort("169.254.169.254:80"), byte(header.TCPFlagSyn), "")
	if err := d.Write(nil, [][]byte{p}); err != nil {
		t.Fatal(err)
	}
	if got := recv(t, g, 10*time.Second); len(got) < 28 || got[20] != icmpv4Unreachable || got[21] != icmpv4Prohibited {
		t.Errorf("%x, want prohibited", got)
	}
}

// Other headers don't carry anything past the question.
func TestAbuse15GatewayHeaders(t *testing.T) {
	g := gateway(t, GatewayOptions{Open: func(_ context.Context, f Flow) (func(net.Conn), error) {
		t.Errorf("asked about %+v", f)
		return nil, syscall.EACCES
	}})
	d := g.Device("")
	plain := send(nextHeaderUDP, netip.AddrPortFrom(box6, 1), world6, 0, "x")
	behind := func(next uint8, ext ...byte) []byte {
		p := append(append(bytes.Clone(plain[:40]), ext...), plain[40:]...)
		p[6] = next
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		return p
	}
	options := send(nextHeaderUDP, netip.AddrPortFrom(box4, 1), world4, 0, "x")
	options = append(append(bytes.Clone(options[:20]), 131, 3, 4, 0), options[20:]...)
	options[0] = 0x46
	echo4 := send(protocolICMPv4, netip.AddrPortFrom(box4, 8<<8), world4, 0, "xxxxxxxx")
	for name, p := range map[string][]byte{
		"hop by hop":       behind(0, 17, 0, 1, 4, 0, 0, 0, 0),
		"destination":      behind(60, 17, 0, 1, 4, 0, 0, 0, 0),
		"routing":          behind(43, 17, 0, 0, 0, 0, 0, 0, 0),
		"authentication":   behind(51, 17, 0, 0, 0, 0, 0, 0, 0),
		"ESP":              behind(50),
		"unknown":          behind(253),
		"none":             behind(59),
		"fragment of ping": behind(44, 58, 0, 0, 0, 0, 0, 0, 1),
		"fragment in hop":  behind(44, 0, 0, 0, 1, 0, 0, 0, 1),
		"IPv4 options":     options,
		"SCTP":             send(132, netip.AddrPortFrom(box4, 1), world4, 0, "xxxxxxxx"),
		"ping":             echo4,
		"ping6":            icmp6(box6, world6.Addr(), icmpEchoRequest, 0, []byte("x")),
	} {
		if err := d.Write(nil, [][]byte{p}); err != nil {
			t.Fatal(err)
		}
		got := recv(t, g, 10*time.Second)
		v6 := len(got) > 48 && got[0] == 0x60 && got[40] == icmpUnreachable && got[41] == codeProhibited
		v4 := len(got) > 28 && got[0] == 0x45 && got[20] == icmpv4Unreachable && got[21] == icmpv4Prohibited
		if !v6 && !v4 {
			t.Errorf("%s: %x, want prohibited", name, got)
		}
		if n := g.queue.len(); n != 0 {
			t.Errorf("%s: %d more answers", name, n)
			g.queue.drain()
		}
	}
	// Errors are not answered.
	for _, p := range [][]byte{icmp6(box6, world6.Addr(), icmpUnreachable, 0, plain), icmp6(box6, world6.Addr(), 135, 0, plain)} {
		if _ = d.Write(nil, [][]byte{p}); g.queue.len() != 0 {
			t.Errorf("an answer to %x", p)
		}
	}
}

// There are never more flows than allowed, and the place of one that ended is free again.
func TestGatewayLimit(t *testing.T) {
	const limit = 3
	release := make(chan struct{})
	g, box := sandbox(t, GatewayOptions{Flows: limit, Open: func(context.Context, Flow) (func(net.Conn), error) {
		return func(net.Conn) { <-release }, nil
	}})
	var open []net.Conn
	for range limit {
		c, err := box.dial(t, "tcp", world4)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, err := box.dial(t, "tcp", world4); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("one too many: %v", err)
	}
	if s := g.Status(); s.Active != limit || s.Full != 1 {
		t.Errorf("%+v", s)
	}
	close(release)
	for _, c := range open {
		c.Close()
	}
	until(t, func() bool { return g.Status().Active == 0 })
	c, err := box.dial(t, "tcp", world4)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func until(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come to pass")
		}
	}
}

// A flow on which nothing moves ends by itself.
func TestGatewayIdle(t *testing.T) {
	ended := make(chan string, 2)
	g, box := sandbox(t, GatewayOptions{TCPIdle: 50 * time.Millisecond, UDPIdle: 50 * time.Millisecond,
		Open: func(_ context.Context, f Flow) (func(net.Conn), error) {
			return func(c net.Conn) {
				echo(c)
				ended <- f.Network
			}, nil
		}})
	for _, network := range []string{"tcp", "udp"} {
		c, err := box.dial(t, network, world6)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("x"))
		if got := <-ended; got != network {
			t.Errorf("%s ended", got)
		}
	}
	until(t, func() bool { return g.Status().Active == 0 })
}

// The gateway's end is everybody's: those who are asked, those who serve, and a handshake that is under way.
func TestGatewayClose(t *testing.T) {
	asked := make(chan struct{}, 10)
	gone := make(chan bool, 10)
	g := gateway(t, GatewayOptions{Open: func(ctx context.Context, f Flow) (func(net.Conn), error) {
		asked <- struct{}{}
		switch f.Destination.Port() {
		case 1: // still connecting
			<-ctx.Done()
			return nil, ctx.Err()
		case 2: // decides too late
			<-ctx.Done()
		}
		return func(c net.Conn) { gone <- c == nil; echo(c) }, nil
	}})
	d := g.Device("")
	for port := uint16(1); port <= 3; port++ {
		_ = d.Write(nil, [][]byte{send(nextHeaderTCP, netip.AddrPortFrom(box4, 5000+port), netip.AddrPortFrom(world4.Addr(), port), byte(header.TCPFlagSyn), "")})
		<-asked
	}
	_ = d.Write(nil, [][]byte{send(nextHeaderUDP, netip.AddrPortFrom(box4, 5000), world4, 0, "x")})
	<-asked
	if <-gone {
		t.Error("a flow of datagrams had no connection")
	}
	start := time.Now()
	g.Close()
	g.Close()
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	for range 2 {
		if !<-gone {
			t.Error("a connection without a handshake")
		}
	}
	if s := g.Status(); s.Active != 0 {
		t.Errorf("%+v", s)
	}
	if err := d.Write(nil, [][]byte{{0}}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write: %v", err)
	}
}

// What is refused without asking is told all the same.
func TestGatewayTellsRefused(t *testing.T) {
	told := make(chan Flow, 1)
	_, box := sandbox(t, GatewayOptions{
		Open:    func(context.Context, Flow) (func(net.Conn), error) { return echo, nil },
		Refused: func(f Flow) { told <- f },
	})
	to := netip.MustParseAddrPort("169.254.169.254:80")
	if _, err := box.dial(t, "tcp", to); err == nil {
		t.Fatal("a metadata service is reached")
	}
	if f := <-told; f.Network != "tcp" || f.Destination != to {
		t.Errorf("%+v", f)
	}
}

// SetLinger(0) makes the end of a connection a reset, as a far end's was.
func TestGatewayReset(t *testing.T) {
	_, box := sandbox(t, GatewayOptions{Open: func(context.Context, Flow) (func(net.Conn), error) {
		return func(c net.Conn) {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			if err := c.(interface{ SetLinger(int) error }).SetLinger(0); err != nil {
				t.Error(err)
			}
		}, nil
	}})
	c, err := box.dial(t, "tcp", world6)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the end is %v, no reset", err)
	}
}

// A flow of datagrams can be refused late, when the destination says that nobody is there.
func TestGatewayRefusesLate(t *testing.T) {
	_, box := sandbox(t, GatewayOptions{Open: func(context.Context, Flow) (func(net.Conn), error) {
		return func(c net.Conn) {
			if _, err := c.Read(make([]byte, 100)); err != nil {
				t.Error(err)
			}
			c.(interface{ Refuse(error) }).Refuse(syscall.ECONNREFUSED)
		}, nil
	}})
	for _, to := range []netip.AddrPort{world4, world6} {
		c, err := box.dial(t, "udp", to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("anybody there?")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 100)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v: %v", to, err)
		}
		c.Close()
	}
}

func TestGatewayOptions(t *testing.T) {
	open := func(context.Context, Flow) (func(net.Conn), error) { return nil, nil }
	all := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for name, o := range map[string]GatewayOptions{
		"nothing":     {},
		"no sources":  {Open: open},
		"no callback": {Sources: all},
		"mapped":      {Open: open, Sources: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}},
		"flows":       {Open: open, Sources: all, Flows: -1},
		"many flows":  {Open: open, Sources: all, Flows: maxFlows + 1},
		"idle":        {Open: open, Sources: all, UDPIdle: -1},
		"MTU":         {Open: open, Sources: all, MTU: 1},
	} {
		if _, err := NewGateway(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Whatever a sandbox sends: nobody is asked about what no rule can allow, and the caller's bytes stay as they are.
func FuzzAbuse15Gateway(f *testing.F) {
	for _, from := range []netip.Addr{box4, box6} {
		to := world4
		if from.Is6() {
			to = world6
		}
		f.Add(send(nextHeaderTCP, netip.AddrPortFrom(from, 1), to, byte(header.TCPFlagSyn), ""))
		f.Add(send(nextHeaderUDP, netip.AddrPortFrom(from, 1), to, 0, "x"))
		f.Add(send(1, netip.AddrPortFrom(from, 8<<8), to, 0, "xxxx"))
	}
	f.Add(icmp6(box6, world6.Addr(), 2, 0, send(nextHeaderTCP, world6, netip.AddrPortFrom(box6, 1), 16, "")))
	g := gateway(f, GatewayOptions{Flows: 64, UDPIdle: time.Millisecond, Open: func(_ context.Context, f Flow) (func(net.Conn), error) {
		if a := f.Source.Addr(); a != box4 && a != box6 || target.ClassOf(f.Destination.Addr()).Never() || f.Destination.Port() == 0 {
			panic(fmt.Sprintf("asked about %+v", f))
		}
		if f.Destination.Port() == 443 {
			return echo, nil
		}
		return nil, syscall.EACCES
	}})
	d := g.Device("")
	f.Fuzz(func(t *testing.T, p []byte) {
		before := bytes.Clone(p)
		_ = d.Write(nil, [][]byte{p})
		if len(p) > 40 {
			_ = d.Write(&tun.Header{Partial: true}, [][]byte{p[:40], p[40:]})
		}
		if !bytes.Equal(before, p) {
			t.Fatal("the caller's bytes were changed")
		}
		g.queue.drain()
	})
}
