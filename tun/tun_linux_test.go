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

// readUDP reads until a packet of UDP to port comes; the kernel sends router solicitations and the like in between.
func readUDP(t *testing.T, dev Device, port uint16, buf []byte) ([]byte, Header) {
	t.Helper()
	for {
		var h Header
		p, err := dev.Read(buf, &h, true)
		if err != nil {
			t.Fatal(err)
		}
		if len(p) >= 48 && p[6] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[42:]) == port {
			return p, h
		}
	}
}

func TestKernelSendsBursts(t *testing.T) {
	dev := openConfigured(t)
	if dev.Offloads()&OffloadUDP == 0 {
		t.Skip("this kernel has no UDP segmentation offload for a TUN")
	}
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
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment) })
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, segment*count)
	for i := range payload {
		payload[i] = byte(i / segment)
	}
	if _, err := conn.Write(payload); err != nil {
		t.Fatal(err)
	}
	p, h := readUDP(t, dev, 7000, make([]byte, MaxPacket))
	if h.Kind != KindUDP || h.Segment != segment || !h.Partial || h.Start != 40 || h.Offset != 6 || !bytes.Equal(p[48:], payload) {
		t.Errorf("%d bytes, %+v", len(p), h)
	}
}

func TestKernelReceivesBursts(t *testing.T) {
	dev := openConfigured(t)
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: own.AsSlice(), Port: 7001})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if dev.Offloads()&OffloadUDP == 0 {
		t.Skip("this kernel has no UDP segmentation offload for a TUN")
	}
	const size, count = 11, 32
	pieces := [][]byte{udpPacket(peer, own, 9, 7001, make([]byte, size*count))[:48]}
	for i := range count {
		pieces = append(pieces, fmt.Appendf(nil, "datagram %02d", i))
	}
	// The sum over the pseudo header, whose length is that of the whole.
	binary.BigEndian.PutUint16(pieces[0][46:], 0)
	sum := uint32(8+size*count) + unix.IPPROTO_UDP
	for i := 8; i < 40; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pieces[0][i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(pieces[0][46:], uint16(sum))
	h := Header{Kind: KindUDP, Segment: size, Length: 48, Partial: true, Start: 40, Offset: 6}
	if err := dev.Write(&h, pieces); err != nil {
		t.Fatal(err)
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

func TestTooManyPieces(t *testing.T) {
	dev := openConfigured(t)
	pieces := make([][]byte, MaxPieces+1)
	for i := range pieces {
		pieces[i] = []byte{0x60}
	}
	if err := dev.Write(nil, pieces); err == nil {
		t.Error("accepted")
	}
}

func TestCloseUnblocksKernelRead(t *testing.T) {
	dev := openConfigured(t)
	started, result := make(chan struct{}), make(chan error, 1)
	go func() {
		buf, h := make([]byte, 2048), Header{}
		close(started)
		for {
			if _, err := dev.Read(buf, &h, true); err != nil {
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
	if err := dev.Write(nil, [][]byte{make([]byte, 40)}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if _, err := dev.Read(make([]byte, 100), &Header{}, false); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v", err)
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

func TestReadAndWriteDoNotAllocate(t *testing.T) {
	dev := openConfigured(t)
	conn, err := net.DialUDP("udp6", nil, &net.UDPAddr{IP: peer.AsSlice(), Port: 7002})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf, h, payload := make([]byte, BufferSize), Header{}, make([]byte, 100)
	out := [][]byte{udpPacket(peer, own, 9, 9999, payload)}
	allocs := testing.AllocsPerRun(200, func() {
		if _, err := conn.Write(payload); err != nil {
			t.Fatal(err)
		}
		if _, err := dev.Read(buf, &h, true); err != nil {
			t.Fatal(err)
		}
		if err := dev.Write(nil, out); err != nil {
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

// An interface that another process made is as good as one of our own; its bursts may be limited.
func TestFromFile(t *testing.T) {
	inNamespace(t)
	f, err := OpenFile("pilottest0")
	if err != nil {
		t.Fatal(err)
	}
	dev, err := FromFile(f, "pilottest0", 65520, OffloadChecksum|OffloadTCP)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if dev.Name() != "pilottest0" || dev.MTU() != 65520 || dev.Offloads() != OffloadChecksum|OffloadTCP {
		t.Errorf("%s, MTU %d, offloads %b", dev.Name(), dev.MTU(), dev.Offloads())
	}
	link, err := netlink.LinkByName("pilottest0")
	if err != nil {
		t.Fatal(err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(100, 64, 0, 2), Mask: net.CIDRMask(24, 32)}}
	if err := errors.Join(netlink.LinkSetUp(link), netlink.AddrAdd(link, address)); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp4", "100.64.0.3:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf, h := make([]byte, BufferSize), Header{}
	for {
		p, err := dev.Read(buf, &h, true)
		if err != nil {
			t.Fatal(err)
		}
		if p[0]>>4 == 4 && bytes.HasSuffix(p, []byte("hello")) {
			break
		}
	}
	if _, err := OpenFile("no/name"); !errors.Is(err, ErrName) {
		t.Errorf("a bad name: %v", err)
	}
	if _, err := FromFile(f, "pilottest0", 100, 0); !errors.Is(err, ErrMTU) {
		t.Errorf("a bad MTU: %v", err)
	}
}
