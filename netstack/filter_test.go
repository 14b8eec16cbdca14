// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

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
		want := []error{syscall.ENETUNREACH, syscall.EACCES, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH,
			syscall.ECONNREFUSED, syscall.EACCES, syscall.EACCES}[code]
		if !errors.Is(err, want) {
			t.Errorf("code %d: %v, want %v", code, err, want)
		}
		<-answered
	}
}

func TestPlainUnreachableKeepsChecksum(t *testing.T) {
	for code := range 256 {
		for _, body := range []string{"", "abcd", "\xff\xff\xff\xff", "\x00\x00"} {
			for protocol, want := range map[uint8]uint8{nextHeaderTCP: codeNoRoute, nextHeaderUDP: codePortUnreach} {
				p := icmp6(addrB, addrA, icmpUnreachable, uint8(code), []byte(body))
				plainUnreachable(p, protocol)
				if code == codePortUnreach {
					want = codePortUnreach
				}
				if icmpSum(p) != 0xffff || p[offICMPCode] != want {
					t.Fatalf("code %d, body %q: became %d, sum %#x", code, body, p[offICMPCode], icmpSum(p))
				}
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
		if n := s.queue.len(); n != 0 {
			t.Errorf("%s: %d packets sent", name, n)
			s.queue.drain()
		}
	}
	// What is heard at last proves that the stack was listening all the time.
	s.Deliver(icmp6(addrB, addrA, icmpEchoRequest, 0, nil))
	if s.queue.len() != 1 {
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
	if n := s.queue.len(); n != 0 {
		t.Errorf("%d packets sent", n)
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
		s.queue.drain()
	})
}
