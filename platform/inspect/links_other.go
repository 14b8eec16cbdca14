// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package inspect

import (
	"fmt"
	"net"
	"net/netip"
)

func links() (out []Link, err error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range list {
		link := Link{Name: i.Name, Up: i.Flags&net.FlagUp != 0}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away in between
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				link.Addresses = append(link.Addresses, p)
			}
		}
		out = append(out, link)
	}
	return out, nil
}
