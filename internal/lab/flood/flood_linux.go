// SPDX-License-Identifier: Apache-2.0

package flood

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize of the receiver's socket, in bytes, as QUIC servers ask for.
	bufferSize = 4 << 20
	// tick is how long a sender with a rate sleeps when nothing is due, as iperf3 does.
	tick = time.Millisecond
	// patience is how long the receiver is asked for its count, each time after pause.
	patience = 5 * time.Second
	pause    = 50 * time.Millisecond
)

// messages is a batch for sendmmsg(2) or recvmmsg(2).
type messages struct {
	headers []unix.Mmsghdr
	vectors []unix.Iovec
	data    [][]byte
}

func newMessages(n, size int) *messages {
	m := &messages{headers: make([]unix.Mmsghdr, n), vectors: make([]unix.Iovec, n), data: make([][]byte, n)}
	all := make([]byte, n*size)
	for i := range m.headers {
		m.data[i] = all[i*size : (i+1)*size : (i+1)*size]
		m.vectors[i].Base = &m.data[i][0]
		m.vectors[i].SetLen(size)
		m.headers[i].Hdr.Iov = &m.vectors[i]
		m.headers[i].Hdr.SetIovlen(1)
	}
	return m
}

// call makes one call of the kernel, again where a signal interrupts it. The thread does nothing else meanwhile.
func call(trap uintptr, fd int, at unsafe.Pointer, n int, flags uintptr) (int, error) {
	for {
		done, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(at), uintptr(n), flags, 0, 0)
		switch errno {
		case 0:
			return int(done), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Send floods a receiver, and asks it what arrived.
func Send(ctx context.Context, o Options) (Result, error) {
	var r Result
	if o.Size < MinSize || o.Size > MaxSize {
		return r, errSize
	}
	fd, err := connect(o.To)
	if err != nil {
		return r, err
	}
	defer unix.Close(fd)
	flood := uint64(time.Now().UnixNano())
	if err := send(ctx, fd, &o, flood, &r); err != nil {
		return r, err
	}
	return r, ask(ctx, fd, flood, &r)
}

func connect(to netip.AddrPort) (int, error) {
	fd, err := socket(to)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

func socket(at netip.AddrPort) (int, error) {
	domain := unix.AF_INET6
	if at.Addr().Is4() {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func send(ctx context.Context, fd int, o *Options, flood uint64, r *Result) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	batch := batchOf(o)
	m := newMessages(batch, o.Size)
	for _, d := range m.data {
		binary.BigEndian.PutUint64(d, flood)
	}
	if o.Segment {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, o.Size); err != nil {
			return os.NewSyscallError("setsockopt UDP_SEGMENT", err)
		}
	}
	start := time.Now()
	for ctx.Err() == nil {
		elapsed := time.Since(start)
		if elapsed >= o.For || r.Sent == maxSent {
			r.Seconds = elapsed.Seconds()
			return nil
		}
		due := o.due(elapsed)
		// A tick's datagrams leave in full batches, and what remains.
		for r.Sent < due && time.Since(start) < o.For {
			n := int(min(due-r.Sent, uint64(batch)))
			for i, d := range m.data[:n] {
				binary.BigEndian.PutUint64(d[8:], r.Sent+uint64(i))
			}
			if err := m.send(fd, n, o.Size, o.Segment); err != nil {
				return err
			}
			r.Sent += uint64(n)
		}
		if o.Rate != 0 {
			_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(tick)}, nil)
		}
	}
	return ctx.Err()
}

// send sends the first n datagrams, which lie behind one another.
func (m *messages) send(fd, n, size int, segment bool) error {
	if segment {
		whole := unsafe.Slice(&m.data[0][0], n*size)
		if _, err := unix.Write(fd, whole); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return os.NewSyscallError("write", err)
		}
		return nil
	}
	for sent := 0; sent < n; {
		done, err := call(unix.SYS_SENDMMSG, fd, unsafe.Pointer(&m.headers[sent]), n-sent, 0)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			done = 1 // one that is lost
		case err != nil:
			return os.NewSyscallError("sendmmsg", err)
		}
		sent += done
	}
	return nil
}

// ask is answered after all that arrived was counted, since it comes behind.
func ask(ctx context.Context, fd int, flood uint64, r *Result) error {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0)
	if err := setPatience(fd); err != nil {
		return err
	}
	for asked := time.Now(); time.Since(asked) < patience && ctx.Err() == nil; {
		if askOnce(fd, flood, r) {
			return nil
		}
	}
	return errors.Join(errSilent, ctx.Err())
}

func setPatience(fd int) error {
	wait := unix.NsecToTimeval(pause.Nanoseconds())
	return os.NewSyscallError("setsockopt SO_RCVTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
}

// askOnce waits for the answer, and not for that of another question.
func askOnce(fd int, flood uint64, r *Result) bool {
	var question [header]byte
	var answer [MaxSize]byte
	binary.BigEndian.PutUint64(question[:], flood)
	binary.BigEndian.PutUint64(question[8:], end)
	_, _ = unix.Write(fd, question[:])
	for {
		n, err := unix.Read(fd, answer[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false
		case r.parseAnswer(answer[:n], flood):
			return true
		}
	}
}

// Ask asks a receiver n times, one after the other, and measures how long each answer takes.
func Ask(ctx context.Context, to netip.AddrPort, n int) (Times, error) {
	fd, err := connect(to)
	if err != nil {
		return Times{}, err
	}
	defer unix.Close(fd)
	if err := setPatience(fd); err != nil {
		return Times{}, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var r Result
	took := make([]time.Duration, 0, n)
	for first, i := uint64(time.Now().UnixNano()), 0; i < n && ctx.Err() == nil; i++ {
		start := time.Now()
		if askOnce(fd, first+uint64(i), &r) {
			took = append(took, time.Since(start))
		}
	}
	if len(took) == 0 {
		return Times{}, errors.Join(errSilent, ctx.Err())
	}
	return timesOf(n, took), ctx.Err()
}

// Receiver counts what arrives at an address.
type Receiver struct{ fd int }

// Listen opens the socket. With join the kernel hands over datagrams in a row as one (UDP_GRO).
func Listen(at netip.AddrPort, join bool) (*Receiver, error) {
	fd, err := socket(at)
	if err != nil {
		return nil, err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferSize) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize)
	}
	if join {
		err = os.NewSyscallError("setsockopt UDP_GRO", unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sockaddr(at)))
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Receiver{fd: fd}, nil
}

// Addr is where the receiver listens.
func (v *Receiver) Addr() (netip.AddrPort, error) {
	at, err := unix.Getsockname(v.fd)
	switch a := at.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), nil
	}
	return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
}

// Serve counts floods, one at a time, and answers about them, until ctx ends. It is for one goroutine, and closes the socket.
func (v *Receiver) Serve(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop := context.AfterFunc(ctx, func() { _ = unix.Shutdown(v.fd, unix.SHUT_RD) })
	defer func() { stop(); unix.Close(v.fd) }()
	const batch, size, control = 64, 65535, 64
	m := newMessages(batch, size)
	var names [batch]unix.RawSockaddrInet6
	var controls [batch][control]byte
	var a arrivals
	for {
		for i := range m.headers {
			h := &m.headers[i].Hdr
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&names[i])), unix.SizeofSockaddrInet6
			h.Control = &controls[i][0]
			h.SetControllen(control)
		}
		n, err := call(unix.SYS_RECVMMSG, v.fd, unsafe.Pointer(&m.headers[0]), batch, unix.MSG_WAITFORONE)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return os.NewSyscallError("recvmmsg", err)
		}
		for i := range n {
			h := &m.headers[i]
			d := m.data[i][:h.Len]
			for segment := segmentOf(controls[i][:h.Hdr.Controllen], len(d)); len(d) > 0; {
				one := d[:min(segment, len(d))]
				d = d[len(one):]
				if answer := a.take(one); answer != nil {
					v.answer(answer, &h.Hdr)
				}
			}
		}
	}
}

// segmentOf is how long each datagram but the last of a message is.
func segmentOf(control []byte, length int) int {
	for len(control) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			return max(1, int(binary.NativeEndian.Uint32(data)))
		}
		control = rest
	}
	return max(1, length)
}

// answer sends to where a message came from. One that is lost will be asked for again.
func (v *Receiver) answer(d []byte, from *unix.Msghdr) {
	iov := unix.Iovec{Base: &d[0]}
	iov.SetLen(len(d))
	h := unix.Msghdr{Name: from.Name, Namelen: from.Namelen, Iov: &iov}
	h.SetIovlen(1)
	_, _, _ = unix.Syscall(unix.SYS_SENDMSG, uintptr(v.fd), uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT)
}
