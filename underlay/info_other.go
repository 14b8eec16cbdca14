// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package underlay

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// enablePacketInfo fails on Windows, where the kernel's choice of the source stays.
func enablePacketInfo(conn *net.UDPConn, v6 bool) error {
	if v6 {
		return ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst, true)
	}
	return ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst, true)
}

func packetDestination(oob []byte, v6 bool) netip.Addr {
	if len(oob) == 0 {
		return netip.Addr{}
	}
	var dst net.IP
	if v6 {
		var cm ipv6.ControlMessage
		if cm.Parse(oob) != nil {
			return netip.Addr{}
		}
		dst = cm.Dst
	} else {
		var cm ipv4.ControlMessage
		if cm.Parse(oob) != nil {
			return netip.Addr{}
		}
		dst = cm.Dst
	}
	a, ok := netip.AddrFromSlice(dst)
	if a = a.Unmap(); !ok || a.Is6() != v6 || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return netip.Addr{}
	}
	return a
}

func packetSource(local netip.Addr) []byte {
	if local.Is6() {
		return (&ipv6.ControlMessage{Src: local.AsSlice()}).Marshal()
	}
	return (&ipv4.ControlMessage{Src: local.AsSlice()}).Marshal()
}

// isStaleSource reports whether a datagram could not be sent because of its source address. Outside Linux the errors
// are too various to list, and sending once more without a source does no harm.
func isStaleSource(err error) bool { return !errors.Is(err, net.ErrClosed) }
