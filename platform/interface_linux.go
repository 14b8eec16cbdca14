// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ConfigureInterface gives an interface its address, MTU and route, and brings it up. Doing it again changes nothing.
// The address is usable at once: duplicates are not looked for, as addresses are derived from keys. It all goes away
// with the device.
func ConfigureInterface(i Interface) error {
	if err := i.validate(); err != nil {
		return err
	}
	link, err := netlink.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", i.Name, err)
	}
	quietInterface(i.Name)
	if err := netlink.LinkSetMTU(link, i.MTU); err != nil {
		return fmt.Errorf("set MTU of %s: %w", i.Name, err)
	}
	// A TUN's queue has room for 500 packets, which a program can send while the daemon waits for a processor once.
	_ = netlink.LinkSetTxQLen(link, queueLength)
	if i.Segments > 0 {
		// Longer bursts would only be less even.
		_ = netlink.LinkSetGSOMaxSegs(link, i.Segments)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", i.Name, err)
	}
	// The route is ours to make, with the prefix of the network; the kernel's own for a /128 would add nothing.
	address := &netlink.Addr{
		IPNet: &net.IPNet{IP: i.Address.AsSlice(), Mask: net.CIDRMask(128, 128)},
		Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE,
	}
	if err := netlink.AddrReplace(link, address); err != nil {
		if errors.Is(err, os.ErrPermission) && ipv6Disabled(i.Name) {
			err = fmt.Errorf("%w: IPv6 is switched off (sysctl net.ipv6.conf.all.disable_ipv6)", err)
		}
		return fmt.Errorf("set address of %s: %w", i.Name, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: i.Route.Addr().AsSlice(), Mask: net.CIDRMask(i.Route.Bits(), 128)},
		Src:       i.Address.AsSlice(),
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route %v into %s: %w", i.Route, i.Name, err)
	}
	return awaitAddress(i)
}

const (
	addressPoll = time.Millisecond
	addressWait = 5 * time.Second
)

// awaitAddress waits until the kernel takes packets for the address. Even without duplicate address detection it enters
// the address into its local table in the background, usually within a millisecond, and drops what comes before.
func awaitAddress(i Interface) error {
	for end := time.Now().Add(addressWait); ; time.Sleep(addressPoll) {
		routes, err := netlink.RouteGet(i.Address.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("address %v of %s did not become usable within %v", i.Address, i.Name, addressWait)
		}
	}
}

// queueLength is how many packets may wait to be read from the interface.
const queueLength = 4000

// quietInterface switches IPv6 on where a host has it off by default, and keeps the kernel from making a link-local
// address, which would send router solicitations and multicast reports into the overlay. Where /proc/sys can't be
// written, the overlay drops such packets anyway.
func quietInterface(name string) {
	for key, value := range map[string]string{"disable_ipv6": "0", "addr_gen_mode": "1", "accept_ra": "0"} {
		_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, key), []byte(value), 0)
	}
}

func ipv6Disabled(name string) bool {
	data, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"))
	return err != nil || len(data) > 0 && data[0] != '0'
}

// InterfaceAddresses returns the addresses of this host at which another one could reach it, in the kernel's order:
// of interfaces that are up, without those whose names begin with exclude (empty: none); neither loopback, link-local nor multicast, and neither
// tentative nor about to expire.
func InterfaceAddresses(exclude string) ([]netip.Addr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	usable := make(map[int]bool)
	for _, l := range links {
		a := l.Attrs()
		usable[a.Index] = a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 && !excluded(a.Name, exclude)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		const unfit = unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
		if ok && usable[a.LinkIndex] && a.Flags&unfit == 0 && candidate(ip) {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}

// OwnAddress tells whether packets to an address stay on this host.
func OwnAddress(a netip.Addr) bool {
	routes, err := netlink.RouteGet(a.Unmap().WithZone("").AsSlice())
	if err != nil {
		return false // no way leads there
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST {
			return true
		}
	}
	return false
}
