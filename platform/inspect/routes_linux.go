// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func links() (out []Link, err error) {
	list, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range list {
		a := l.Attrs()
		link := Link{Name: a.Name, Kind: l.Type(), Up: a.Flags&net.FlagUp != 0}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			continue // it went away in between
		}
		for _, addr := range addrs {
			bits, _ := addr.Mask.Size()
			if p, ok := prefixOf(addr.IP, bits); ok {
				link.Addresses = append(link.Addresses, p)
			}
		}
		out = append(out, link)
	}
	return out, nil
}

// routes asks the kernel where it sends packets for the overlay: the answer counts in policy rules and all tables. The
// tables are read for what could be the reason.
func routes(q Question) (r Routes, err error) {
	names, err := linkNames()
	if err != nil {
		return r, err
	}
	// An address that no agent has, since no node answers below 2^16 but to the one for its services.
	probe := q.Prefix.Addr().As16()
	probe[15] = 1
	if got, err := netlink.RouteGet(probe[:]); err != nil {
		r.Failure = err
	} else if len(got) > 0 {
		r.Chosen = names[got[0].LinkIndex]
	}
	all, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return r, fmt.Errorf("list routes: %w", err)
	}
	for _, route := range all {
		if p, ok := otherRoute(route, q); ok {
			r.Others = append(r.Others, Route{p, names[route.LinkIndex], route.Table})
		}
	}
	rules, err := netlink.RuleList(netlink.FAMILY_V6)
	if err != nil {
		return r, fmt.Errorf("list rules: %w", err)
	}
	for _, rule := range rules {
		if rule.Table != unix.RT_TABLE_LOCAL && rule.Table != unix.RT_TABLE_MAIN && rule.Table != unix.RT_TABLE_DEFAULT {
			r.Rules = append(r.Rules, fmt.Sprintf("%d: table %d", rule.Priority, rule.Table))
		}
	}
	return r, waysOut(&r, names)
}

// otherRoute says whether a route is another interface's, and has to do with the overlay's prefix. The usual default
// route has nothing to do with it: a longer prefix goes first, and rules show in what the kernel chooses.
func otherRoute(route netlink.Route, q Question) (netip.Prefix, bool) {
	if route.Dst == nil || route.Type != unix.RTN_UNICAST {
		return netip.Prefix{}, false
	}
	bits, _ := route.Dst.Mask.Size()
	p, ok := prefixOf(route.Dst.IP, bits)
	if !ok || bits == 0 || !p.Overlaps(q.Prefix) {
		return netip.Prefix{}, false
	}
	own, err := netlink.LinkByName(q.Interface)
	return p, err != nil || own.Attrs().Index != route.LinkIndex
}

// waysOut finds the default routes for IPv4, and whether a strict reverse path filter stands in the way of a second one.
func waysOut(r *Routes, names map[int]string) error {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, route := range list {
		name := names[route.LinkIndex]
		if name == "" || slices.Contains(r.Ways, name) {
			continue
		}
		r.Ways = append(r.Ways, name)
		// The kernel takes the larger of the two (ip-sysctl.rst, rp_filter).
		if max(reverseFilter("all"), reverseFilter(name)) == "1" {
			r.Strict = append(r.Strict, name)
		}
	}
	return nil
}

func reverseFilter(name string) string {
	data, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", name, "rp_filter"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func linkNames() (map[int]string, error) {
	list, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range list {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}
