// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// queuePackets and queueBytes are how much may wait to be read before more is dropped: more than the largest TCP window
	// has, alone or in bursts.
	queuePackets = 8192
	queueBytes   = 16 << 20
)

// queue holds what the stack has sent until it is read. Any number of goroutines put, one takes.
type queue struct {
	mu      sync.Mutex
	packets []*stack.PacketBuffer // from head on
	head    int
	bytes   int
	closed  bool

	// ready has a token when the queue has ceased to be empty.
	ready   chan struct{}
	closing <-chan struct{}
	dropped atomic.Uint64
}

func newQueue(closing <-chan struct{}) *queue {
	return &queue{ready: make(chan struct{}, 1), closing: closing}
}

// put keeps a packet, of which its sender must not change anything any more.
func (q *queue) put(pkt *stack.PacketBuffer) bool {
	size := pkt.Size()
	q.mu.Lock()
	n := len(q.packets) - q.head
	if q.closed || n == queuePackets || q.bytes+size > queueBytes {
		q.mu.Unlock()
		q.dropped.Add(1)
		return false
	}
	if q.head > 0 && len(q.packets) == cap(q.packets) {
		q.packets, q.head = q.packets[:copy(q.packets, q.packets[q.head:])], 0
	}
	q.packets = append(q.packets, pkt.IncRef())
	q.bytes += size
	q.mu.Unlock()
	if n == 0 {
		select {
		case q.ready <- struct{}{}:
		default:
		}
	}
	return true
}

// take returns the next packet, whose reference is the caller's, or nil.
func (q *queue) take() *stack.PacketBuffer {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.head == len(q.packets) {
		return nil
	}
	pkt := q.packets[q.head]
	q.packets[q.head] = nil
	q.head++
	q.bytes -= pkt.Size()
	if q.head == len(q.packets) {
		q.packets, q.head = q.packets[:0], 0
	}
	return pkt
}

// wait returns true when there may be something to take, and false once stop or the stack is closed.
func (q *queue) wait(stop <-chan struct{}) bool {
	select {
	case <-q.ready:
		return true
	case <-q.closing:
		return false
	case <-stop:
		return false
	}
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.packets) - q.head
}

// drain forgets what waits.
func (q *queue) drain() {
	for pkt := q.take(); pkt != nil; pkt = q.take() {
		pkt.DecRef()
	}
}

// close forgets what waits, and lets nothing in any more.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.drain()
}

// link is what gVisor takes for a network card: all that is sent goes into the queue.
type link struct {
	*queue
	mtu      uint32
	gso      stack.SupportedGSO
	gsoMax   uint32
	own      func(view *buffer.View, verified bool) // takes what an address sends to itself; nil: that is sent too
	attached atomic.Bool
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// WritePackets implements stack.LinkWriter. What an address sends to itself stays inside. gVisor could see to that, but would
// then keep what one address sends to another one inside too: two agents, between whom the overlay decides. What finds no room is lost, as on any interface: to wait for room would hold
// up whoever delivers packets, on whom the reader may depend.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range list.AsSlice() {
		if l.own != nil && toItself(pkt) {
			view := buffer.NewViewSize(pkt.Size())
			copyPacket(view.AsSlice(), 0, pkt)
			l.own(view, true)
			continue
		}
		if !l.put(pkt) {
			return i, &tcpip.ErrNoBufferSpace{}
		}
	}
	return list.Len(), nil
}

func toItself(pkt *stack.PacketBuffer) bool {
	h := header.IPv6(pkt.NetworkHeader().Slice())
	return len(h) >= header.IPv6MinimumSize && h.SourceAddress() == h.DestinationAddress()
}

func (l *link) SupportedGSO() stack.SupportedGSO { return l.gso }
func (l *link) GSOMaxSize() uint32               { return l.gsoMax }
func (l *link) MTU() uint32                      { return l.mtu }

func (l *link) Attach(d stack.NetworkDispatcher) { l.attached.Store(d != nil) }
func (l *link) IsAttached() bool                 { return l.attached.Load() }

// Capabilities has no offload of checksums. For TCP the GSO options of a packet ask for it anyhow; for the rest it would
// leave fragments without any checksum. What came in is told packet by packet.
func (*link) Capabilities() stack.LinkEndpointCapabilities { return 0 }

func (*link) SetMTU(uint32)                           {}
func (*link) MaxHeaderLength() uint16                 { return 0 }
func (*link) LinkAddress() tcpip.LinkAddress          { return "" }
func (*link) SetLinkAddress(tcpip.LinkAddress)        {}
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*link) AddHeader(*stack.PacketBuffer)           {}
func (*link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*link) SetOnCloseAction(func())                 {}
func (*link) Close()                                  {}
func (*link) Wait()                                   {}
