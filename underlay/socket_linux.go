// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const errAddressInUse = unix.EADDRINUSE

// setOptions lets the kernel fragment what a narrow path can't carry whole, instead of refusing to send it: inner
// packets have a fixed size that fits the usual path, and to arrive late is better than not to arrive.
func setOptions(v6 bool, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		if v6 {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
			return
		}
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	})
}

func enablePacketInfo(conn *net.UDPConn, v6 bool) error {
	if v6 {
		return ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst, true)
	}
	return ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst, true)
}

// packetDestination reads the address that a datagram was sent to from its control messages (ip(7), ipv6(7)). It does
// not allocate.
func packetDestination(oob []byte, v6 bool) netip.Addr {
	for len(oob) > 0 {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return netip.Addr{}
		}
		switch {
		case v6 && hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			a := netip.AddrFrom16([16]byte(data))
			if a.IsLinkLocalUnicast() || a.IsMulticast() {
				return netip.Addr{} // to send from it would need an interface; the kernel chooses right
			}
			return a
		case !v6 && hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: interface, address to answer from, address in the header.
			return netip.AddrFrom4([4]byte(data[4:8]))
		}
		oob = rest
	}
	return netip.Addr{}
}

// packetSource returns the control message that sets the source address of a datagram.
func packetSource(local netip.Addr) []byte {
	level, typ, size := unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo
	if local.Is6() {
		level, typ, size = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo
	}
	oob := make([]byte, unix.CmsgSpace(size))
	header := unix.CmsgLen(0)
	// struct cmsghdr: the length has the size of a pointer, then level and type.
	word := header - 8
	if word == 8 {
		binary.NativeEndian.PutUint64(oob, uint64(unix.CmsgLen(size)))
	} else {
		binary.NativeEndian.PutUint32(oob, uint32(unix.CmsgLen(size)))
	}
	binary.NativeEndian.PutUint32(oob[word:], uint32(level))
	binary.NativeEndian.PutUint32(oob[word+4:], uint32(typ))
	if local.Is6() {
		copy(oob[header:], local.AsSlice())
	} else {
		copy(oob[header+4:], local.AsSlice())
	}
	return oob
}

// isStaleSource reports whether a datagram could not be sent because the host no longer has the source address, or no
// way out from it.
func isStaleSource(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENETUNREACH) ||
		errors.Is(err, unix.EHOSTUNREACH)
}
