// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"bytes"
	"os"
	"sync"
	"sync/atomic"
)

// memoryQueue is as long as the kernel's own transmit queue of a TUN is by default, in packets.
const memoryQueue = 500

// Memory is a Device without a kernel, for tests: what Inject takes comes out of Read, what Write takes comes out of
// Sent. Both queues are bounded, and like a kernel's they drop what doesn't fit. Safe for concurrent use.
type Memory struct {
	name    string
	mtu     int
	in, out chan []byte
	closed  chan struct{}
	once    sync.Once
	dropped atomic.Uint64
}

var _ Device = (*Memory)(nil)

// NewMemory returns an open device; the MTU, in bytes, isn't enforced.
func NewMemory(name string, mtu int) *Memory {
	return &Memory{
		name: name, mtu: mtu,
		in: make(chan []byte, memoryQueue), out: make(chan []byte, memoryQueue),
		closed: make(chan struct{}),
	}
}

// Inject queues a copy of packet as if a program on this host had sent it. It reports false when the packet was dropped
// because the queue was full or the device closed.
func (m *Memory) Inject(packet []byte) bool {
	select {
	case <-m.closed:
		return false
	default:
	}
	select {
	case m.in <- bytes.Clone(packet):
		return true
	default:
		m.dropped.Add(1)
		return false
	}
}

// Sent delivers what was written, one packet at a time, as the kernel would receive it. It is never closed.
func (m *Memory) Sent() <-chan []byte { return m.out }

// Dropped is the number of packets that either queue had no room for.
func (m *Memory) Dropped() uint64 { return m.dropped.Load() }

// Read implements Device. A packet longer than the buffer is dropped.
func (m *Memory) Read(buf []byte, h *Header, wait bool) ([]byte, error) {
	*h = Header{}
	for {
		select {
		case <-m.closed:
			return nil, os.ErrClosed
		default:
		}
		var p []byte
		select {
		case p = <-m.in:
		default:
			if !wait {
				return nil, nil
			}
			select {
			case <-m.closed:
				return nil, os.ErrClosed
			case p = <-m.in:
			}
		}
		if len(p) <= len(buf) {
			return buf[:copy(buf, p)], nil
		}
		m.dropped.Add(1)
	}
}

// Write implements Device. It panics where h asks for something: that is the caller's mistake.
func (m *Memory) Write(h *Header, pieces [][]byte) error {
	if h != nil && *h != (Header{}) {
		panic("tun: an offload that Memory does not have")
	}
	select {
	case <-m.closed:
		return os.ErrClosed
	default:
	}
	select {
	case m.out <- bytes.Join(pieces, nil):
	default:
		m.dropped.Add(1)
	}
	return nil
}

// Offloads implements Device: none.
func (m *Memory) Offloads() Offloads { return 0 }

// Name implements Device.
func (m *Memory) Name() string { return m.name }

// MTU implements Device.
func (m *Memory) MTU() int { return m.mtu }

// Close implements Device.
func (m *Memory) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}
