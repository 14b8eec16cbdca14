// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const fenceLimit = 10 * time.Second

// fencedHost is a host with an agent's interface and two cables, one of which has a name as interfaces of the overlay's do.
type fencedHost struct {
	Interface
	listener net.PacketConn // at the agent's address
}

func newFencedHost(t *testing.T) *fencedHost {
	t.Helper()
	inNetworkNamespace(t)
	h := &fencedHost{Interface: testInterface}
	h.Name = "pilottest0"
	addTUN(t, h.Name)
	for _, name := range []string{"eth0", "pilottest1"} {
		addLink(t, name)
		peer, err := netlink.LinkByName(name + "peer")
		if err == nil {
			err = netlink.LinkSetUp(peer)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = ConfigureInterface(h.Interface)
	}
	if err != nil {
		t.Fatal(err)
	}
	if h.listener, err = net.ListenPacket("udp6", netip.AddrPortFrom(h.Address, 7).String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.listener.Close() })
	return h
}

// throw sends a datagram for the agent by the other end of a cable.
func (h *fencedHost) throw(t *testing.T, cable string, from netip.Addr) {
	t.Helper()
	inside, err := net.InterfaceByName(cable)
	if err != nil {
		t.Fatal(err)
	}
	outside, err := net.InterfaceByName(cable + "peer")
	if err != nil {
		t.Fatal(err)
	}
	udp := []byte{0x30, 0x39, 0, 7, 0, 14, 0, 0, 't', 'h', 'r', 'o', 'w', 'n'}
	packet := append([]byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}, from.AsSlice()...)
	packet = append(packet, h.Address.AsSlice()...)
	sum := uint32(len(udp)) + unix.IPPROTO_UDP
	for b := slices.Concat(packet[8:], udp); len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(udp[6:], ^uint16(sum))
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	to := &unix.SockaddrLinklayer{Protocol: 0xdd86, Ifindex: outside.Index, Halen: 6} // IPv6, in network byte order
	copy(to.Addr[:], inside.HardwareAddr)
	if err := unix.Sendto(s, append(packet, udp...), 0, to); err != nil {
		t.Fatal(err)
	}
}

// arrives tells whether a datagram by a cable gets to a program. One that this host sends to itself, which always gets there,
// comes next: what is there when that was read is all.
func (h *fencedHost) arrives(t *testing.T, cable string, from netip.Addr, fence *Fence) (arrived bool) {
	t.Helper()
	before, err := fence.Dropped()
	if err != nil {
		t.Fatal(err)
	}
	h.throw(t, cable, from)
	buffer := make([]byte, 100)
	for end := time.Now().Add(fenceLimit); ; {
		now, err := fence.Dropped()
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			break
		}
		h.listener.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, _, err := h.listener.ReadFrom(buffer); err == nil && string(buffer[:n]) == "thrown" {
			arrived = true
			break
		}
		if time.Now().After(end) {
			t.Fatal("neither dropped nor delivered")
		}
	}
	c, err := net.Dial("udp6", h.listener.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("own")); err != nil {
		t.Fatal(err)
	}
	h.listener.SetReadDeadline(time.Now().Add(fenceLimit))
	if n, _, err := h.listener.ReadFrom(buffer); err != nil || string(buffer[:n]) != "own" {
		t.Fatalf("this host's own datagram: %q, %v", buffer[:n], err)
	}
	return arrived
}

var (
	peerOfTest = netip.MustParseAddr("fd5c:1:2::99")
	neighbour  = netip.MustParseAddr("2001:db8::99")
)

// With a fence nothing for an agent comes in by another interface, and without one all of it does.
func TestAbuse14Fence(t *testing.T) {
	h := newFencedHost(t)
	fence := NewFence(h.Interface)
	for _, flags := range []uint32{nftOwner, 0} {
		for _, from := range []netip.Addr{peerOfTest, neighbour} {
			if !h.arrives(t, "eth0", from, fence) {
				t.Fatalf("from %v: this test throws nothing that arrives where there is no fence", from)
			}
		}
		if err := fence.putLocked(flags); err != nil {
			t.Fatal(err)
		}
		if fence.owned != (flags == nftOwner) {
			t.Errorf("flags %d: owned %v", flags, fence.owned)
		}
		for _, from := range []netip.Addr{peerOfTest, neighbour} {
			if h.arrives(t, "eth0", from, fence) {
				t.Errorf("flags %d: what %v sent past the tunnel arrived", flags, from)
			}
			if !h.arrives(t, "pilottest1", from, fence) {
				t.Errorf("flags %d: what %v sent by another interface of an overlay was dropped", flags, from)
			}
		}
		if n, err := fence.Dropped(); n != 2 || err != nil {
			t.Errorf("flags %d: %d dropped, %v", flags, n, err)
		}
		if again, err := fence.Refresh(); again || err != nil {
			t.Errorf("flags %d: %v, %v of a fence that is there", flags, again, err)
		}
		for range 2 {
			if err := fence.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if tables := nftTables(t); len(tables) != 0 {
		t.Errorf("left behind: %q", tables)
	}
}

// nftTables lists the tables of IPv6.
func nftTables(t *testing.T) (names []string) {
	t.Helper()
	s, err := openNFT()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.send(s.message(nil, nftSubsystem|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, unix.NFPROTO_IPV6, 0, nil)); err != nil {
		t.Fatal(err)
	}
	if err := s.receive(func(h syscall.NlMsghdr, body []byte) bool {
		if h.Type == nftSubsystem|unix.NFT_MSG_NEWTABLE {
			names = append(names, nftString(body[nftHeader:], unix.NFTA_TABLE_NAME))
		}
		return h.Type == unix.NLMSG_DONE
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// flush does what a firewall that loads all its rules anew does first.
func flush(t *testing.T) error {
	t.Helper()
	s, err := openNFT()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	return s.commit(nftMessage{kind: unix.NFT_MSG_DELTABLE})
}

func TestFenceIsKept(t *testing.T) {
	inNetworkNamespace(t)
	i := testInterface
	i.Name = "pilottest0"
	first, second := NewFence(i), NewFence(i)
	if _, err := first.Refresh(); err != nil || !first.owned {
		t.Fatalf("%v; the kernel keeps it: %v", err, first.owned)
	}
	defer first.Close()
	if err := flush(t); err != nil {
		t.Fatal(err)
	}
	if tables := nftTables(t); !slices.Equal(tables, []string{i.Name}) {
		t.Errorf("after a flush there is %q", tables)
	}
	// Nobody else gets a table of that name, and says so.
	if _, err := second.Refresh(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a second fence of the same name: %v", err)
	}
	if n, err := second.Dropped(); n != 0 || err != nil {
		t.Errorf("no fence dropped %d packets, %v", n, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if again, err := second.Refresh(); again || err != nil {
		t.Errorf("when the name is free: %v, %v", again, err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

// Where the kernel doesn't keep it, Refresh does, and what was left by a process that was killed is taken over.
func TestFenceIsPutBack(t *testing.T) {
	inNetworkNamespace(t)
	i := testInterface
	i.Name = "pilottest0"
	left, fence := NewFence(i), NewFence(i)
	if err := left.putLocked(0); err != nil {
		t.Fatal(err)
	}
	if err := left.leaveLocked(); err != nil {
		t.Fatal(err)
	}
	if err := fence.putLocked(0); err != nil {
		t.Fatal(err)
	}
	if err := flush(t); err != nil {
		t.Fatal(err)
	}
	if tables := nftTables(t); len(tables) != 0 {
		t.Errorf("after a flush there is %q", tables)
	}
	if again, err := fence.Refresh(); !again || err != nil {
		t.Errorf("%v, %v of a fence that was taken away", again, err)
	}
	if tables := nftTables(t); !slices.Equal(tables, []string{i.Name}) {
		t.Errorf("put back: %q", tables)
	}
	if err := fence.Close(); err != nil {
		t.Fatal(err)
	}
}

// Without the capability the error says so.
func TestFenceIsRefused(t *testing.T) {
	inNetworkNamespace(t)
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&h, &none[0]); err != nil { // of this thread, which ends with the test
		t.Fatal(err)
	}
	i := testInterface
	i.Name = "pilottest0"
	f := NewFence(i)
	if _, err := f.Refresh(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("close what never was: %v", err)
	}
}

// FuzzNetlinkMessages takes messages and attributes apart.
func FuzzNetlinkMessages(f *testing.F) {
	s := &nftSocket{}
	i := testInterface
	i.Name = "pilottest0"
	for _, m := range NewFence(i).build {
		f.Add(s.message(nil, m.kind, m.flags, unix.NFPROTO_IPV6, 0, m.attributes))
	}
	counted := nftNested(unix.NFTA_RULE_EXPRESSIONS, nftExpression("counter", nftAttribute(unix.NFTA_COUNTER_PACKETS, []byte{0, 0, 0, 0, 0, 0, 0, 3})))
	f.Add(s.message(nil, 0, 0, 0, 0, counted))
	if n := nftCounted(counted); n != 3 {
		f.Errorf("counted %d", n)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		messages, err := syscall.ParseNetlinkMessage(b)
		if err != nil {
			return
		}
		for _, m := range messages {
			nftCounted(m.Data)
			nftCounted(m.Data[min(nftHeader, len(m.Data)):])
		}
	})
}
