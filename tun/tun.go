// SPDX-License-Identifier: Apache-2.0

// Package tun opens the virtual network interface through which the kernel and the overlay exchange IP packets.
//
// Packets travel in bursts. On Linux the device speaks virtio headers with the kernel: one Read may return many
// segments of one large TCP or UDP send, and one Write may hand many segments to the kernel as one packet.
// Addresses, routes and DNS are not set here; that is package platform's job.
package tun

import (
	"errors"
	"fmt"
	"os"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

const (
	// Headroom is the number of free bytes that a packet given to Device.Write must have in front of it, so that the
	// device can put its own header there (10 bytes of virtio header on Linux, 4 of address family on macOS).
	Headroom = 16

	// MinMTU and MaxMTU bound what Open accepts, in bytes. An IPv6 link carries at least 1280 (RFC 8200, section 5).
	MinMTU = 1280
	MaxMTU = 65535
)

var (
	// ErrNoTUN says that this system has no TUN driver at hand: no /dev/net/tun, or no wintun.dll.
	ErrNoTUN = errors.New("no TUN device available")
	// ErrBusy says that an interface of that name is in use by another process.
	ErrBusy = errors.New("interface is in use")
	// ErrName says that the name can't be an interface's.
	ErrName = errors.New("invalid interface name")
	// ErrMTU says that the MTU is not within MinMTU and MaxMTU.
	ErrMTU = errors.New("MTU out of range")
)

// Device is a virtual interface. One goroutine may read while another one writes; several readers, or several
// writers, wait for one another.
type Device interface {
	// Read waits for packets and fills bufs[i][offset:offset+sizes[i]] for every i < n. It returns what is there, at
	// most len(bufs) packets, and never waits for a burst to fill up. sizes must be as long as bufs, and each buffer
	// must hold offset+MTU bytes. After Close the error is os.ErrClosed.
	Read(bufs [][]byte, sizes []int, offset int) (n int, err error)
	// Write gives bufs[i][offset:] to the kernel, one IP packet each, and returns how many packets were accepted.
	// offset must be at least Headroom. The bytes in front of and inside the packets may be changed: neighbours of one
	// flow are merged. After Close the error is os.ErrClosed.
	Write(bufs [][]byte, offset int) (n int, err error)
	// BatchSize is the length of bufs that suits this device best, at least 1.
	BatchSize() int
	// Name is the interface's name as the system knows it; it may differ from the one wished for.
	Name() string
	// MTU is in bytes, without any link header.
	MTU() int
	// Close removes the interface and makes a waiting Read return. More calls do nothing.
	Close() error
}

// OpenError says why an interface could not be opened and what a person can do about it. It unwraps to the cause, for
// instance ErrNoTUN, ErrBusy or os.ErrPermission.
type OpenError struct {
	Name string
	Err  error
	Hint string
}

func (e *OpenError) Error() string { return fmt.Sprintf("open interface %s: %v", e.Name, e.Err) }
func (e *OpenError) Unwrap() error { return e.Err }

// Open makes a TUN interface with this name and MTU in bytes. On macOS, where the kernel insists on utun0, utun1…, any
// other name means the next free one. The interface lives until Close, or until the process ends.
// Errors are of type *OpenError.
func Open(name string, mtu int) (Device, error) {
	if mtu < MinMTU || mtu > MaxMTU {
		return nil, &OpenError{Name: name, Err: fmt.Errorf("%w: %d", ErrMTU, mtu), Hint: "use an MTU from 1280 to 65535; 1420 suits most networks"}
	}
	if !validName(name) {
		return nil, &OpenError{Name: name, Err: ErrName, Hint: "use up to 15 letters, digits, '-', '_' or '.'"}
	}
	return open(name, mtu)
}

// validName accepts what every system takes: Linux allows 15 bytes, and refuses "." and "..", '/' and spaces. A '%'
// would make Linux choose a number.
func validName(name string) bool {
	if name == "" || len(name) > 15 || name == "." || name == ".." {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// native wraps the library's device: counts packets instead of bytes, and hides conditions that don't end the device.
type native struct {
	dev  wgtun.Device
	name string
	mtu  int
	// stop releases what open started besides the device; it may be nil.
	stop func()
}

func (d *native) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, err := d.dev.Read(bufs, sizes, offset)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, wgtun.ErrTooManySegments):
			// The segments that didn't fit are lost, as they would be in a full queue; the rest is good.
			if n > 0 {
				return n, nil
			}
		case errors.Is(err, os.ErrClosed):
			return 0, os.ErrClosed
		default:
			return 0, fmt.Errorf("read from %s: %w", d.name, err)
		}
	}
}

func (d *native) Write(bufs [][]byte, offset int) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	if _, err := d.dev.Write(bufs, offset); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return 0, os.ErrClosed
		}
		return 0, fmt.Errorf("write to %s: %w", d.name, err)
	}
	return len(bufs), nil
}

func (d *native) BatchSize() int { return max(1, d.dev.BatchSize()) }
func (d *native) Name() string   { return d.name }
func (d *native) MTU() int       { return d.mtu }

func (d *native) Close() error {
	err := d.dev.Close()
	if d.stop != nil {
		d.stop()
	}
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
