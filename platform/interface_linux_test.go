// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func inNetworkNamespace(t *testing.T) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
}

func addTUN(t *testing.T, name string) {
	t.Helper()
	link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_DEFAULTS}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
}

// addLink makes one end of a virtual cable, in the place of a network card.
func addLink(t *testing.T, name string, addrs ...string) netlink.Link {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "peer"}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, a); err != nil {
			t.Fatal(err)
		}
	}
	return link
}

func TestConfigureInterface(t *testing.T) {
	inNetworkNamespace(t)
	i := testInterface
	i.Name = "pilottest0"
	if err := ConfigureInterface(i); err == nil {
		t.Error("an absent interface was configured")
	}
	addTUN(t, i.Name)
	for range 2 {
		if err := ConfigureInterface(i); err != nil {
			t.Fatal(err)
		}
	}
	// The address is usable at once.
	l, err := net.ListenPacket("udp6", "["+i.Address.String()+"]:0")
	if err != nil {
		t.Fatalf("bind: %v", err)
	}
	l.Close()
	if got, err := netlink.RouteGet(i.Address.AsSlice()); err != nil || got[0].Type != unix.RTN_LOCAL {
		t.Errorf("the kernel doesn't take packets for the address yet: %v, %v", got, err)
	}
	link, err := netlink.LinkByName(i.Name)
	if err != nil {
		t.Fatal(err)
	}
	if a := link.Attrs(); a.MTU != 1420 || a.Flags&net.FlagUp == 0 {
		t.Errorf("MTU %d, flags %v", a.MTU, a.Flags)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "fd5c:1:2::7/128" || addrs[0].Flags&unix.IFA_F_TENTATIVE != 0 {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V6)
	if err != nil || len(routes) != 1 || routes[0].Dst.String() != "fd5c:1:2::/48" {
		t.Errorf("routes %v, %v", routes, err)
	}
	got, err := netlink.RouteGet(net.ParseIP("fd5c:1:2::99"))
	if err != nil || len(got) != 1 || !got[0].Src.Equal(i.Address.AsSlice()) {
		t.Errorf("source for a peer: %v, %v", got, err)
	}
	// The service address isn't the kernel's to answer.
	if got, err := netlink.RouteGet(net.ParseIP("fd5c:1:2::53")); err != nil || got[0].LinkIndex != link.Attrs().Index {
		t.Errorf("route of the service address: %v, %v", got, err)
	}
}

func TestConfigureWhereIPv6IsOff(t *testing.T) {
	inNetworkNamespace(t)
	for _, which := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0); err != nil {
			t.Skipf("can't switch IPv6 off here: %v", err)
		}
	}
	i := testInterface
	i.Name = "pilottest0"
	addTUN(t, i.Name)
	if err := ConfigureInterface(i); err != nil && !strings.Contains(err.Error(), "IPv6") {
		t.Errorf("the error doesn't name the cause: %v", err)
	}
}

func TestInterfaceAddresses(t *testing.T) {
	inNetworkNamespace(t)
	addLink(t, "eth0", "192.0.2.1/24", "2001:db8::1/64")
	addLink(t, "pilottest0", "fd5c:1:2::7/128")
	down := addLink(t, "eth1", "198.51.100.1/24")
	if err := netlink.LinkSetDown(down); err != nil {
		t.Fatal(err)
	}
	old := addLink(t, "eth2")
	deprecated := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("2001:db8:1::1"), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD, ValidLft: 1000, PreferedLft: 0}
	if err := netlink.AddrAdd(old, deprecated); err != nil {
		t.Fatal(err)
	}
	got, err := InterfaceAddresses("pilottest0")
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	slices.SortFunc(got, netip.Addr.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if all, _ := InterfaceAddresses(""); len(all) != 3 {
		t.Errorf("without exclusion %v", all)
	}
}

func TestWatchNetwork(t *testing.T) {
	inNetworkNamespace(t)
	ctx, cancel := context.WithCancel(context.Background())
	changes, err := WatchNetwork(ctx)
	if err != nil {
		t.Fatal(err)
	}
	addLink(t, "eth0", "192.0.2.1/24")
	if _, ok := <-changes; !ok {
		t.Error("closed without a change")
	}
	cancel()
	for range changes {
	}
}

func TestWatchNetworkTellsOfManyAsOne(t *testing.T) {
	inNetworkNamespace(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	link := addLink(t, "eth0")
	changes, err := WatchNetwork(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const count = 50
	for i := range count {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 51, 100, byte(i+1)), Mask: net.CIDRMask(32, 32)}}
		if err := netlink.AddrAdd(link, a); err != nil {
			t.Fatal(err)
		}
	}
	<-changes
	cancel()
	more := 0
	for range changes {
		more++
	}
	if more >= count/2 {
		t.Errorf("%d more notices of %d changes", more, count)
	}
}

func TestHasAESAgreesWithTheKernel(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("reads the flags of an x86 processor")
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Skip(err)
	}
	flags := strings.Fields(string(info))
	if want := slices.Contains(flags, "aes") && slices.Contains(flags, "pclmulqdq"); HasAES() != want {
		t.Errorf("HasAES is %v, the kernel says %v", HasAES(), want)
	}
}
