// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/overlay/paths/simnet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/underlay"
)

// site is a node somewhere on a simulated internet.
type site struct {
	*node
	host   *simnet.Host
	router *simnet.Router // nearest the internet, or nil
	relays []uint32
	peer   *site

	mu      sync.Mutex // guards what follows, and the node's state
	arrived []time.Time
	events  []Event
}

// place says what is between a site and the internet.
type place struct {
	name    string
	nat     []simnet.RouterOptions // the outermost first
	hard    bool
	blocked bool
}

func somePlaces() []place {
	eim, apd := simnet.EndpointIndependent, simnet.AddressAndPortDependent
	home := simnet.RouterOptions{Mapping: eim, Filtering: apd}
	return []place{
		{name: "public"},
		{name: "home", nat: []simnet.RouterOptions{home}},
		{name: "address-dependent", nat: []simnet.RouterOptions{{Mapping: simnet.AddressDependent, Filtering: simnet.AddressDependent}}, hard: true},
		{name: "symmetric", nat: []simnet.RouterOptions{{Mapping: apd, Filtering: apd}}, hard: true},
		{name: "CGNAT and home", nat: []simnet.RouterOptions{home, home}},
		{name: "UDP blocked", nat: []simnet.RouterOptions{{Mapping: apd, Filtering: apd, Blocked: true}}, blocked: true},
	}
}

// site puts a node into a place; i tells places of one kind apart.
func (w *world) site(n *simnet.Internet, p place, i byte, relays ...uint32) *site {
	s := &site{relays: relays}
	segment, addr := n.Root(), netip.AddrFrom4([4]byte{203, 0, 113, i})
	for depth, o := range p.nat {
		o.Outside = netip.AddrFrom4([4]byte{198, 51, 100, i})
		if depth > 0 {
			o.Outside = netip.AddrFrom4([4]byte{100, 64, 0, i})
		}
		var r *simnet.Router
		if r, segment = segment.Router(o); depth == 0 {
			s.router = r
		}
		addr = netip.AddrFrom4([4]byte{192, 168, 1, 5}) // the same everywhere, as in homes
	}
	agent := w.agent()
	s.host = segment.Host(addr, agent.addr)
	s.host.Attach(relays...)
	s.node = w.idleNode(agent, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 1).String())
	s.o.under = s.host
	return s
}

// gather looks at the site's own addresses, as the underlay does.
func (s *site) gather() {
	s.mu.Lock()
	defer s.mu.Unlock()
	self, nat := s.host.Observe()
	s.state.Self, s.state.NAT, s.state.SelfRelays = self, nat, s.relays
	s.set()
}

// record publishes where the site is to its peer, as the coordinator does.
func (s *site) record() {
	self, _ := s.host.Observe()
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	peers := slices.Clone(s.peer.state.Peers)
	peers[0].Candidates, peers[0].Relays = self, s.relays
	s.peer.state.Peers = peers
	s.peer.set()
}

// connect runs both sites, with a coordinator between them, until the function that it returns is called.
func connect(a, b *site) func() {
	a.peer, b.peer = b, a
	stop := make(chan struct{})
	var all sync.WaitGroup
	for _, s := range []*site{a, b} {
		s.know(s.peer.node, &policy.Grant{}, &policy.Grant{})
	}
	for _, s := range []*site{a, b} {
		s.gather()
		s.record()
	}
	for _, s := range []*site{a, b} {
		s.run()
		all.Go(func() { s.host.KeepAlive(stop, func() { s.gather(); s.record() }) })
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-s.dev.Sent():
					s.mu.Lock()
					s.arrived = append(s.arrived, time.Now())
					s.mu.Unlock()
				case p := <-s.host.Gone():
					s.o.Gone(p)
				case e := <-s.o.Events():
					s.mu.Lock()
					s.events = append(s.events, e)
					self, relays := s.state.Self, s.relays
					s.mu.Unlock()
					if _, calling := e.(Calling); calling {
						all.Go(func() {
							time.Sleep(30 * time.Millisecond)
							s.peer.o.Call(s.peer.key.Public(), s.key.Public(), self, relays)
						})
					}
				}
			}
		})
	}
	return func() {
		a.stop()
		b.stop()
		close(stop)
		all.Wait()
	}
}

// converse sends a packet each way now and then.
func converse(a, b *site, d, every time.Duration) {
	for i, until := 0, time.Now().Add(d); time.Now().Before(until); i++ {
		a.dev.Inject(udpPacket(a.addr, b.addr, 1000, 2000, fmt.Sprint(i)))
		b.dev.Inject(udpPacket(b.addr, a.addr, 2000, 1000, fmt.Sprint(i)))
		time.Sleep(every)
	}
}

// gap is the longest time without a packet since a moment.
func (s *site) gap(since time.Time) (gap time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := since
	for _, at := range s.arrived {
		if at.After(since) {
			gap, last = max(gap, at.Sub(last)), at
		}
	}
	return max(gap, time.Since(last))
}

func (s *site) status() PeerStatus { return s.o.Status().Peers[0] }

const trip = 10 * time.Millisecond

// Each place with each, with handshakes and sealed records.
func TestReachEachPlaceFromEach(t *testing.T) {
	for _, pa := range somePlaces() {
		for _, pb := range somePlaces() {
			t.Run(pa.name+", "+pb.name, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					n := simnet.New(trip)
					n.Relay(1, 4*trip)
					a, b := w.site(n, pa, 1, 1), w.site(n, pb, 2, 1)
					defer connect(a, b)()
					start := time.Now()
					converse(a, b, 3*time.Second, 50*time.Millisecond)
					for _, s := range []*site{a, b} {
						if gap := s.gap(start); gap > time.Second {
							t.Errorf("nothing came for %v", gap)
						}
					}
					direct := !pa.blocked && !pb.blocked && !(pa.hard && pb.hard)
					if direct && (pa.hard || pb.hard) {
						converse(a, b, 75*time.Second, 500*time.Millisecond) // it may take a second try
					}
					for _, s := range []*site{a, b} {
						p := s.status()
						if (p.Path.Relay == 0) != direct || (p.Why == "") != direct || p.State != StateUp {
							t.Errorf("%s %+v %q, %+v", p.State, p.Path, p.Why, p.Paths)
						}
					}
					switch why := a.status().Why; {
					case pa.hard && pb.hard && why != paths.WhyBothHard, pa.blocked && why != paths.WhyBlocked,
						pb.blocked && !pa.blocked && why != paths.WhyPeerBlocked:
						t.Errorf("why: %q", why)
					}
				})
			})
		}
	}
}

// What breaks while packets flow, and how long none come after it.
func TestFaultsHealInSeconds(t *testing.T) {
	places := somePlaces()
	public, home, blocked := places[0], places[1], places[5]
	type scene struct {
		n    *simnet.Internet
		a, b *site
		one  *simnet.Relay
	}
	oneWay := func(from, to func(*scene) netip.Addr) func(*scene) {
		return func(s *scene) {
			f, g := from(s), to(s)
			s.n.Drop(func(a, b netip.AddrPort) bool { return a.Addr() == f && b.Addr() == g })
		}
	}
	outsideA := func(s *scene) netip.Addr { return s.a.router.Outside }
	outsideB := func(s *scene) netip.Addr { return s.b.router.Outside }
	for name, tt := range map[string]struct {
		a, b   place
		within time.Duration
		fault  func(*scene)
		relay  bool // it ends on a relay
	}{
		"mappings are forgotten":            {home, home, 5 * time.Second, func(s *scene) { s.a.router.Flush() }, false},
		"mappings are forgotten, to public": {home, public, 5 * time.Second, func(s *scene) { s.a.router.Flush() }, false},
		"address changes": {home, home, 5 * time.Second, func(s *scene) {
			s.a.router.Readdress(netip.AddrFrom4([4]byte{198, 51, 100, 99}))
		}, false},
		"eaten from a to b": {home, home, 3 * time.Second, oneWay(outsideA, outsideB), true},
		"eaten from b to a": {home, home, 3 * time.Second, oneWay(outsideB, outsideA), true},
		"relay dies":        {blocked, home, 5 * time.Second, func(s *scene) { s.one.Kill() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s := &scene{n: simnet.New(trip)}
				s.one = s.n.Relay(1, 4*trip)
				s.n.Relay(2, 5*trip)
				s.a, s.b = w.site(s.n, tt.a, 1, 1, 2), w.site(s.n, tt.b, 2, 1, 2)
				defer connect(s.a, s.b)()
				converse(s.a, s.b, 20*time.Second, 50*time.Millisecond)
				start := time.Now()
				tt.fault(s)
				converse(s.a, s.b, 90*time.Second, 50*time.Millisecond)
				for i, x := range []*site{s.a, s.b} {
					gap := x.gap(start)
					t.Logf("%c: %v", 'a'+i, gap)
					if gap >= tt.within {
						t.Errorf("%c got nothing for %v", 'a'+i, gap)
					}
					if p := x.status(); (p.Path.Relay != 0) != tt.relay {
						t.Errorf("%c: %+v %q %+v", 'a'+i, p.Path, p.Why, p.Paths)
					}
				}
			})
		})
	}
}

// asking is an underlay that wants to know how things stand whenever hundreds of sockets are opened or closed: it would wait
// for itself if control held its lock meanwhile.
type asking struct {
	*simnet.Host
	o     *Overlay
	asked atomic.Int32
}

func (a *asking) Fan(remote netip.AddrPort, n int) ([]underlay.Path, error) {
	a.o.Status()
	a.asked.Add(1)
	return a.Host.Fan(remote, n)
}

func (a *asking) Unfan(keep []underlay.Path) {
	a.o.Status()
	a.asked.Add(1)
	a.Host.Unfan(keep)
}

func TestSocketsArePunchedWithWithoutTheLock(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := simnet.New(trip)
		n.Relay(1, 4*trip)
		hard, easy := w.site(n, somePlaces()[3], 1, 1), w.site(n, somePlaces()[1], 2, 1)
		under := &asking{Host: hard.host, o: hard.o}
		hard.o.under = under
		defer connect(hard, easy)()
		converse(hard, easy, 3*time.Minute, 50*time.Millisecond)
		if p := hard.status(); p.Path.Relay != 0 || p.Path.Socket == 0 {
			t.Errorf("%+v %+v", p.Path, p.Paths)
		}
		if open := hard.host.Sockets(); under.asked.Load() < 2 || open < 1 || open > 5 { // those that answered
			t.Errorf("asked %d times, %d sockets are open", under.asked.Load(), open)
		}
	})
}

// A peer that is not at a relay any more is sought at another as soon as the relay says so, and not after the next ping.
func TestPeerThatLeftARelayIsSoughtAtOnce(t *testing.T) {
	blocked := somePlaces()[5]
	for _, phase := range []time.Duration{0, 300 * time.Millisecond, 600 * time.Millisecond} { // since a ping
		inWorld(t, func(t *testing.T, w *world) {
			n := simnet.New(trip)
			n.Relay(1, 4*trip)
			n.Relay(2, 5*trip)
			a, b := w.site(n, blocked, 1, 1, 2), w.site(n, blocked, 2, 1, 2)
			defer connect(a, b)()
			converse(a, b, 5*time.Second+phase, 50*time.Millisecond)
			start := time.Now()
			b.host.Detach(1)
			converse(a, b, 10*time.Second, 50*time.Millisecond)
			if gap := b.gap(start); gap > 800*time.Millisecond {
				t.Errorf("it got nothing for %v", gap)
			}
			if p := a.status(); p.Path.Relay != 2 {
				t.Errorf("%+v %+v", p.Path, p.Paths)
			}
		})
	}
}

// A host sleeps for ten minutes and nobody tells it: its clock stands still meanwhile, as Linux's does. The other side has
// packets for it all the time.
func TestSleepingHostWakes(t *testing.T) {
	for name, told := range map[string]bool{"told": true, "not told": false} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				n := simnet.New(trip)
				n.Relay(1, 4*trip)
				home := somePlaces()[1]
				a, b := w.site(n, home, 1, 1), w.site(n, home, 2, 1)
				var frozen atomic.Pointer[time.Time]
				var lag atomic.Int64
				a.o.clock = func() time.Time {
					if f := frozen.Load(); f != nil {
						return *f
					}
					return time.Now().Add(-time.Duration(lag.Load()))
				}
				defer connect(a, b)()
				converse(a, b, 5*time.Second, 50*time.Millisecond)
				now := time.Now()
				frozen.Store(&now)
				a.host.Sleep()
				const asleep = 10 * time.Minute
				for range int(asleep / (500 * time.Millisecond)) {
					b.dev.Inject(udpPacket(b.addr, a.addr, 2000, 1000, "anybody?"))
					time.Sleep(500 * time.Millisecond)
				}
				a.host.Wake()
				lag.Store(int64(asleep))
				frozen.Store(nil)
				if told {
					a.o.Refresh()
				}
				start := time.Now()
				converse(a, b, 20*time.Second, 50*time.Millisecond)
				for i, x := range []*site{a, b} {
					gap := x.gap(start)
					t.Logf("%c: %v", 'a'+i, gap)
					if gap >= 5*time.Second {
						t.Errorf("%c got nothing for %v", 'a'+i, gap)
					}
				}
			})
		})
	}
}
