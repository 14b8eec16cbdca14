// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"net"
	"net/netip"
)

// names asks for this agent's own name: as a program would, and the overlay's DNS itself.
func names(ctx context.Context, q Question) (n Names) {
	ask := func(r *net.Resolver) ([]netip.Addr, error) {
		ctx, cancel := context.WithTimeout(ctx, nameLimit)
		defer cancel()
		addrs, err := r.LookupNetIP(ctx, "ip", q.Name+".") // absolute: no search domain is tried
		for i := range addrs {
			addrs[i] = addrs[i].Unmap().WithZone("")
		}
		return addrs, err
	}
	n.System, n.SystemErr = ask(net.DefaultResolver)
	server := netip.AddrPortFrom(q.Server, 53).String()
	n.Direct, n.DirectErr = ask(&net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}})
	return n
}
