// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	errAddressInUse = unix.EADDRINUSE

	// bufferSize is asked for sending and receiving each, in bytes: a burst at 10 Gbit/s lasts some milliseconds, and the
	// kernel's default of about 200 KiB is full after a fraction of one. Without CAP_NET_ADMIN the kernel gives less.
	bufferSize = 7 << 20
	// sendPatience bounds how long a full socket is waited for; then the burst is lost, as it would be in a full queue.
	sendPatience = 100_000 // microseconds
)

// socket is a UDP socket of one address family. It is not package net's: that one's poller would be woken for each
// datagram, and takes them one by one. Calls that don't wait are raw: the scheduler would take them for ones that might,
// and look after them every 20 microseconds.
type socket struct {
	fd   int
	v6   bool
	bind uint16
	gso  atomic.Bool // the kernel cuts bursts
	in   receiver    // of the one goroutine that receives

	mu     sync.RWMutex // held to read while fd is in use, to write when it is closed
	closed bool         // guarded by mu
	end    atomic.Bool  // Receive shall return
}

func openSocket(network string, port uint16) (*socket, error) {
	s := &socket{v6: network == "udp6"}
	domain := unix.AF_INET
	if s.v6 {
		domain = unix.AF_INET6
	}
	var err error
	if s.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err = s.listen(port); err != nil {
		return nil, errors.Join(err, unix.Close(s.fd))
	}
	return s, nil
}

func (s *socket) listen(port uint16) error {
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if s.v6 {
		at = &unix.SockaddrInet6{Port: int(port)}
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	s.setOptions()
	if err := unix.Bind(s.fd, at); err != nil {
		return os.NewSyscallError("bind", err)
	}
	bound, err := unix.Getsockname(s.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	switch a := bound.(type) {
	case *unix.SockaddrInet4:
		s.bind = uint16(a.Port)
	case *unix.SockaddrInet6:
		s.bind = uint16(a.Port)
	}
	return nil
}

// setOptions asks for all that makes things better, and does without what the kernel doesn't have.
func (s *socket) setOptions() {
	set := func(level, option, value int) bool { return unix.SetsockoptInt(s.fd, level, option, value) == nil }
	for _, o := range [...][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if !set(unix.SOL_SOCKET, o[0], bufferSize) {
			set(unix.SOL_SOCKET, o[1], bufferSize)
		}
	}
	_ = unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: sendPatience})
	// Nobody shall fragment a datagram, or believe an ICMP error about its size: the size is found by probing.
	if s.v6 {
		set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		set(unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
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

func (s *socket) port() uint16 { return s.bind }

// TryReceive is Receive, but returns 0 instead of waiting.
func (u *Underlay) TryReceive(loop int, bursts []Burst) (int, error) {
	return u.receive(loop, bursts, false)
}

// Descriptors are those of the loops, in their order, for poll(2). They stay what they are until Close.
func (u *Underlay) Descriptors() []int {
	fds := make([]int, len(u.sockets))
	for i, s := range u.sockets {
		fds[i] = s.fd
	}
	u.ring.poll()
	return append(fds, u.ring.bell.fd)
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

const (
	// receiveBatch is how many messages one call of the kernel takes at most.
	receiveBatch = 64
	nameSize     = unix.SizeofSockaddrInet6
	// controlSize has room for packet info, class and segment size of either family.
	controlSize = 128
)

// receiver is what recvmmsg(2) fills.
type receiver struct {
	headers  [receiveBatch]unix.Mmsghdr
	vectors  [receiveBatch]unix.Iovec
	names    [receiveBatch][nameSize]byte
	controls [receiveBatch][controlSize]byte
}

func (r *receiver) prepare(bursts []Burst) {
	for i := range bursts {
		buf := bursts[i].Data[:cap(bursts[i].Data)]
		r.vectors[i].Base = &buf[0]
		r.vectors[i].SetLen(len(buf))
		h := &r.headers[i].Hdr
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
		h.Name, h.Namelen = &r.names[i][0], nameSize
		h.Control = &r.controls[i][0]
		h.SetControllen(controlSize)
	}
}

// receive waits for a message if it shall, and takes those that have come with it.
func (s *socket) receive(bursts []Burst, wait bool) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed || s.end.Load() {
		return 0, net.ErrClosed
	}
	bursts = bursts[:min(len(bursts), receiveBatch)]
	s.in.prepare(bursts)
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.in.headers[0])),
		uintptr(len(bursts)), unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN {
		if !wait {
			return 0, nil
		}
		n, _, errno = unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.in.headers[0])),
			uintptr(len(bursts)), unix.MSG_WAITFORONE, 0, 0)
	}
	if s.end.Load() {
		return 0, net.ErrClosed
	}
	if errno != 0 {
		return 0, errno
	}
	got := 0
	for i := range int(n) {
		if s.in.take(i, &bursts[i], s.v6) {
			bursts[i], bursts[got] = bursts[got], bursts[i] // the buffers stay all different
			got++
		}
	}
	return got, nil
}

// take fills a burst from message i. It reports false for an empty or cut one.
func (r *receiver) take(i int, b *Burst, v6 bool) bool {
	m := &r.headers[i]
	if m.Len == 0 || m.Hdr.Flags&unix.MSG_TRUNC != 0 {
		return false
	}
	b.Data = b.Data[:m.Len]
	b.Path = Path{}
	name := &r.names[i]
	port := binary.BigEndian.Uint16(name[2:])
	if v6 {
		// A link-local address means something together with its interface only.
		addr := netip.AddrFrom16([16]byte(name[8:]))
		if scope := binary.NativeEndian.Uint32(name[24:]); scope != 0 {
			addr = addr.WithZone(zoneName(scope))
		}
		b.Path.Remote = netip.AddrPortFrom(addr, port)
	} else {
		b.Path.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte(name[4:])), port)
	}
	n := min(int(m.Hdr.Controllen), controlSize)
	var c control
	c.parse(r.controls[i][:n], v6)
	b.Path.Local, b.Class, b.Size = c.local, c.class, len(b.Data)
	if c.segment > 0 && c.segment < len(b.Data) {
		b.Size = c.segment
	}
	return true
}

func (s *socket) send(remote netip.AddrPort, local netip.Addr, b *Burst) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return net.ErrClosed
	}
	if len(b.Data) <= b.Size {
		return s.sendOne(remote, local, b.Data, b.Class)
	}
	if s.gso.Load() {
		switch err := s.message(remote, local, b.Data, b.Size, b.Class); {
		case err == nil:
			return nil
		case errors.Is(err, unix.EIO):
			s.gso.Store(false) // a device in the way can't compute checksums, and the kernel won't
		case errors.Is(err, unix.EAGAIN):
			return err
		}
		// Others may be about the size, for which kernels have more than one error, or about the source.
	}
	var first error
	for d := range b.Each {
		if len(d) == b.Size && errors.Is(first, ErrTooBig) {
			continue // as the others of this length were
		}
		if err := s.sendOne(remote, local, d, b.Class); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (s *socket) sendOne(remote netip.AddrPort, local netip.Addr, d []byte, class uint8) error {
	err := s.message(remote, local, d, 0, class)
	if err != nil && local.IsValid() && isStaleSource(err) {
		err = s.message(remote, netip.Addr{}, d, 0, class)
	}
	if errors.Is(err, unix.EMSGSIZE) {
		return ErrTooBig
	}
	return err
}

// sendMany sends bursts from this socket, with one sendmmsg(2) for up to sendBatch of them. What that refuses is sent as if
// it were alone: there is what to do about each error.
func (s *socket) sendMany(bursts []Burst) (done int, err error) {
	for done < len(bursts) && err == nil {
		done += s.messages(bursts[done:])
		if done < len(bursts) {
			b := &bursts[done]
			remote, local := endsOf(&b.Path)
			err = s.send(remote, local, b)
			done++
		}
	}
	return done, err
}

// sendBatch bounds what messages puts on its stack.
const sendBatch = 16

// messages sends what it can of the first bursts without waiting, and returns how many that were.
func (s *socket) messages(bursts []Burst) int {
	// Nothing here may point to these through a pointer: they would be allocated.
	var headers [sendBatch]unix.Mmsghdr
	var vectors [sendBatch]unix.Iovec
	var names [sendBatch][nameSize]byte
	var controls [sendBatch][controlSize]byte
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for n < min(len(bursts), sendBatch) {
		b := &bursts[n]
		segment := 0
		if len(b.Data) > b.Size {
			if segment = b.Size; !s.gso.Load() {
				break
			}
		}
		if len(b.Data) > 0 {
			vectors[n].Base = &b.Data[0]
			vectors[n].SetLen(len(b.Data))
		}
		remote, local := endsOf(&b.Path)
		headers[n].Hdr.Name, headers[n].Hdr.Namelen = &names[n][0], encodeName(&names[n], remote, s.v6)
		headers[n].Hdr.Iov = &vectors[n]
		headers[n].Hdr.SetIovlen(1)
		if used := encodeControl(&controls[n], local, segment, b.Class, s.v6); used > 0 {
			headers[n].Hdr.Control = &controls[n][0]
			headers[n].Hdr.SetControllen(used)
		}
		n++
	}
	if n == 0 || s.closed {
		return 0
	}
	sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&headers[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(sent)
}

// message is one sendmsg(2).
func (s *socket) message(remote netip.AddrPort, local netip.Addr, data []byte, segment int, class uint8) error {
	var name [nameSize]byte
	var oob [controlSize]byte
	var iov unix.Iovec
	h := unix.Msghdr{Name: &name[0], Namelen: encodeName(&name, remote, s.v6), Iov: &iov}
	h.SetIovlen(1)
	if len(data) > 0 {
		iov.Base = &data[0]
		iov.SetLen(len(data))
	}
	if n := encodeControl(&oob, local, segment, class, s.v6); n > 0 {
		h.Control = &oob[0]
		h.SetControllen(n)
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT)
		if errno == unix.EAGAIN {
			_, _, errno = unix.Syscall(unix.SYS_SENDMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&h)), 0)
		}
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// isStaleSource reports whether a datagram could not be sent because the host no longer has the source address, or no
// way out from it.
func isStaleSource(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENETUNREACH) ||
		errors.Is(err, unix.EHOSTUNREACH)
}
