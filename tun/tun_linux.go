// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

const devicePath = "/dev/net/tun"

// open makes the interface itself and gives only the descriptor to the library: the library's own way of opening also
// starts two goroutines that watch the link's state, one of them by polling, and nobody here needs their events.
func open(name string, mtu int) (Device, error) {
	fd, err := openQueue(devicePath, name)
	if err != nil {
		return nil, err
	}
	if err := setMTU(name, mtu); err != nil {
		unix.Close(fd)
		return nil, &OpenError{Name: name, Err: fmt.Errorf("set MTU %d: %w", mtu, err), Hint: hintPermission}
	}
	dev, got, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, &OpenError{Name: name, Err: err, Hint: "this kernel lacks TUN offloads (IFF_VNET_HDR)"}
	}
	return &native{dev: dev, name: got, mtu: mtu}, nil
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
