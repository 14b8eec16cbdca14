// SPDX-License-Identifier: Apache-2.0

// Package tun opens the virtual network interface through which the kernel and the overlay exchange IP packets.
//
// On Linux the device speaks virtio headers with the kernel: one Read may return a burst, which is many segments of one
// large TCP or UDP send under one header, and one Write may hand over a burst. Neither is cut, joined or checksummed
// here: Header says what the other side left to be done. Elsewhere packets are plain, through the library.
// Addresses, routes and DNS are not set here; that is package platform's job.
package tun

import (
	"errors"
	"fmt"
	"os"
)

const (
	// MaxPacket is the length of the longest packet that Read returns, in bytes: an IPv6 header and what its length field
	// can count.
	MaxPacket = 40 + 65535
	// BufferSize is what Read wants of a buffer for any packet: room for what some systems put in front of one, too.
	BufferSize = headroom + MaxPacket
	headroom   = 16

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

// Device is a virtual interface. One goroutine reads; any number may write meanwhile. Neither allocates.
type Device interface {
	// Read puts one packet into buf, which should have BufferSize bytes, fills h and returns the packet, which is a part of
	// buf. Where there is none it waits, or returns nil if wait is false. After Close the error is os.ErrClosed.
	Read(buf []byte, h *Header, wait bool) (packet []byte, err error)
	// Write gives one packet to the kernel, in at most MaxPieces pieces that follow one another. h is nil for a packet that
	// is complete; otherwise it may ask for what Offloads names. The packet is not changed and not kept.
	// After Close the error is os.ErrClosed; others are about this packet.
	Write(h *Header, pieces [][]byte) error
	// Offloads is what Write can leave to the kernel.
	Offloads() Offloads
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

// OpenFile makes a TUN interface in the network namespace of the calling thread, as Open does, but returns only the
// descriptor of its packets: for another process, which gives it to FromFile. Only Linux has that.
func OpenFile(name string) (*os.File, error) {
	if !validName(name) {
		return nil, &OpenError{Name: name, Err: ErrName, Hint: "use up to 15 letters, digits, '-', '_' or '.'"}
	}
	return openFile(name)
}

// FromFile returns the interface whose packets come through a descriptor of OpenFile's, of which it makes one of its own.
// The interface has this name and MTU already, or will get them: only its owner can set them. Bursts are taken and given as
// far as limit allows.
func FromFile(f *os.File, name string, mtu int, limit Offloads) (Device, error) {
	if mtu < MinMTU || mtu > MaxMTU {
		return nil, &OpenError{Name: name, Err: fmt.Errorf("%w: %d", ErrMTU, mtu)}
	}
	return fromFile(f, name, mtu, limit)
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
