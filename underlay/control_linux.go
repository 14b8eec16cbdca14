// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// control is what the kernel tells about a message besides its bytes.
type control struct {
	local   netip.Addr // that it was sent to
	class   uint8
	segment int // length of each datagram but the last; 0: there is one
}

// parse reads control messages (ip(7), ipv6(7), udp(7)). It does not allocate.
func (c *control) parse(oob []byte, v6 bool) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		switch {
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && v6 && len(data) >= unix.SizeofInet6Pktinfo:
			a := netip.AddrFrom16([16]byte(data))
			if !a.IsLinkLocalUnicast() && !a.IsMulticast() { // to send from it would need an interface; the kernel chooses right
				c.local = a
			}
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && !v6 && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: interface, address to answer from, address in the header.
			c.local = netip.AddrFrom4([4]byte(data[4:8]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && v6 && len(data) >= 4:
			c.class = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && !v6 && len(data) >= 1:
			c.class = data[0]
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			c.segment = int(int32(binary.NativeEndian.Uint32(data)))
		}
		oob = rest
	}
}

// encodeControl writes what a message needs and returns its length: the source address, if it is valid, the length of the
// segments to be cut, and the class, where they are not 0.
func encodeControl(b *[controlSize]byte, local netip.Addr, segment int, class uint8, v6 bool) int {
	n := 0
	if local.IsValid() && local.Is6() == v6 {
		if v6 {
			a := local.As16()
			copy(appendControl(b, &n, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo), a[:])
		} else {
			a := local.As4()
			copy(appendControl(b, &n, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)[4:], a[:])
		}
	}
	if segment > 0 {
		binary.NativeEndian.PutUint16(appendControl(b, &n, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2), uint16(segment))
	}
	if class != 0 {
		level, typ := unix.IPPROTO_IP, unix.IP_TOS
		if v6 {
			level, typ = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
		}
		binary.NativeEndian.PutUint32(appendControl(b, &n, level, typ, 4), uint32(class))
	}
	return n
}

// appendControl writes the header of a control message at *n, and returns where its size bytes of data go.
func appendControl(b *[controlSize]byte, n *int, level, typ, size int) []byte {
	at := b[*n:]
	header := unix.CmsgLen(0)
	// struct cmsghdr: the length has the size of a pointer, then level and type.
	word := header - 8
	if word == 8 {
		binary.NativeEndian.PutUint64(at, uint64(unix.CmsgLen(size)))
	} else {
		binary.NativeEndian.PutUint32(at, uint32(unix.CmsgLen(size)))
	}
	binary.NativeEndian.PutUint32(at[word:], uint32(level))
	binary.NativeEndian.PutUint32(at[word+4:], uint32(typ))
	*n += unix.CmsgSpace(size)
	return at[header : header+size]
}

// encodeName writes a struct sockaddr_in or sockaddr_in6, and returns its length.
func encodeName(b *[nameSize]byte, a netip.AddrPort, v6 bool) uint32 {
	binary.BigEndian.PutUint16(b[2:], a.Port())
	if !v6 {
		binary.NativeEndian.PutUint16(b[:], unix.AF_INET)
		ip := a.Addr().As4()
		copy(b[4:], ip[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(b[:], unix.AF_INET6)
	ip := a.Addr().As16()
	copy(b[8:], ip[:])
	if zone := a.Addr().Zone(); zone != "" {
		binary.NativeEndian.PutUint32(b[24:], zoneIndex(zone))
	}
	return unix.SizeofSockaddrInet6
}

// zoneName and zoneIndex convert the interface of a link-local address. These are numbers everywhere here: names may change.
func zoneName(index uint32) string { return strconv.FormatUint(uint64(index), 10) }

func zoneIndex(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	return 0
}
