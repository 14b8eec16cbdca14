// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Gateway returns the IPv4 address of the router by which this host reaches the internet; ErrNoGateway if there is none.
func Gateway() (netip.Addr, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list routes: %w", err)
	}
	var best gateway
	for _, r := range routes {
		next := []*netlink.NexthopInfo{{Gw: r.Gw}}
		if len(r.MultiPath) > 0 {
			next = r.MultiPath
		}
		if a, ok := netip.AddrFromSlice(next[0].Gw); ok {
			best = best.better(gateway{a.Unmap(), r.Priority})
		}
	}
	return best.get()
}
