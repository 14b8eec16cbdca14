// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNamespace moves the test's goroutine into a new network namespace on a thread of its own. The thread isn't unlocked,
// so that the runtime ends it, and with it the namespace, when the test is over.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root to make a network namespace")
	}
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
}

var (
	own  = netip.MustParseAddr("fd00:1:2::1")
	peer = netip.MustParseAddr("fd00:1:2::2")
)

func openConfigured(t *testing.T) Device {
	t.Helper()
	inNamespace(t)
	dev, err := Open("pilottest0", 1420)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	link, err := netlink.LinkByName(dev.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got := link.Attrs().MTU; got != 1420 || dev.MTU() != 1420 {
		t.Errorf("MTU is %d, device says %d", got, dev.MTU())
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(48, 128)}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	// The kernel completes the address in the background, and takes no packets for it before.
	for {
		routes, err := netlink.RouteGet(own.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return dev
		}
		runtime.Gosched()
	}
}

// readUDP reads until n packets of UDP to port have come; the kernel sends router solicitations and the like in between.
func readUDP(t *testing.T, dev Device, port uint16, n int) (packets [][]byte, largest int) {
	t.Helper()
	bufs, sizes := buffers(dev.BatchSize(), Headroom+65535)
	for len(packets) < n {
		got, err := dev.Read(bufs, sizes, Headroom)
		if err != nil {
			t.Fatal(err)
		}
		burst := 0
		for i := range got {
			p := bufs[i][Headroom : Headroom+sizes[i]]
			if len(p) >= 48 && p[6] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[42:]) == port {
				packets = append(packets, bytes.Clone(p))
				burst++
			}
		}
		largest = max(largest, burst)
	}
	return packets, largest
}

func TestKernelSendsBursts(t *testing.T) {
	dev := openConfigured(t)
	conn, err := net.DialUDP("udp6", nil, &net.UDPAddr{IP: peer.AsSlice(), Port: 7000})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const segment, count = 1000, 20
	gso := false
	raw.Control(func(fd uintptr) {
		gso = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment) == nil
	})
	if !gso {
		t.Skip("this kernel has no UDP segmentation offload")
	}
	payload := make([]byte, segment*count)
	for i := range payload {
		payload[i] = byte(i / segment)
	}
	if _, err := conn.Write(payload); err != nil {
		t.Fatal(err)
	}
	packets, largest := readUDP(t, dev, 7000, count)
	for i, p := range packets {
		if want := payload[i*segment : (i+1)*segment]; !bytes.Equal(p[48:], want) {
			t.Fatalf("segment %d: %d bytes starting with %x", i, len(p)-48, p[48])
		}
		if sum := checksum(p); sum != 0xffff {
			t.Fatalf("segment %d has a wrong checksum", i)
		}
	}
	if dev.BatchSize() < 2 || largest < 2 {
		t.Errorf("batch size %d, largest burst %d: no offload", dev.BatchSize(), largest)
	}
}

func TestKernelReceivesBursts(t *testing.T) {
	dev := openConfigured(t)
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: own.AsSlice(), Port: 7001})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const count = 32
	bufs := make([][]byte, count)
	for i := range bufs {
		bufs[i] = append(make([]byte, Headroom, Headroom+2048), udpPacket(peer, own, 9, 7001, fmt.Appendf(nil, "datagram %02d", i))...)
	}
	if n, err := dev.Write(bufs, Headroom); n != count || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	for i := range count {
		buf := make([]byte, 2048)
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("datagram %02d", i); string(buf[:n]) != want || from != netip.AddrPortFrom(peer, 9) {
			t.Fatalf("got %q from %v, want %q", buf[:n], from, want)
		}
	}
}

func TestCloseUnblocksKernelRead(t *testing.T) {
	dev := openConfigured(t)
	started, result := make(chan struct{}), make(chan error, 1)
	go func() {
		bufs, sizes := buffers(dev.BatchSize(), 2048)
		close(started)
		for {
			if _, err := dev.Read(bufs, sizes, Headroom); err != nil {
				result <- err
				return
			}
		}
	}()
	<-started
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if _, err := dev.Write([][]byte{make([]byte, Headroom+40)}, Headroom); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if err := dev.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := netlink.LinkByName("pilottest0"); err == nil {
		t.Error("the interface is still there")
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	check := func(what string, err, want error) {
		t.Helper()
		var e *OpenError
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Hint == "" || e.Name != "pilottest0" {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := openQueue(filepath.Join(dir, "absent"), "pilottest0")
	check("no driver", err, ErrNoTUN)
	check("no permission for the driver", explainOpen(devicePath, "pilottest0", unix.EACCES), os.ErrPermission)
	check("no driver behind the node", explainOpen(devicePath, "pilottest0", unix.ENODEV), ErrNoTUN)
	check("no capability", explainCreate("pilottest0", unix.EPERM), os.ErrPermission)
	inNamespace(t)
	dev, err := Open("pilottest0", 1420)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	_, err = Open("pilottest0", 1420)
	check("second open", err, ErrBusy)
}

func TestReadDoesNotAllocate(t *testing.T) {
	dev := openConfigured(t)
	conn, err := net.DialUDP("udp6", nil, &net.UDPAddr{IP: peer.AsSlice(), Port: 7002})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bufs, sizes := buffers(dev.BatchSize(), 2048)
	payload := make([]byte, 100)
	out := [][]byte{append(make([]byte, Headroom), udpPacket(peer, own, 9, 9999, payload)...)}
	allocs := testing.AllocsPerRun(200, func() {
		if _, err := conn.Write(payload); err != nil {
			t.Fatal(err)
		}
		if _, err := dev.Read(bufs, sizes, Headroom); err != nil {
			t.Fatal(err)
		}
		if _, err := dev.Write(out, Headroom); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per packet", allocs)
	}
}

// udpPacket builds IPv6 and UDP headers (RFC 8200, RFC 768).
func udpPacket(src, dst netip.Addr, from, to uint16, payload []byte) []byte {
	p := make([]byte, 48+len(payload))
	p[0] = 6 << 4
	binary.BigEndian.PutUint16(p[4:], uint16(8+len(payload)))
	p[6], p[7] = unix.IPPROTO_UDP, 64
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	binary.BigEndian.PutUint16(p[40:], from)
	binary.BigEndian.PutUint16(p[42:], to)
	binary.BigEndian.PutUint16(p[44:], uint16(8+len(payload)))
	copy(p[48:], payload)
	binary.BigEndian.PutUint16(p[46:], ^checksum(p))
	return p
}

// checksum folds the pseudo header and the UDP datagram (RFC 8200, section 8.1); 0xffff over a correct packet.
func checksum(p []byte) uint16 {
	sum := uint32(len(p)-40) + uint32(p[6])
	for i := 8; i < len(p); i += 2 {
		sum += uint32(p[i]) << 8
		if i+1 < len(p) {
			sum += uint32(p[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// skip leaves a test out where this host can't run it. CI can run all: there it fails.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
