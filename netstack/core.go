// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	// DefaultMTU is the overlay's MTU in bytes, used where Options.MTU is 0.
	DefaultMTU = 1420
	minMTU     = 1280 // RFC 8200, section 5
	maxMTU     = 65535
	maxPacket  = header.IPv6MinimumSize + 65535
	// maxSegments keeps a burst within what the length field of its header can count.
	maxSegments = 64

	nic6, nic4 = 1, 2

	// A socket's buffers, in bytes. TCP's grow from the default to the maximum as the connection needs it: 8 MiB keep
	// 600 Mbit/s going over a round trip of 100 ms.
	minBuffer     = 4 << 10
	defaultBuffer = 512 << 10
	maxReceive    = 8 << 20
	maxSend       = 6 << 20
	// udpBuffer holds a burst of datagrams while the program is not looking.
	udpBuffer = 1 << 20

	// timeWait is how long a closed connection's addresses rest. Packets don't live for long on the overlay, and a proxy
	// makes many connections: with the usual minute it would run out of ports.
	timeWait = 15 * time.Second
)

// core is gVisor's stack, with a queue for what it sends.
type core struct {
	stack     *stack.Stack
	queue     *queue
	mtu       int
	bursts    bool
	v6, v4    stack.NetworkEndpoint // v4 may be nil
	closing   chan struct{}
	closeOnce sync.Once

	// flows are the goroutines that serve what others connect to; none begins after closing is closed.
	flowMu sync.Mutex
	// inUse are the TCP connections that nobody has closed yet.
	inUseMu sync.Mutex
	inUse   map[tcpip.Endpoint]struct{} // guarded by inUseMu
	flows   sync.WaitGroup
}

// newCore makes a stack without any address. segments is how long bursts may get, 0: there are none. With IPv4 it is
// nobody in particular, and no packet stays inside of it.
func newCore(mtu, segments int, withV4 bool) (*core, error) {
	if mtu == 0 {
		mtu = DefaultMTU
	}
	if mtu < minMTU || mtu > maxMTU {
		return nil, fmt.Errorf("netstack: MTU %d is not in [%d, %d]", mtu, minMTU, maxMTU)
	}
	if segments < 0 || segments > maxSegments {
		return nil, fmt.Errorf("netstack: %d segments are not in [0, %d]", segments, maxSegments)
	}
	c := &core{mtu: mtu, bursts: segments > 0, closing: make(chan struct{}), inUse: make(map[tcpip.Endpoint]struct{})}
	c.queue = newQueue(c.closing)
	networks := []stack.NetworkProtocolFactory{ipv6.NewProtocol}
	transports := []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol6}
	if withV4 {
		networks, transports = append(networks, ipv4.NewProtocol), append(transports, icmp.NewProtocol4)
	}
	c.stack = stack.New(stack.Options{NetworkProtocols: networks, TransportProtocols: transports})
	err := c.tune()
	if err == nil {
		l := &link{queue: c.queue, mtu: uint32(mtu)}
		if c.bursts {
			l.gso, l.gsoMax = stack.HostGSOSupported, gsoMax(mtu, segments)
		}
		if !withV4 {
			l.own = c.inject
		}
		c.v6, err = c.addLink(nic6, l, ipv6.ProtocolNumber)
	}
	if err == nil && withV4 {
		// Its bursts are cut by gVisor: the device has a header for those of IPv6 only.
		l := &link{queue: c.queue, mtu: uint32(mtu)}
		if c.bursts {
			l.gso, l.gsoMax = stack.GVisorGSOSupported, stack.GVisorGSOMaxSize
		}
		c.v4, err = c.addLink(nic4, l, ipv4.ProtocolNumber)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// gsoMax is what makes gVisor send bursts of at most so many full segments. It counts on the options that its segments
// leave room for: timestamps and what is left for selective acknowledgements (RFC 2018, RFC 7323). Of the maximum it
// keeps header.TCPTotalHeaderMaximumSize bytes and one more for headers.
func gsoMax(mtu, segments int) uint32 {
	payload := mtu - header.IPv6MinimumSize - header.TCPMinimumSize - header.TCPOptionsMaximumSize
	return uint32(min(segments*payload, maxPacket-header.IPv6MinimumSize-header.TCPHeaderMaximumSize) + header.TCPTotalHeaderMaximumSize + 1)
}

func (c *core) addLink(id tcpip.NICID, l *link, protocol tcpip.NetworkProtocolNumber) (stack.NetworkEndpoint, error) {
	if err := c.stack.CreateNIC(id, l); err != nil {
		return nil, fmt.Errorf("netstack: create interface: %w", stackError(err))
	}
	endpoint, err := c.stack.GetNetworkEndpoint(id, protocol)
	if err != nil {
		return nil, fmt.Errorf("netstack: create interface: %w", stackError(err))
	}
	return endpoint, nil
}

// tune sets what is the same for all sockets.
func (c *core) tune() error {
	sack := tcpip.TCPSACKEnabled(true)
	cubic := tcpip.CongestionControlOption("cubic")
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	noDelay := tcpip.TCPDelayEnabled(false)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxReceive}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxSend}
	rest := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	// Loss is recovered by SACK (RFC 6675) alone: with gVisor's RACK (RFC 8985)
	// a transfer over a lossy path can stop for good, see TestTCPTransferWithLoss.
	rack := tcpip.TCPRecovery(0)
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &cubic, &moderate, &noDelay, &rcv, &snd, &rest, &rack} {
		if err := c.stack.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("netstack: set TCP option %T: %w", opt, stackError(err))
		}
	}
	for _, opt := range []any{
		tcpip.ReceiveBufferSizeOption{Min: minBuffer, Default: udpBuffer, Max: udpBuffer},
		tcpip.SendBufferSizeOption{Min: minBuffer, Default: udpBuffer, Max: udpBuffer},
	} {
		if err := c.stack.SetOption(opt); err != nil {
			return fmt.Errorf("netstack: set option %T: %w", opt, stackError(err))
		}
	}
	return nil
}

func (c *core) open() error {
	select {
	case <-c.closing:
		return fmt.Errorf("netstack: %w", net.ErrClosed)
	default:
		return nil
	}
}

// Sockets is how many there are, those of closed connections among them whose addresses still rest.
func (c *core) Sockets() int { return len(c.stack.RegisteredEndpoints()) }

// settlePoll is how often Settle looks.
const settlePoll = 2 * time.Millisecond

// Settle waits until the other ends have all that was written to connections before they were closed, or ctx ends.
func (c *core) Settle(ctx context.Context) {
	for c.sending() {
		select {
		case <-ctx.Done():
			return
		case <-c.closing:
			return
		case <-time.After(settlePoll):
		}
	}
}

// sending reports whether a connection that was closed here has more to be sent, or to be acknowledged.
func (c *core) sending() bool {
	c.inUseMu.Lock()
	defer c.inUseMu.Unlock()
	for _, e := range c.stack.RegisteredEndpoints() {
		ep, ok := e.(*tcp.Endpoint)
		if !ok {
			continue
		}
		switch ep.EndpointState() {
		case tcp.StateEstablished, tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
			if _, used := c.inUse[ep]; !used {
				return true
			}
		}
	}
	return false
}

// use notes that a connection is somebody's; disuse that it was closed.
func (c *core) use(ep tcpip.Endpoint) {
	c.inUseMu.Lock()
	defer c.inUseMu.Unlock()
	c.inUse[ep] = struct{}{}
}

func (c *core) disuse(ep tcpip.Endpoint) {
	c.inUseMu.Lock()
	defer c.inUseMu.Unlock()
	delete(c.inUse, ep)
}

// begin counts one more flow, unless the stack is being closed.
func (c *core) begin() bool {
	c.flowMu.Lock()
	defer c.flowMu.Unlock()
	if c.open() != nil {
		return false
	}
	c.flows.Add(1)
	return true
}

// Close ends every connection and listener, and returns when all goroutines of
// the stack have ended. It may be called more than once; the error is always nil.
func (c *core) Close() error {
	c.closeOnce.Do(func() {
		c.flowMu.Lock()
		close(c.closing)
		c.flowMu.Unlock()
		c.abort()
		c.queue.close()
		c.stack.Destroy()
	})
	return nil
}

// abort resets connections until no flow is left. A handshake that is just beginning shows itself a moment later.
func (c *core) abort() {
	const again = 20 * time.Millisecond
	ended := make(chan struct{})
	go func() {
		c.flows.Wait()
		close(ended)
	}()
	for {
		for _, e := range c.stack.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-ended:
			return
		case <-time.After(again):
		}
	}
}

// gather copies a packet that comes in pieces.
func gather(pieces [][]byte, size int) *buffer.View {
	view := buffer.NewViewSize(size)
	bytes := view.AsSlice()
	for _, p := range pieces {
		bytes = bytes[copy(bytes, p):]
	}
	return view
}

// inject gives the stack a packet, which becomes its own. verified: its checksum is not to be looked at.
func (c *core) inject(view *buffer.View, verified bool) {
	network, protocol := c.v6, ipv6.ProtocolNumber
	if view.AsSlice()[0]>>4 == 4 {
		network, protocol = c.v4, ipv4.ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	pkt.NetworkProtocolNumber = protocol
	pkt.RXChecksumValidated = verified
	network.HandlePacket(pkt)
	pkt.DecRef()
}

// copyPacket copies a packet piece by piece, without joining it first.
func copyPacket(buf []byte, offset int, pkt *stack.PacketBuffer) (int, bool) {
	size := pkt.Size()
	if offset < 0 || offset > len(buf) || size > len(buf)-offset {
		return 0, false
	}
	out := buf[offset:]
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		piece := v.AsSlice()
		if skip >= len(piece) {
			skip -= len(piece)
			continue
		}
		out = out[copy(out, piece[skip:]):]
		skip = 0
	}
	return size, true
}
