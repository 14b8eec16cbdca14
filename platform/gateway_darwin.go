// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/net/route"
)

// Gateway returns the IPv4 address of the router by which this host reaches the internet; ErrNoGateway if there is none.
func Gateway() (netip.Addr, error) {
	table, err := route.FetchRIB(syscall.AF_INET, route.RIBTypeRoute, 0)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read the routes: %w", err)
	}
	messages, err := route.ParseRIB(route.RIBTypeRoute, table)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read the routes: %w", err)
	}
	var best gateway
	for _, m := range messages {
		r, ok := m.(*route.RouteMessage)
		const flags = syscall.RTF_UP | syscall.RTF_GATEWAY
		// Routes of one interface alone are not the host's.
		if !ok || r.Flags&flags != flags || r.Flags&syscall.RTF_IFSCOPE != 0 || len(r.Addrs) <= syscall.RTAX_GATEWAY {
			continue
		}
		dst, _ := r.Addrs[syscall.RTAX_DST].(*route.Inet4Addr)
		via, _ := r.Addrs[syscall.RTAX_GATEWAY].(*route.Inet4Addr)
		if dst != nil && via != nil && dst.IP == [4]byte{} {
			best = best.better(gateway{netip.AddrFrom4(via.IP), 0})
		}
	}
	return best.get()
}
