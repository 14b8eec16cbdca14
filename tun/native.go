// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

// native is the library's device with plain packets, one at a time: it never has more at once on these systems.
type native struct {
	dev  wgtun.Device
	name string
	mtu  int
	stop func() // waits for the goroutine that open started

	inBufs [][]byte // of the one goroutine that reads
	sizes  []int

	mu      sync.Mutex // guards the writers' buffer
	out     []byte
	outBufs [][]byte
}

func newNative(dev wgtun.Device, name string, mtu int) *native {
	d := &native{
		dev: dev, name: name, mtu: mtu, stop: drain(dev), inBufs: make([][]byte, 1),
		sizes: make([]int, 1), out: make([]byte, 0, BufferSize), outBufs: make([][]byte, 1),
	}
	return d
}

// Read implements Device. The library can only wait: without it there is nothing more to be had.
func (d *native) Read(buf []byte, h *Header, wait bool) ([]byte, error) {
	*h = Header{}
	if !wait || len(buf) <= headroom {
		return nil, nil
	}
	// headroom is also what the library wants in front of a packet: on macOS its address family.
	d.inBufs[0] = buf
	for {
		n, err := d.dev.Read(d.inBufs, d.sizes, headroom)
		switch {
		case err == nil:
			if n > 0 && d.sizes[0] > 0 {
				return buf[headroom : headroom+d.sizes[0]], nil
			}
		case errors.Is(err, wgtun.ErrTooManySegments):
		case errors.Is(err, os.ErrClosed):
			return nil, os.ErrClosed
		default:
			return nil, fmt.Errorf("read from %s: %w", d.name, err)
		}
	}
}

// Write implements Device. What h could ask for nobody may ask of this device.
func (d *native) Write(h *Header, pieces [][]byte) error {
	if h != nil && *h != (Header{}) {
		return fmt.Errorf("write to %s: %w", d.name, errors.ErrUnsupported)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out = d.out[:headroom]
	for _, p := range pieces {
		d.out = append(d.out, p...)
	}
	d.outBufs[0] = d.out
	_, err := d.dev.Write(d.outBufs, headroom)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return os.ErrClosed
	}
	return fmt.Errorf("write to %s: %w", d.name, err)
}

func (d *native) Offloads() Offloads { return 0 }
func (d *native) Name() string       { return d.name }
func (d *native) MTU() int           { return d.mtu }

func (d *native) Close() error {
	err := d.dev.Close()
	d.stop()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func openFile(name string) (*os.File, error) {
	return nil, &OpenError{Name: name, Err: errors.ErrUnsupported, Hint: "only Linux passes interfaces between processes"}
}

func fromFile(_ *os.File, name string, _ int, _ Offloads) (Device, error) {
	return nil, &OpenError{Name: name, Err: errors.ErrUnsupported, Hint: "only Linux passes interfaces between processes"}
}
