// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"net/netip"
)

// ErrNoGateway says that this host has no router for IPv4.
var ErrNoGateway = errors.New("no IPv4 gateway")

// gateway is the router of a default route.
type gateway struct {
	addr   netip.Addr
	metric int
}

// better returns the one of the lower metric, of those that are routers.
func (g gateway) better(h gateway) gateway {
	usable := h.addr.Is4() && !h.addr.IsUnspecified() && !h.addr.IsLoopback() && !h.addr.IsMulticast()
	if usable && (!g.addr.IsValid() || h.metric < g.metric) {
		return h
	}
	return g
}

func (g gateway) get() (netip.Addr, error) {
	if !g.addr.IsValid() {
		return netip.Addr{}, ErrNoGateway
	}
	return g.addr, nil
}
