// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/pilot-protocol/pilot/netstack/target"
)

// Limits of a Gateway.
const (
	DefaultFlows   = 4096
	DefaultTCPIdle = 2 * time.Hour   // RFC 5382, REQ-5, asks for 2 hours and 4 minutes of a NAT, which can't ask the ends
	DefaultUDPIdle = 2 * time.Minute // RFC 4787, REQ-5
	// maxFlows keeps what a sandbox can make the gateway hold within some hundred megabytes.
	maxFlows = 1 << 16
)

// Flow is a connection that somebody wants, or a stream of datagrams. Destination is as it was written: see [target.Real].
type Flow struct {
	Network             string // "tcp" or "udp"
	Source, Destination netip.AddrPort
}

// GatewayOptions says what a Gateway is made of.
type GatewayOptions struct {
	// Sources are the prefixes that may send, IPv4 and IPv6, at least one. Packets from others are ignored.
	Sources []netip.Prefix
	// Open is asked about each flow, on a goroutine of its own, and may take its time, for instance to connect to the
	// destination. Destinations of a class that is [target.Class.Never] allowed are refused without asking.
	//
	// Where Open returns a function, the connection is completed and the function serves it, on the same goroutine; the
	// connection ends when it returns. A TCP connection has CloseRead, CloseWrite and SetLinger; one of datagrams has Refuse,
	// which is told by which error the destination is found not to be there. The argument is nil where the program has given
	// up meanwhile. It is called exactly once.
	//
	// An error refuses the flow at once: ECONNREFUSED and ECONNRESET as a closed port would, ENETUNREACH, EHOSTUNREACH and
	// time-outs as a router without a way would, all others as administratively prohibited. The context ends with the
	// gateway.
	Open func(ctx context.Context, f Flow) (serve func(net.Conn), err error)
	// Refused is told about flows that are refused without asking; nil: nobody is. It must return at once.
	Refused func(f Flow)
	// Flows is how many there may be at a time, 1 to 65536; 0 means DefaultFlows. Those beyond meet closed ports.
	Flows int
	// TCPIdle and UDPIdle are after what time without a byte in either direction a flow ends; 0 means the defaults.
	TCPIdle, UDPIdle time.Duration
	// MTU and Segments are as in Options. IPv4 has no bursts.
	MTU, Segments int
	// Log may be nil.
	Log *slog.Logger
}

// Gateway is where all ways out of a sandbox end: a stack that is every address at once, and connects to none by itself.
// Only TCP and UDP get through; whatever else asks for an answer (a ping too) is told that it is prohibited.
type Gateway struct {
	*core
	o      GatewayOptions
	ctx    context.Context // of the flows
	cancel context.CancelFunc
	tcp    *tcp.Forwarder
	log    *slog.Logger

	mu     sync.Mutex
	active int
	opened map[stack.TransportEndpointID][]byte // TCP: asked for and not decided yet, with the beginning of the packet

	counters struct{ accepted, refused, full atomic.Uint64 }
}

// GatewayStatus counts flows.
type GatewayStatus struct {
	Active   int    // now
	Accepted uint64 // so far
	Refused  uint64 // by Open, or by class
	Full     uint64 // refused because there were too many
}

// NewGateway makes a Gateway that works at once; Close ends it.
func NewGateway(o GatewayOptions) (*Gateway, error) {
	if o.Open == nil || len(o.Sources) == 0 {
		return nil, errors.New("netstack: GatewayOptions.Open and Sources are needed")
	}
	for _, p := range o.Sources {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("netstack: source %v: %w", p, ErrAddress)
		}
	}
	if o.Flows == 0 {
		o.Flows = DefaultFlows
	}
	if o.TCPIdle == 0 {
		o.TCPIdle = DefaultTCPIdle
	}
	if o.UDPIdle == 0 {
		o.UDPIdle = DefaultUDPIdle
	}
	if o.Flows < 1 || o.Flows > maxFlows || o.TCPIdle < 0 || o.UDPIdle < 0 {
		return nil, fmt.Errorf("netstack: %d flows are not in [1, %d], or a time-out is negative", o.Flows, maxFlows)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c, err := newCore(o.MTU, o.Segments, true)
	if err != nil {
		return nil, err
	}
	g := &Gateway{core: c, o: o, log: o.Log, opened: make(map[stack.TransportEndpointID][]byte)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.tcp = tcp.NewForwarder(c.stack, 0, o.Flows, g.openTCP)
	c.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, g.hearTCP)
	c.stack.SetTransportProtocolHandler(udp.ProtocolNumber, g.hearUDP)
	for _, nic := range []tcpip.NICID{nic6, nic4} {
		e := c.stack.SetPromiscuousMode(nic, true)
		if e == nil {
			e = c.stack.SetSpoofing(nic, true)
		}
		if e != nil {
			g.Close()
			return nil, fmt.Errorf("netstack: be every address: %w", stackError(e))
		}
	}
	c.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv6EmptySubnet, NIC: nic6},
		{Destination: header.IPv4EmptySubnet, NIC: nic4},
	})
	return g, nil
}

// Close ends all flows, and returns when their goroutines have ended: those of Open and serve too. It may be called more
// than once; the error is always nil.
func (g *Gateway) Close() error {
	g.cancel()
	return g.core.Close()
}

// Device returns the interface that the sandbox's packets are written to and read from. There is to be one.
func (g *Gateway) Device(name string) *Device {
	return &Device{core: g.core, name: name, deliver: g.deliver, closed: make(chan struct{})}
}

// Status may be asked at any time.
func (g *Gateway) Status() GatewayStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return GatewayStatus{
		Active: g.active, Accepted: g.counters.accepted.Load(), Refused: g.counters.refused.Load(), Full: g.counters.full.Load(),
	}
}

func flowOf(network string, id stack.TransportEndpointID) Flow {
	return Flow{
		Network:     network,
		Source:      addrPort(tcpip.FullAddress{Addr: id.RemoteAddress, Port: id.RemotePort}),
		Destination: addrPort(tcpip.FullAddress{Addr: id.LocalAddress, Port: id.LocalPort}),
	}
}

// admit counts a flow in, and begins its goroutine's time. quote is kept with it if it is TCP's.
func (g *Gateway) admit(id stack.TransportEndpointID, quote []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active == g.o.Flows || !g.begin() {
		g.counters.full.Add(1)
		return false
	}
	g.active++
	if quote != nil {
		g.opened[id] = quote
	}
	return true
}

// decided forgets what was kept for a refusal.
func (g *Gateway) decided(id stack.TransportEndpointID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.opened, id)
}

// ended counts a flow out.
func (g *Gateway) ended() {
	g.mu.Lock()
	g.active--
	g.mu.Unlock()
	g.flows.Done()
}

// hearTCP gets segments of no connection. What it doesn't take is reset.
func (g *Gateway) hearTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if flags := header.TCP(pkt.TransportHeader().Slice()).Flags(); flags&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return false
	}
	g.mu.Lock()
	_, again := g.opened[id]
	g.mu.Unlock()
	if again {
		return true
	}
	quote := quoteOf(pkt)
	if g.refusedByClass(flowOf("tcp", id), quote) {
		return true
	}
	if !g.admit(id, quote) {
		return false
	}
	if g.tcp.HandlePacket(id, pkt) {
		return true
	}
	g.decided(id) // a malformed one: no goroutine was started
	g.ended()
	return false
}

// refusedByClass refuses what no rule can allow.
func (g *Gateway) refusedByClass(f Flow, quote []byte) bool {
	if class := target.ClassOf(f.Destination.Addr()); class.Never() || f.Destination.Port() == 0 {
		g.counters.refused.Add(1)
		if g.o.Refused != nil {
			g.o.Refused(f)
		}
		g.answer(quote, syscall.EACCES)
		return true
	}
	return false
}

// openTCP is the goroutine of a connection.
func (g *Gateway) openTCP(r *tcp.ForwarderRequest) {
	defer g.ended()
	id := r.ID()
	f := flowOf("tcp", id)
	serve, err := g.o.Open(g.ctx, f)
	if err != nil {
		g.counters.refused.Add(1)
		g.mu.Lock()
		quote := g.opened[id]
		g.mu.Unlock()
		reset := refusedPort(err)
		if !reset {
			g.answer(quote, err)
		}
		r.Complete(reset)
		g.decided(id)
		return
	}
	wq := new(waiter.Queue)
	var ep tcpip.Endpoint
	var e tcpip.Error = &tcpip.ErrAborted{}
	if g.open() == nil {
		ep, e = r.CreateEndpoint(wq)
	}
	r.Complete(false)
	g.decided(id)
	if e != nil {
		serve(nil)
		return
	}
	g.counters.accepted.Add(1)
	c := newConn(g.core, ep, wq)
	g.serve(c, &c.socket, g.o.TCPIdle, serve)
}

// hearUDP gets datagrams of no flow.
func (g *Gateway) hearUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	quote := quoteOf(pkt)
	if g.refusedByClass(flowOf("udp", id), quote) {
		return true
	}
	if !g.admit(id, nil) {
		return false
	}
	wq := new(waiter.Queue)
	// From now on it takes the flow's datagrams.
	ep, e := udp.NewForwarderRequest(g.stack, id, pkt).CreateEndpoint(wq)
	if e != nil {
		g.ended()
		return false
	}
	go g.openUDP(id, ep, wq, quote)
	return true
}

// openUDP is the goroutine of a flow of datagrams.
func (g *Gateway) openUDP(id stack.TransportEndpointID, ep tcpip.Endpoint, wq *waiter.Queue, quote []byte) {
	defer g.ended()
	serve, err := g.o.Open(g.ctx, flowOf("udp", id))
	if err != nil {
		g.counters.refused.Add(1)
		ep.Close()
		g.answer(quote, err)
		return
	}
	g.counters.accepted.Add(1)
	c := newPacketConn(g.core, ep, wq, nil)
	g.serve(&datagrams{packetConn: c, refuse: func(err error) { g.answer(quote, err) }}, &c.socket, g.o.UDPIdle, serve)
}

// datagrams is a flow that can still be refused.
type datagrams struct {
	*packetConn
	refuse func(error)
}

// Refuse tells the program so, as an error of Open would have.
func (d *datagrams) Refuse(err error) { d.refuse(err) }

// serve lets a flow be served, and ends it when nothing has moved for some time.
func (g *Gateway) serve(c net.Conn, s *socket, idle time.Duration, serve func(net.Conn)) {
	s.watch(idle)
	defer c.Close()
	serve(c)
}
