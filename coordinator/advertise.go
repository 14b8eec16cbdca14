// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"net"
	"net/netip"
	"slices"
)

// MaxAdvertised is how many host:port of coordinators fit into an invite.
const MaxAdvertised = 8

// Advertised returns host:port by which agents reach a coordinator that listens on an address: that address itself, or,
// where it stands for all of the host's, up to MaxAdvertised of those, IPv4 first as it is the shorter one to read. A
// listen address that is none gives nothing.
func Advertised(listen string, own []netip.Addr) []string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil
	}
	if a, err := netip.ParseAddr(host); host != "" && (err != nil || !a.IsUnspecified()) {
		return []string{listen}
	}
	own = slices.Clone(own)
	slices.SortStableFunc(own, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	var list []string
	for _, a := range own[:min(len(own), MaxAdvertised)] {
		list = append(list, net.JoinHostPort(a.WithZone("").String(), port))
	}
	return list
}
