// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const devicePath = "/dev/net/tun"

// queue is the descriptor of an interface's packet queue. Package os is not asked to read it: its poller would be woken
// for each packet, and a goroutine that owns its thread would have to be woken from there. The calls that never wait are
// raw: the scheduler would take them for ones that might, and look after them every 20 microseconds.
type queue struct {
	name     string
	mtu      int
	fd, wake int // wake is an eventfd that ends a waiting Read
	offloads Offloads

	mu     sync.RWMutex // held to read while fd is in use, to write when it is closed
	closed bool         // guarded by mu
	once   sync.Once
}

// open makes the interface itself. The library's device would cut each burst and compute the segments' checksums.
func open(name string, mtu int) (Device, error) {
	fd, err := openQueue(devicePath, name)
	if err != nil {
		return nil, err
	}
	if err := setMTU(name, mtu); err != nil {
		unix.Close(fd)
		return nil, &OpenError{Name: name, Err: fmt.Errorf("set MTU %d: %w", mtu, err), Hint: hintPermission}
	}
	return newQueue(fd, name, mtu, OffloadChecksum|OffloadTCP|OffloadUDP)
}

// newQueue takes over a descriptor of an interface's packet queue.
func newQueue(fd int, name string, mtu int, limit Offloads) (Device, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, &OpenError{Name: name, Err: fmt.Errorf("eventfd: %w", err)}
	}
	return &queue{name: name, mtu: mtu, fd: fd, wake: wake, offloads: setOffloads(fd, limit)}, nil
}

func openFile(name string) (*os.File, error) {
	fd, err := openQueue(devicePath, name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), devicePath), nil
}

func fromFile(f *os.File, name string, mtu int, limit Offloads) (Device, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, &OpenError{Name: name, Err: err}
	}
	fd := -1
	var dup error
	if err := raw.Control(func(number uintptr) { fd, dup = unix.FcntlInt(number, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		dup = err
	}
	if dup != nil {
		return nil, &OpenError{Name: name, Err: fmt.Errorf("take over the descriptor: %w", dup)}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, &OpenError{Name: name, Err: fmt.Errorf("take over the descriptor: %w", err)}
	}
	return newQueue(fd, name, mtu, limit)
}

// setOffloads tells the kernel which bursts we take, and finds out which it takes: as much as it can and limit allows. UDP
// needs Linux 6.2.
// The kernel refuses flags for IPv6 without those for IPv4, which never comes through here.
func setOffloads(fd int, limit Offloads) Offloads {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	for _, try := range []struct {
		flags int
		can   Offloads
	}{
		{tcp | unix.TUN_F_TSO_ECN | unix.TUN_F_USO4 | unix.TUN_F_USO6, OffloadChecksum | OffloadTCP | OffloadUDP},
		{tcp | unix.TUN_F_TSO_ECN, OffloadChecksum | OffloadTCP},
		{tcp, OffloadChecksum | OffloadTCP},
		{unix.TUN_F_CSUM, OffloadChecksum},
	} {
		if try.can&^limit == 0 && unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, try.flags) == nil {
			return try.can
		}
	}
	return 0
}

// Read implements Device.
func (q *queue) Read(buf []byte, h *Header, wait bool) ([]byte, error) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if len(buf) <= headroom {
		return nil, nil
	}
	// The header lies just in front of the packet: readv(2), with a place of its own for it, takes a tenth longer.
	buf = buf[headroom-virtioSize:]
	for !q.closed {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(q.fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
		switch errno {
		case 0:
			if h.decode((*[virtioSize]byte)(buf), int(n)-virtioSize) {
				return buf[virtioSize:n], nil
			}
		case unix.EAGAIN:
			if !wait {
				return nil, nil
			}
			if !q.poll() {
				return nil, os.ErrClosed
			}
		case unix.EINTR:
		default:
			return nil, fmt.Errorf("read from %s: %w", q.name, errno)
		}
	}
	return nil, os.ErrClosed
}

// poll waits for a packet. It reports false when the device is being closed.
func (q *queue) poll() bool {
	fds := [2]unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLIN}, {Fd: int32(q.wake), Events: unix.POLLIN}}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), 0, 0, 0, 0)
		if errno != unix.EINTR {
			return fds[1].Revents == 0
		}
	}
}

// Write implements Device.
func (q *queue) Write(h *Header, pieces [][]byte) error {
	var virtio [virtioSize]byte
	if h != nil {
		h.encode(&virtio)
	}
	var iov [1 + MaxPieces]unix.Iovec
	iov[0].Base = &virtio[0]
	iov[0].SetLen(len(virtio))
	n := 1
	for _, p := range pieces {
		if len(p) == 0 {
			continue
		}
		if n == len(iov) {
			return fmt.Errorf("write to %s: %w", q.name, errPieces)
		}
		iov[n].Base = &p[0]
		iov[n].SetLen(len(p))
		n++
	}
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.closed {
		return os.ErrClosed
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(n))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// Offloads implements Device.
func (q *queue) Offloads() Offloads { return q.offloads }

// Name implements Device.
func (q *queue) Name() string { return q.name }

// MTU implements Device.
func (q *queue) MTU() int { return q.mtu }

// Close implements Device.
func (q *queue) Close() (err error) {
	q.once.Do(func() {
		_, err = unix.Write(q.wake, []byte{0, 0, 0, 0, 0, 0, 0, 1})
		q.mu.Lock()
		defer q.mu.Unlock()
		q.closed = true
		err = errors.Join(err, unix.Close(q.fd), unix.Close(q.wake))
	})
	return err
}

const hintPermission = "run as root, or give the program CAP_NET_ADMIN: sudo setcap cap_net_admin+ep pilot"

// openQueue returns a descriptor of the interface's packet queue. The kernel removes the interface with the descriptor.
func openQueue(path, name string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, explainOpen(path, name, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return -1, &OpenError{Name: name, Err: ErrName}
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return -1, explainCreate(name, err)
	}
	return fd, nil
}

// explainOpen gives the errors of opening the TUN driver their type and a way out.
func explainOpen(path, name string, err error) error {
	e := &OpenError{Name: name, Err: fmt.Errorf("open %s: %w", path, err)}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOTDIR):
		e.Err = fmt.Errorf("%w: %s: %w", ErrNoTUN, path, err)
		e.Hint = "load the driver with `modprobe tun`; in a container, start it with --device /dev/net/tun --cap-add NET_ADMIN"
	case errors.Is(err, os.ErrPermission):
		e.Hint = hintPermission + "; in a container, start it with --device /dev/net/tun --cap-add NET_ADMIN"
	}
	return e
}

// explainCreate does the same for the errors of making the interface.
func explainCreate(name string, err error) error {
	e := &OpenError{Name: name, Err: err}
	switch {
	case errors.Is(err, unix.EBUSY):
		e.Err = fmt.Errorf("%w: %w", ErrBusy, err)
		e.Hint = "another process holds it; `ip -d link show dev " + name + "` shows its kind"
	case errors.Is(err, os.ErrPermission):
		e.Hint = hintPermission
	case errors.Is(err, unix.EINVAL):
		e.Hint = "an interface of that name may exist that is not a TUN; choose another name"
	}
	return e
}

func setMTU(name string, mtu int) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		// A kernel without IPv6 can't run the overlay, but the cause should be named by whoever sets the address.
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint32(uint32(mtu))
	return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr)
}
