// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/pilot-protocol/pilot/tun"
)

var (
	errPieces = errors.New("netstack: a packet in no pieces, or in more than tun.MaxPieces")
	errLength = errors.New("netstack: a packet of an impossible length")
	errBursts = errors.New("netstack: a stack that sends bursts is read through its Device only")
)

// Device is a stack seen from the other end of its wire: the interface that an overlay moves packets for. What the
// stack's programs send comes out of Read, what is written is delivered to them.
//
// TCP over IPv6 travels in bursts under one header if the stack has Segments, in both directions, and its checksums are
// left alone: Read doesn't compute them, and Write doesn't verify those that the header calls partial.
type Device struct {
	core *core
	name string
	// deliver gives the stack a packet that may enter.
	deliver func(pieces [][]byte, size int, verified bool)
	// closed is apart from the stack's end: whoever moves packets ends first, and the sockets after it.
	closed    chan struct{}
	closeOnce sync.Once
}

var _ tun.Device = (*Device)(nil)

// Device returns the interface of the stack, to be used instead of Deliver and ReadPackets. There is to be one.
func (s *Stack) Device(name string) *Device {
	return &Device{core: s.core, name: name, deliver: s.deliver, closed: make(chan struct{})}
}

func (d *Device) open() bool {
	select {
	case <-d.closed:
		return false
	case <-d.core.closing:
		return false
	default:
		return true
	}
}

// Read implements [tun.Device].
func (d *Device) Read(buf []byte, h *tun.Header, wait bool) ([]byte, error) {
	for {
		if !d.open() {
			return nil, os.ErrClosed
		}
		pkt := d.core.queue.take()
		if pkt == nil {
			if !wait {
				*h = tun.Header{}
				return nil, nil
			}
			d.core.queue.wait(d.closed)
			continue
		}
		describe(pkt, h)
		n, ok := copyPacket(buf, 0, pkt)
		pkt.DecRef()
		if ok {
			return buf[:n], nil
		}
		d.core.queue.dropped.Add(1)
	}
}

// describe says what gVisor left to be done to a packet.
func describe(pkt *stack.PacketBuffer, h *tun.Header) {
	*h = tun.Header{}
	gso := &pkt.GSOOptions
	if gso.Type != stack.GSOTCPv6 || !gso.NeedsCsum {
		return
	}
	network := len(pkt.NetworkHeader().Slice())
	h.Partial, h.Start, h.Offset = true, uint16(network), header.TCPChecksumOffset
	if gso.MSS > 0 && pkt.Data().Size() > int(gso.MSS) {
		h.Kind, h.Segment = tun.KindTCP, gso.MSS
		h.Length = uint16(network + len(pkt.TransportHeader().Slice()))
	}
}

// Write implements [tun.Device]. What the stack has no use for is ignored.
func (d *Device) Write(h *tun.Header, pieces [][]byte) error {
	if !d.open() {
		return os.ErrClosed
	}
	if len(pieces) == 0 || len(pieces) > tun.MaxPieces {
		return errPieces
	}
	size := 0
	for _, p := range pieces {
		size += len(p)
	}
	if size > tun.MaxPacket {
		return errLength
	}
	if h != nil && h.Kind == tun.KindUDP {
		return fmt.Errorf("netstack: a burst of UDP: %w", errors.ErrUnsupported)
	}
	d.deliver(pieces, size, h != nil && h.Partial)
	return nil
}

// Offloads implements [tun.Device].
func (d *Device) Offloads() tun.Offloads {
	if !d.core.bursts {
		return 0
	}
	return tun.OffloadChecksum | tun.OffloadTCP
}

// Name implements [tun.Device].
func (d *Device) Name() string { return d.name }

// MTU implements [tun.Device].
func (d *Device) MTU() int { return d.core.mtu }

// Close implements [tun.Device]. It does not close the stack, whose sockets talk to nobody from then on.
func (d *Device) Close() error {
	d.closeOnce.Do(func() { close(d.closed) })
	return nil
}
