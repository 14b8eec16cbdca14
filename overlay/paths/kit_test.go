// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/overlay/paths/simnet"
	"github.com/pilot-protocol/pilot/underlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// end is one end of a session: a Set, and what an overlay would do with it, without any secrets.
type end struct {
	t      testing.TB
	name   string
	host   *simnet.Host
	peer   *end
	relays []uint32

	mu      *sync.Mutex // both ends' own: guards what follows
	set     *paths.Set
	epoch   time.Time
	timer   *time.Timer
	self    []netip.AddrPort
	nat     paths.NAT
	path    underlay.Path
	changes []underlay.Path
	arrived []time.Time // data
	calls   int
}

func newEnd(t testing.TB, name string, h *simnet.Host, relays ...uint32) *end {
	r := rand.New(rand.NewPCG(uint64(name[0]), 7))
	e := &end{t: t, name: name, host: h, relays: relays, mu: new(sync.Mutex), set: paths.New(r.Uint64), epoch: time.Now().Add(-time.Hour)}
	if len(relays) > 0 {
		h.Attach(relays...)
	}
	return e
}

func (e *end) now() time.Duration { return time.Since(e.epoch) }

// learn takes a look at both ends' addresses.
func (e *end) learn() {
	e.self, e.nat = e.host.Observe()
	e.set.Learn(e.now(), paths.Facts{
		Peer: overlayOf(e.peer.name), Candidates: e.peer.self, Relays: e.peer.relays, Spare: e.relays, NAT: e.nat, PeerNAT: e.peer.nat,
	})
}

func overlayOf(name string) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 15: name[0]}) }

// act does what the set wants. The lock is held.
func (e *end) act() {
	now := e.now()
	for _, a := range e.set.Act(now, nil) {
		switch a.Kind {
		case paths.Ping:
			e.send(a.Path, binary.BigEndian.AppendUint64([]byte{'P'}, a.ID))
		case paths.Use:
			e.path = a.Path
			e.changes = append(e.changes, a.Path)
		case paths.Tell:
			e.send(e.path, []byte{'T'})
		case paths.Call:
			e.calls++
		case paths.Fan:
			fan, err := e.host.Fan(a.Path.Remote, a.N)
			if err != nil {
				e.t.Error(err)
			}
			e.set.Fanned(fan)
			e.act()
		case paths.Unfan:
			e.host.Unfan(e.set.Sockets())
		case paths.Punch:
			a := e.self[len(e.self)-1].Addr().As16()
			e.send(e.path, append([]byte{'U'}, a[:]...))
		}
	}
	if next := e.set.Next(); next != 0 {
		e.timer.Reset(max(0, next-e.now()))
	}
}

func (e *end) send(p underlay.Path, d []byte) {
	if err := e.host.Send(p, [][]byte{d}); err != nil {
		e.t.Logf("%s: %v: %v", e.name, p, err)
	}
}

func (e *end) handle(d []byte, p underlay.Path) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	switch d[0] {
	case 'P':
		e.send(p, append([]byte{'O'}, d[1:]...))
		e.set.Pinged(now, p)
	case 'O':
		e.set.Pong(now, binary.BigEndian.Uint64(d[1:]), p)
	case 'D':
		e.arrived = append(e.arrived, time.Now())
		e.set.Used(now)
		e.set.Heard(now, p)
	case 'T':
		e.learn()
		e.set.Told(now)
	case 'U':
		e.set.Punch(now, netip.AddrFrom16([16]byte(d[1:])))
	}
	e.act()
}

func (e *end) loop() {
	bursts := make([]underlay.Burst, 1)
	for {
		if _, err := e.host.Receive(0, bursts); err != nil {
			return
		}
		d, p := bursts[0].Data, bursts[0].Path
		if inner, over, ok := e.host.Accept(d, p); ok {
			d, p = inner, over
		}
		e.handle(d, p)
	}
}

// do calls a method of the set, and acts.
func (e *end) do(f func(now time.Duration)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(e.now())
	e.act()
}

// say sends a packet of data.
func (e *end) say() {
	e.do(func(now time.Duration) {
		e.set.Used(now)
		e.send(e.path, []byte{'D'})
	})
}

// talk lets both say something each 50 ms for some time.
func talk(a, b *end, d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		a.say()
		b.say()
	}
}

// session begins a session over a path that the handshake took, and returns a function that ends both.
func session(a, b *end, from, to underlay.Path) func() {
	a.peer, b.peer, b.mu = b, a, a.mu
	a.self, a.nat = a.host.Observe()
	b.self, b.nat = b.host.Observe()
	stop := make(chan struct{})
	var all sync.WaitGroup
	for _, e := range []*end{a, b} {
		e.timer = time.AfterFunc(time.Hour, func() { e.do(func(time.Duration) {}) })
		all.Go(e.loop)
		all.Go(func() {
			e.host.KeepAlive(stop, func() {
				e.do(func(time.Duration) { e.learn(); e.set.Changed() })
			})
		})
	}
	a.do(func(now time.Duration) { a.learn(); a.set.Up(now, to, 40*time.Millisecond) })
	b.do(func(now time.Duration) { b.learn(); b.set.Up(now, from, 0) })
	return func() {
		close(stop)
		a.host.Close()
		b.host.Close()
		all.Wait()
		a.timer.Stop()
		b.timer.Stop()
	}
}

// overRelay begins one over a relay.
func overRelay(a, b *end, relay uint32) func() {
	return session(a, b,
		underlay.Path{Remote: netip.AddrPortFrom(overlayOf(a.name), 0), Relay: relay},
		underlay.Path{Remote: netip.AddrPortFrom(overlayOf(b.name), 0), Relay: relay})
}

func (e *end) inUse() underlay.Path {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.path
}

// longestGap is the longest time without data since a moment.
func (e *end) longestGap(since time.Time) (gap time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := since
	for _, at := range e.arrived {
		if at.After(since) {
			gap, last = max(gap, at.Sub(last)), at
		}
	}
	return max(gap, time.Since(last))
}

// A place is where a host may live.
type place struct {
	name string
	nat  bool
	hard bool // symmetric
	dead bool // UDP is blocked
	make func(n *simnet.Internet, i int) *simnet.Segment
}

func behind(o simnet.RouterOptions) func(n *simnet.Internet, i int) *simnet.Segment {
	return func(n *simnet.Internet, i int) *simnet.Segment {
		o.Outside = netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)})
		if o.Mapping == simnet.None {
			o.Outside = netip.Addr{}
		}
		_, s := n.Root().Router(o)
		return s
	}
}

func places() []place {
	apd := simnet.AddressAndPortDependent
	return []place{
		{name: "public", make: func(n *simnet.Internet, i int) *simnet.Segment { return n.Root() }},
		{name: "firewall", make: behind(simnet.RouterOptions{Filtering: apd})},
		{name: "EIM-EIF", nat: true, make: behind(simnet.RouterOptions{Mapping: simnet.EndpointIndependent, Filtering: simnet.EndpointIndependent})},
		{name: "EIM-ADF", nat: true, make: behind(simnet.RouterOptions{Mapping: simnet.EndpointIndependent, Filtering: simnet.AddressDependent})},
		{name: "EIM-APDF", nat: true, make: behind(simnet.RouterOptions{Mapping: simnet.EndpointIndependent, Filtering: apd})},
		{name: "ADM-ADF", nat: true, hard: true, make: behind(simnet.RouterOptions{Mapping: simnet.AddressDependent, Filtering: simnet.AddressDependent})},
		{name: "APDM-APDF", nat: true, hard: true, make: behind(simnet.RouterOptions{Mapping: apd, Filtering: apd})},
		{name: "CGNAT+home", nat: true, make: func(n *simnet.Internet, i int) *simnet.Segment {
			s := behind(simnet.RouterOptions{Mapping: simnet.EndpointIndependent, Filtering: apd, Hairpin: true})(n, i)
			_, home := s.Router(simnet.RouterOptions{
				Outside: netip.AddrFrom4([4]byte{100, 64, 0, byte(10 + i)}), Mapping: simnet.EndpointIndependent, Filtering: apd,
			})
			return home
		}},
		{name: "UDP blocked", nat: true, dead: true, make: behind(simnet.RouterOptions{Mapping: apd, Filtering: apd, Blocked: true})},
	}
}

// settle puts a host into a place.
func (p place) settle(t testing.TB, n *simnet.Internet, name string, i int, relays ...uint32) *end {
	addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + i)})
	if p.nat {
		addr = netip.AddrFrom4([4]byte{192, 168, byte(1 + i), 5})
	}
	return newEnd(t, name, p.make(n, i).Host(addr, overlayOf(name)), relays...)
}

func inTime(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
