// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Gateway returns the IPv4 address of the router by which this host reaches the internet; ErrNoGateway if there is none.
func Gateway() (netip.Addr, error) {
	var table *windows.MibIpForwardTable2
	if err := windows.GetIpForwardTable2(windows.AF_INET, &table); err != nil {
		return netip.Addr{}, fmt.Errorf("read the routes: %w", err)
	}
	defer windows.FreeMibTable(unsafe.Pointer(table))
	var best gateway
	for _, r := range table.Rows() {
		if r.DestinationPrefix.PrefixLength != 0 || r.NextHop.Family != windows.AF_INET {
			continue
		}
		via := (*windows.RawSockaddrInet4)(unsafe.Pointer(&r.NextHop))
		best = best.better(gateway{netip.AddrFrom4(via.Addr), int(r.Metric)})
	}
	return best.get()
}
