// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is asked for sending and receiving each, in bytes. Without CAP_NET_ADMIN the kernel gives less.
	bufferSize  = 7 << 20
	nameSize    = unix.SizeofSockaddrInet6
	controlSize = 128 // packet info, class and segment size of either family
)

// socket is a UDP socket of one address family that takes and gives bursts. It is not package net's, which takes
// datagrams one by one. One goroutine receives; any may send.
type socket struct {
	fd  int
	v6  bool
	gso atomic.Bool // the kernel cuts bursts
	in  receiver

	mu     sync.RWMutex // held to read while fd is in use, to write when it is closed
	closed bool         // guarded by mu
	end    atomic.Bool
}

func openSocket(at netip.AddrPort) (*socket, error) {
	s := &socket{v6: at.Addr().Is6()}
	domain := unix.AF_INET
	if s.v6 {
		domain = unix.AF_INET6
	}
	var err error
	if s.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err = s.bind(at); err != nil {
		return nil, errors.Join(err, unix.Close(s.fd))
	}
	return s, nil
}

func (s *socket) bind(at netip.AddrPort) error {
	var name unix.Sockaddr
	if s.v6 {
		name = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16(), ZoneId: zoneIndex(at.Addr().Zone())}
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	} else {
		name = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	s.setOptions()
	return os.NewSyscallError("bind", unix.Bind(s.fd, name))
}

// setOptions asks for all that makes things better, and does without what the kernel doesn't have.
func (s *socket) setOptions() {
	set := func(level, option, value int) bool { return unix.SetsockoptInt(s.fd, level, option, value) == nil }
	for _, o := range [...][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if !set(unix.SOL_SOCKET, o[0], bufferSize) {
			set(unix.SOL_SOCKET, o[1], bufferSize)
		}
	}
	// Datagrams are never fragmented: their senders find out how long they may be by what arrives (RFC 8899).
	if s.v6 {
		set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
	} else {
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	}
	set(unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	// The value is the size for messages that name none; 0 asks whether the option is there.
	s.gso.Store(set(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0))
}

func (s *socket) port() uint16 {
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return 0
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

// close ends a waiting receive and closes the socket.
func (s *socket) close() error {
	s.end.Store(true)
	// The error is that there is no connection; who waits is woken all the same.
	_ = unix.Shutdown(s.fd, unix.SHUT_RD)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return unix.Close(s.fd)
}

// receiver is what recvmmsg(2) fills.
type receiver struct {
	headers  [batch]unix.Mmsghdr
	vectors  [batch]unix.Iovec
	names    [batch][nameSize]byte
	controls [batch][controlSize]byte
}

// receive waits for a message and takes those that have come with it. It returns net.ErrClosed once the socket is closed.
func (s *socket) receive(in []message) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed || s.end.Load() {
		return 0, net.ErrClosed
	}
	r := &s.in
	for i := range in {
		r.vectors[i].Base = unsafe.SliceData(in[i].data)
		r.vectors[i].SetLen(messageSize)
		h := &r.headers[i].Hdr
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
		h.Name, h.Namelen = &r.names[i][0], nameSize
		h.Control = &r.controls[i][0]
		h.SetControllen(controlSize)
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&r.headers[0])),
		uintptr(len(in)), unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN {
		n, _, errno = unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&r.headers[0])),
			uintptr(len(in)), unix.MSG_WAITFORONE, 0, 0)
	}
	switch {
	case s.end.Load():
		return 0, net.ErrClosed
	case errno == unix.EINTR:
		return 0, nil
	case errno != 0:
		return 0, errno
	}
	got := 0
	for i := range int(n) {
		if r.read(i, &in[i], s.v6) {
			in[i], in[got] = in[got], in[i] // the buffers stay all different
			got++
		}
	}
	return got, nil
}

// read fills in message i. It reports false for an empty or cut one.
func (r *receiver) read(i int, m *message, v6 bool) bool {
	h := &r.headers[i]
	if h.Len == 0 || h.Hdr.Flags&unix.MSG_TRUNC != 0 {
		return false
	}
	m.data, m.size = m.data[:h.Len], int(h.Len)
	name := &r.names[i]
	port := binary.BigEndian.Uint16(name[2:])
	if v6 {
		addr := netip.AddrFrom16([16]byte(name[8:]))
		if scope := binary.NativeEndian.Uint32(name[24:]); scope != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(scope), 10))
		}
		m.remote = netip.AddrPortFrom(addr, port)
	} else {
		m.remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte(name[4:])), port)
	}
	m.local, m.class = netip.Addr{}, 0
	m.control(r.controls[i][:min(int(h.Hdr.Controllen), controlSize)])
	return true
}

// control reads what the kernel tells about a message (ip(7), ipv6(7), udp(7)). It does not allocate.
func (m *message) control(oob []byte) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		switch {
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			if a := netip.AddrFrom16([16]byte(data)); !a.IsLinkLocalUnicast() && !a.IsMulticast() {
				m.local = a
			}
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			m.local = netip.AddrFrom4([4]byte(data[4:8])) // interface, then the address to answer from
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			m.class = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			m.class = data[0]
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			if n := int(int32(binary.NativeEndian.Uint32(data))); n > 0 && n < len(m.data) {
				m.size = n
			}
		}
		oob = rest
	}
}

// send sends a burst. It does not wait: a full socket loses it, as a full queue would.
func (s *socket) send(b *burst) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return net.ErrClosed
	}
	var first error
	if b.count == 1 || s.gso.Load() {
		err := s.message(b.to, b.parts[:b.n], b.count, b.size, b.class)
		if err != unix.EIO || b.count == 1 { //nolint:errorlint // it is an errno
			return err
		}
		s.gso.Store(false) // a device in the way can't compute checksums, and the kernel won't
	}
	for _, p := range b.parts[:b.n] {
		for len(p) > 0 {
			n := min(len(p), b.size)
			one := [1][]byte{p[:n]}
			if err := s.message(b.to, one[:], 1, n, b.class); err != nil && first == nil {
				first = err
			}
			p = p[n:]
		}
	}
	return first
}

// message is one sendmsg(2).
func (s *socket) message(to *endpoint, parts [][]byte, count, size int, class uint8) error {
	var name [nameSize]byte
	var oob [controlSize]byte
	var iov [maxSegments]unix.Iovec
	for i, p := range parts {
		iov[i].Base = unsafe.SliceData(p)
		iov[i].SetLen(len(p))
	}
	h := unix.Msghdr{Name: &name[0], Namelen: encodeName(&name, to.remote, s.v6), Iov: &iov[0]}
	h.SetIovlen(len(parts))
	if count <= 1 {
		size = 0
	}
	local := to.local
	for {
		h.Control = nil
		n := encodeControl(&oob, local, size, class, s.v6)
		if n > 0 {
			h.Control = &oob[0]
		}
		h.SetControllen(n)
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case errno == 0:
			return nil
		case errno == unix.EINTR:
		case local.IsValid() && (errno == unix.EINVAL || errno == unix.EADDRNOTAVAIL || errno == unix.ENETUNREACH || errno == unix.EHOSTUNREACH):
			local = netip.Addr{} // the host no longer has that address
		default:
			return errno
		}
	}
}

// encodeControl writes what a message needs and returns its length.
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
	h := (*unix.Cmsghdr)(unsafe.Pointer(&at[0]))
	h.Level, h.Type = int32(level), int32(typ)
	h.SetLen(unix.CmsgLen(size))
	clear(at[header:unix.CmsgSpace(size)])
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
	binary.NativeEndian.PutUint32(b[24:], zoneIndex(a.Addr().Zone()))
	return unix.SizeofSockaddrInet6
}

// zoneIndex is the interface of a link-local address, whose number stands for its name here.
func zoneIndex(zone string) uint32 {
	n, err := strconv.ParseUint(zone, 10, 32)
	if err == nil || zone == "" {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	return 0
}
