// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// latency is how long the wire takes one way.
const latency = 10 * time.Millisecond

// world is a network of agents and the wire between their nodes.
type world struct {
	t         testing.TB
	authority identity.AuthorityKey
	serial    uint64

	mu    sync.Mutex
	ports map[netip.AddrPort]*port
	// weather says what becomes of a datagram: a copy arrives after each of the delays. nil: one after latency.
	weather func(from, to netip.AddrPort, d []byte) []time.Duration
	seen    [][]byte
	nodes   []*node
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, ports: make(map[netip.AddrPort]*port)}
	w.authority = must(identity.NewAuthorityKey(rand.Reader))
	return w
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// port is a node's place on the wire, an Underlay.
type port struct {
	w      *world
	addr   netip.AddrPort // guarded by w.mu
	in     chan arrival
	closed chan struct{}
	once   sync.Once
}

func (p *port) Loops() int { return 1 }

func (p *port) Accept(d []byte, from underlay.Path) ([]byte, underlay.Path, bool) {
	return d, from, false
}
func (p *port) Fan(netip.AddrPort, int) ([]underlay.Path, error) { return nil, underlay.ErrFan }
func (p *port) Unfan([]underlay.Path)                            {}

func (p *port) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *port) Send(path underlay.Path, datagrams [][]byte) error {
	for _, d := range datagrams {
		p.w.mu.Lock()
		from, delays := p.addr, []time.Duration{latency}
		d = bytes.Clone(d)
		p.w.seen = append(p.w.seen, d)
		if p.w.weather != nil {
			delays = p.w.weather(from, path.Remote, d)
		}
		p.w.mu.Unlock()
		for _, delay := range delays {
			time.AfterFunc(delay, func() { p.w.arrive(from, path.Remote, d) })
		}
	}
	return nil
}

func (w *world) arrive(from, to netip.AddrPort, d []byte) {
	w.mu.Lock()
	p := w.ports[to]
	w.mu.Unlock()
	if p == nil {
		return
	}
	select {
	case p.in <- arrival{d, underlay.Path{Remote: from, Local: to.Addr()}}:
	default:
	}
}

func (p *port) SendBursts(bursts []underlay.Burst) (int, error) {
	return underlay.SendEach(bursts, p.SendBurst)
}

func (p *port) SendBurst(b *underlay.Burst) error {
	return p.Send(b.Path, slices.Collect(b.Each))
}

func (p *port) Receive(_ int, bursts []underlay.Burst) (int, error) {
	select {
	case <-p.closed:
		return 0, net.ErrClosed
	case a := <-p.in:
		for n := 0; ; n++ {
			b := &bursts[n]
			b.Data = append(b.Data[:0], a.datagram...)
			b.Size, b.Path, b.Class = len(b.Data), a.path, 0
			if n+1 == len(bursts) {
				return n + 1, nil
			}
			select {
			case a = <-p.in:
			default:
				return n + 1, nil
			}
		}
	}
}

// move gives the node another address on the wire.
func (w *world) move(p *port, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.ports, p.addr)
	p.addr = netip.MustParseAddrPort(to)
	w.ports[p.addr] = p
}

func (w *world) setWeather(f func(from, to netip.AddrPort, d []byte) []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.weather = f
}

// datagrams returns everything that was sent so far.
func (w *world) datagrams() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

type agent struct {
	key    identity.AgentKey
	tunnel identity.TunnelKey
	cert   identity.Certificate
	stmt   identity.TunnelStatement
	addr   netip.Addr
}

func (w *world) agent() *agent {
	a := &agent{key: must(identity.NewAgentKey(rand.Reader)), tunnel: must(identity.NewTunnelKey(rand.Reader))}
	w.serial++
	from, to := time.Now().Add(-time.Hour), time.Now().Add(23*time.Hour)
	a.cert = must(identity.Certificate{
		Agent: a.key.Public(), Name: "agent", NotBefore: from, NotAfter: to, Serial: w.serial,
	}.Sign(w.authority))
	a.stmt = must(identity.TunnelStatement{
		Network: w.authority.Public(), Tunnel: a.tunnel.Public(), Suites: identity.SuiteChaCha | identity.SuiteAES,
		NotBefore: from, NotAfter: to,
	}.Sign(a.key))
	a.addr = identity.Address(w.authority.Public(), a.key.Public())
	return a
}

func (a *agent) local() noise.Local {
	return noise.Local{
		Agent: a.key.Public(), Certificate: a.cert.Raw(),
		Keys: []noise.TunnelIdentity{{Key: a.tunnel, Statement: a.stmt.Raw()}},
	}
}

// node is a running overlay. It hosts one agent unless a test adds others.
type node struct {
	*agent
	w      *world
	o      *Overlay
	dev    *tun.Memory
	port   *port
	stack  *fakeStack
	state  State
	rules  map[identity.AgentPublic][]policy.Rule
	cancel context.CancelFunc
	done   chan error
}

type fakeStack struct{ delivered, out chan []byte }

func (s *fakeStack) Deliver(p []byte) { s.delivered <- bytes.Clone(p) }

func (s *fakeStack) ReadPackets(ctx context.Context, bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case p := <-s.out:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	}
}

func (w *world) node(at string) *node { return w.nodeOf(w.agent(), at) }

func (w *world) nodeOf(a *agent, at string) *node {
	n := w.idleNode(a, at)
	n.run()
	return n
}

func (w *world) idleNode(a *agent, at string) *node {
	n := &node{
		agent: a, w: w, dev: tun.NewMemory("mem0", 1420), rules: make(map[identity.AgentPublic][]policy.Rule),
		port:  &port{w: w, in: make(chan arrival, 1024), closed: make(chan struct{})},
		stack: &fakeStack{make(chan []byte, 16), make(chan []byte)}, done: make(chan error, 1),
	}
	w.move(n.port, at)
	n.o = must(New(Options{Network: w.authority.Public(), Device: n.dev, Underlay: n.port, Stack: n.stack}))
	n.state = State{Prefix: identity.NetworkPrefix(w.authority.Public()), Locals: []noise.Local{a.local()}}
	w.nodes = append(w.nodes, n)
	return n
}

func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() { n.done <- n.o.Run(ctx) }()
}

func (n *node) stop() {
	if n.cancel == nil {
		return
	}
	n.cancel()
	if err := <-n.done; err != nil {
		n.w.t.Errorf("Run: %v", err)
	}
	n.cancel = nil
}

func (w *world) stop() {
	for _, n := range w.nodes {
		n.stop()
	}
}

// know adds a peer with the consents as they are, nil: not given.
func (n *node) know(m *node, inbound, outbound *policy.Grant) *node {
	for i, p := range n.state.Peers {
		if p.Agent == m.key.Public() {
			n.state.Peers = append(n.state.Peers[:i:i], n.state.Peers[i+1:]...)
			break
		}
	}
	n.w.mu.Lock()
	at := m.port.addr
	n.w.mu.Unlock()
	n.state.Peers = append(n.state.Peers, Peer{
		Agent: m.key.Public(), Addr: m.addr, Tunnel: m.stmt, Candidates: []netip.AddrPort{at},
	})
	for _, l := range n.state.Locals {
		n.rules[l.Agent] = append(n.rules[l.Agent], policy.Rule{Peer: m.key.Public(), Addr: m.addr, Inbound: inbound, Outbound: outbound})
	}
	return n
}

func (n *node) set() {
	n.w.t.Helper()
	n.state.Policy = make(map[identity.AgentPublic]*policy.Compiled)
	for l, rules := range n.rules {
		n.state.Policy[l] = policy.Compile(rules)
	}
	if err := n.o.Set(n.state); err != nil {
		n.w.t.Fatal(err)
	}
}

// trust makes two nodes trust each other for everything.
func trust(a, b *node) {
	a.know(b, &policy.Grant{}, &policy.Grant{}).set()
	b.know(a, &policy.Grant{}, &policy.Grant{}).set()
}

// recv returns the next packet that the node's kernel gets, nil if none comes within the time.
func (n *node) recv(within time.Duration) []byte {
	timer := time.NewTimer(max(within, time.Millisecond)) // both could be ready at 0
	defer timer.Stop()
	select {
	case p := <-n.dev.Sent():
		return p
	case <-timer.C:
		return nil
	}
}

func (n *node) want(within time.Duration, p []byte) {
	n.w.t.Helper()
	if got := n.recv(within); !bytes.Equal(got, p) {
		n.w.t.Fatalf("got %x\nwant %x", got, p)
	}
}

// wantError reads an ICMPv6 error about p.
func (n *node) wantError(within time.Duration, code packet.Code, p []byte) {
	n.w.t.Helper()
	e := n.recv(within)
	if e == nil {
		n.w.t.Fatal("no error came")
	}
	if e[6] != packet.ICMPv6 || e[40] != packet.TypeUnreachable || packet.Code(e[41]) != code || !bytes.HasPrefix(p, e[48:]) {
		n.w.t.Fatalf("got %x, want code %d about %x", e, code, p)
	}
}

func (n *node) silent(within time.Duration) {
	n.w.t.Helper()
	if p := n.recv(within); p != nil {
		n.w.t.Fatalf("unexpected packet %x", p)
	}
}

// nextEvent returns the next event of a type.
func nextEvent[E Event](n *node, within time.Duration) (e E, ok bool) {
	timer := time.NewTimer(max(within, time.Millisecond)) // both could be ready at 0
	defer timer.Stop()
	for {
		select {
		case v := <-n.o.Events():
			if e, ok = v.(E); ok {
				return e, true
			}
		case <-timer.C:
			return e, false
		}
	}
}

func (n *node) drops(reason string) uint64 { return n.o.Status().Drops[reason] }

func (n *node) sessionWith(m *node) *session {
	r := n.o.snap.Load().routes[addresses(n.addr, m.addr)]
	if r.link == nil {
		return nil
	}
	return r.link.current.Load()
}

func ipPacket(from, to netip.Addr, proto uint8, payload []byte) []byte {
	p := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), proto, 64}
	p = append(append(p, from.AsSlice()...), to.AsSlice()...)
	return append(p, payload...)
}

func udpPacket(from, to netip.Addr, sport, dport uint16, data string) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	return ipPacket(from, to, packet.UDP, append(append(b, 0, 0), data...))
}

func tcpPacket(from, to netip.Addr, sport, dport uint16, flags uint8) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint64(b, 0x1111111122222222)
	return ipPacket(from, to, packet.TCP, append(b, 5<<4, flags, 0, 0, 0, 0, 0, 0))
}

// inWorld runs a test in a bubble of its own time.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		f(t, w)
	})
}
