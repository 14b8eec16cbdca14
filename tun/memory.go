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

// memoryBatch is the batch of the Linux device.
const memoryBatch = 128

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

// Read implements Device. A packet longer than its buffer is dropped.
func (m *Memory) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	n := 0
	for n == 0 {
		select {
		case <-m.closed:
			return 0, os.ErrClosed
		default:
		}
		select {
		case <-m.closed:
			return 0, os.ErrClosed
		case p := <-m.in:
			n += m.put(bufs[0], sizes, 0, offset, p)
		}
	}
	for n < len(bufs) {
		select {
		case p := <-m.in:
			n += m.put(bufs[n], sizes, n, offset, p)
		default:
			return n, nil
		}
	}
	return n, nil
}

func (m *Memory) put(buf []byte, sizes []int, i, offset int, packet []byte) int {
	if offset+len(packet) > len(buf) {
		m.dropped.Add(1)
		return 0
	}
	sizes[i] = copy(buf[offset:], packet)
	return 1
}

// Write implements Device. It panics when the offset is below Headroom, as a caller's mistake that on another device
// would be an error or worse.
func (m *Memory) Write(bufs [][]byte, offset int) (int, error) {
	if offset < Headroom {
		panic("tun: packets written without headroom")
	}
	for i, b := range bufs {
		select {
		case <-m.closed:
			return i, os.ErrClosed
		default:
		}
		select {
		case m.out <- bytes.Clone(b[offset:]):
		default:
			m.dropped.Add(1)
		}
	}
	return len(bufs), nil
}

// BatchSize implements Device.
func (m *Memory) BatchSize() int { return memoryBatch }

// Name implements Device.
func (m *Memory) Name() string { return m.name }

// MTU implements Device.
func (m *Memory) MTU() int { return m.mtu }

// Close implements Device.
func (m *Memory) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}
