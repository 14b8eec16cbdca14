// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/underlay"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

// wire joins underlays in memory. Nothing passes but what goes over a relay at which both ends are.
type wire struct {
	mu   sync.Mutex
	ends map[netip.Addr]*memoryUnderlay // by overlay address
}

// memoryUnderlay is one end of a wire. What it finds out about this host is what the test says.
type memoryUnderlay struct {
	wire    *wire
	port    uint16
	arrived chan underlay.Burst
	closed  chan struct{}
	once    sync.Once
	changes chan struct{}

	mu        sync.Mutex
	state     underlay.State
	status    underlay.Status
	sent      map[netip.AddrPort]int // datagrams to addresses, all of which are lost
	refreshes int
}

func newMemoryUnderlay(w *wire) *memoryUnderlay {
	return &memoryUnderlay{
		wire: w, port: 7745, arrived: make(chan underlay.Burst, 256), closed: make(chan struct{}), changes: make(chan struct{}, 1),
		sent: map[netip.AddrPort]int{}, status: underlay.Status{Port: 7745},
	}
}

func (u *memoryUnderlay) Port() uint16 { return u.port }
func (u *memoryUnderlay) Loops() int   { return 1 }

func (u *memoryUnderlay) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-u.closed:
	}
	return u.Close()
}

func (u *memoryUnderlay) Close() error {
	u.once.Do(func() { close(u.closed) })
	return nil
}

func (u *memoryUnderlay) Set(s underlay.State) {
	u.mu.Lock()
	u.state = s
	u.mu.Unlock()
	u.wire.mu.Lock()
	defer u.wire.mu.Unlock()
	u.wire.ends[u.address()] = u
}

func (u *memoryUnderlay) address() netip.Addr {
	u.mu.Lock()
	defer u.mu.Unlock()
	return identity.Address(u.state.Network, u.state.Key.Public())
}

func (u *memoryUnderlay) Status() underlay.Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status
}

func (u *memoryUnderlay) Changes() <-chan struct{}   { return u.changes }
func (u *memoryUnderlay) Gone() <-chan underlay.Path { return nil }

func (u *memoryUnderlay) Refresh() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.refreshes++
}

func (u *memoryUnderlay) Netcheck(context.Context) (underlay.Report, error) {
	return underlay.Report{}, nil
}

func (u *memoryUnderlay) Accept(d []byte, from underlay.Path) ([]byte, underlay.Path, bool) {
	return d, from, false
}
func (u *memoryUnderlay) Fan(netip.AddrPort, int) ([]underlay.Path, error) {
	return nil, underlay.ErrFan
}
func (u *memoryUnderlay) Unfan([]underlay.Path) {}

func (u *memoryUnderlay) at(relay uint32) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.ContainsFunc(u.state.Relays, func(r identity.RelayStatement) bool { return r.ID() == relay }) &&
		slices.ContainsFunc(u.status.Relays, func(r underlay.RelayStatus) bool { return r.ID == relay && r.Connected })
}

func (u *memoryUnderlay) Send(p underlay.Path, datagrams [][]byte) error {
	for _, d := range datagrams {
		if err := u.SendBurst(&underlay.Burst{Path: p, Data: d, Size: len(d)}); err != nil {
			return err
		}
	}
	return nil
}

func (u *memoryUnderlay) SendBursts(bursts []underlay.Burst) (int, error) {
	return underlay.SendEach(bursts, u.SendBurst)
}

func (u *memoryUnderlay) SendBurst(b *underlay.Burst) error {
	if b.Path.Relay == 0 {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.sent[b.Path.Remote]++
		return nil
	}
	u.wire.mu.Lock()
	to := u.wire.ends[b.Path.Remote.Addr()]
	u.wire.mu.Unlock()
	if !u.at(b.Path.Relay) {
		return underlay.ErrNoRelay
	}
	if to == nil || !to.at(b.Path.Relay) {
		return nil
	}
	back := underlay.Path{Remote: netip.AddrPortFrom(u.address(), 0), Relay: b.Path.Relay}
	select {
	case to.arrived <- underlay.Burst{Path: back, Data: bytes.Clone(b.Data), Size: b.Size}:
	default:
	}
	return nil
}

func (u *memoryUnderlay) Receive(_ int, bursts []underlay.Burst) (int, error) {
	select {
	case <-u.closed:
		return 0, net.ErrClosed
	case b := <-u.arrived:
		bursts[0].Path, bursts[0].Size, bursts[0].Class = b.Path, b.Size, 0
		bursts[0].Data = append(bursts[0].Data[:0], b.Data...)
		return 1, nil
	}
}

// finds changes what the underlay knows of this host, and says so.
func (u *memoryUnderlay) finds(change func(*underlay.Status)) {
	u.mu.Lock()
	change(&u.status)
	u.mu.Unlock()
	poke(u.changes)
}

func (u *memoryUnderlay) sentTo(a netip.AddrPort) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sent[a]
}

// wiredSystem is a host whose underlay is one end of a wire.
type wiredSystem struct {
	memorySystem
	wire  *wire
	under *memoryUnderlay // of the present run
	moved chan struct{}   // tells that the network has changed
}

func (s *wiredSystem) OpenUnderlay() (Underlay, error) {
	s.under = newMemoryUnderlay(s.wire)
	return s.under, nil
}

func (s *wiredSystem) WatchNetwork(ctx context.Context) (<-chan struct{}, error) {
	return s.moved, nil
}

func newWiredSystem(t *testing.T, w *wire) *wiredSystem {
	return &wiredSystem{
		memorySystem: memorySystem{socket: filepath.Join(t.TempDir(), "s"), log: slog.New(slog.DiscardHandler), dns: &memoryDNS{}},
		wire:         w, moved: make(chan struct{}, 1),
	}
}

// wiredNode is a node on such a host.
type wiredNode struct {
	*Node
	dir    string
	system *wiredSystem
	end    func()
}

func (w *wiredNode) under() *memoryUnderlay { return w.system.under }

// wiredPair makes a network of two that trust each other, with the key of its authority. The first has the coordinator.
func wiredPair(t *testing.T) (a, b *wiredNode, authority identity.AuthorityKey) {
	t.Helper()
	w := &wire{ends: map[netip.Addr]*memoryUnderlay{}}
	start := func() *wiredNode {
		n := &wiredNode{dir: stateDir(t), system: newWiredSystem(t, w)}
		n.Node, n.end = runNode(t, n.dir, n.system)
		return n
	}
	a, b = start(), start()
	made, err := a.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Up(t.Context(), localapi.UpRequest{Name: "warehouse", Invite: made.Invite}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*wiredNode{a, b} {
		eventually(t, "both know each other", func() bool {
			l, err := n.TrustList(t.Context())
			return err == nil && len(l.Entries) == 1 && l.Entries[0].State == localapi.TrustMutual
		})
	}
	authority, err = ca.Load(filepath.Join(a.dir, coordinatorDir, "authority.key"), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a, b, authority
}

// statement makes a relay.
func statement(t *testing.T, authority identity.AuthorityKey, n byte, change func(*identity.RelayStatement)) identity.RelayStatement {
	t.Helper()
	now := time.Now()
	r := identity.RelayStatement{
		Key: identity.AgentKeyFromSeed([32]byte{0xe, n}).Public(), Name: "relay-" + string('0'+n), Addresses: []string{"192.0.2.200:7745"},
		UDP: 7745, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), Serial: 1,
	}
	if change != nil {
		change(&r)
	}
	r, err := r.Sign(authority)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func at(r identity.RelayStatement, home bool) underlay.RelayStatus {
	return underlay.RelayStatus{ID: r.ID(), Key: r.Key, Name: r.Name, Home: home, Connected: true, Transport: "udp", RTT: 24 * time.Millisecond}
}

// knownTo returns what n's book has of the other node.
func (w *wiredNode) knownTo(n *wiredNode) (p peer) {
	_ = n.view(func(m *membership) error {
		if known := m.book.peers[w.key.Public()]; known != nil {
			p = *known
		}
		return nil
	})
	return p
}

// What the underlay finds out reaches the peers: by the record, which is published again.
func TestPlaceIsPublished(t *testing.T) {
	a, b, authority := wiredPair(t)
	home, other := statement(t, authority, 1, nil), statement(t, authority, 2, nil)
	outside := netip.MustParseAddrPort("203.0.113.9:41000")
	a.under().finds(func(s *underlay.Status) {
		s.Endpoints = []underlay.Endpoint{{Addr: outside, Kind: underlay.KindReflexive}}
		s.Relays, s.Home = []underlay.RelayStatus{at(other, false), at(home, true)}, home.ID()
		s.NAT.Mapping = stun.AddressDependent
	})
	eventually(t, "b knows where a is", func() bool {
		r := a.knownTo(b).record
		return slices.Equal(r.Endpoints, []netip.AddrPort{outside}) && slices.Equal(r.Relays, []identity.AgentPublic{home.Key})
	})
	serial := a.knownTo(b).record.Serial
	a.under().finds(func(*underlay.Status) {}) // nothing that peers should know: no record
	a.under().finds(func(s *underlay.Status) { s.Relays, s.Home = nil, 0 })
	eventually(t, "b knows that a left", func() bool { return len(a.knownTo(b).record.Relays) == 0 })
	if again := a.knownTo(b).record.Serial; again <= serial {
		t.Errorf("serial %d after %d", again, serial)
	}
	s, err := a.Status(t.Context())
	if err != nil || len(s.Self.Endpoints) != 1 || s.Self.Endpoints[0] != (localapi.Endpoint{Addr: outside, Kind: "reflexive"}) ||
		s.Self.NAT.Mapping != "address-dependent" {
		t.Errorf("status %+v %v", s.Self, err)
	}
}

// A node that begins to reach a peer calls it through the coordinator, and the peer reaches out to where the call says.
func TestPeersAreSignalled(t *testing.T) {
	a, b, _ := wiredPair(t)
	outside := netip.MustParseAddrPort("203.0.113.9:41000")
	a.under().mu.Lock() // found out just now: no record says it yet
	a.under().status.Endpoints = []underlay.Endpoint{{Addr: outside, Kind: underlay.KindReflexive}}
	a.under().mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	// More than once: if the nodes have called each other already, the next call has to wait.
	wg.Go(func() {
		for ctx.Err() == nil {
			_, _ = a.Ping(ctx, localapi.PingRequest{Target: "warehouse"})
		}
	})
	eventually(t, "b reaches out to a", func() bool { return b.under().sentTo(outside) > 0 })
	cancel()
	wg.Wait()
	if r := a.knownTo(b).record; len(r.Endpoints) > 0 {
		t.Errorf("b knew it from a record: %v", r.Endpoints)
	}
}

// Without the coordinator the relays are known from the last run, but those that somebody changed, or that the authority
// didn't sign, never are.
func TestRelaysOutliveRestart(t *testing.T) {
	a, b, authority := wiredPair(t)
	a.end()
	eventually(t, "the coordinator is gone", func() bool {
		s, err := b.Status(t.Context())
		return err == nil && !s.Coordinator.Connected
	})
	de, us := statement(t, authority, 1, func(r *identity.RelayStatement) { r.Jurisdiction = "de" }),
		statement(t, authority, 2, func(r *identity.RelayStatement) { r.Jurisdiction = "us" })
	forged := statement(t, identity.AuthorityKeyFromSeed([32]byte{66}), 3, nil)
	b.take(b.member, []api.Event{{Type: api.EventRelays, Relays: [][]byte{de.Raw(), forged.Raw(), us.Raw()}}})
	if _, err := b.Up(t.Context(), localapi.UpRequest{AvoidJurisdictions: []string{"us", "us"}}); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		s, err := b.Status(t.Context())
		if err != nil || len(s.Self.Relays) != 2 || s.Self.Relays[0].Name != de.Name || s.Self.Relays[0].Avoided || !s.Self.Relays[1].Avoided ||
			!slices.Equal(s.Self.AvoidJurisdictions, []string{"us"}) {
			t.Errorf("%s: %+v %v", when, s.Self, err)
		}
		b.under().mu.Lock()
		defer b.under().mu.Unlock()
		if r := b.under().state.Relays; len(r) != 1 || r[0].Key != de.Key {
			t.Errorf("%s the underlay may use %+v", when, r)
		}
	}
	problem := func(message string) {
		t.Helper()
		s, err := b.Status(t.Context())
		if err != nil || !slices.ContainsFunc(s.Problems, func(p localapi.Problem) bool {
			return p.Code == localapi.CodeNoRelay && strings.Contains(p.Message, message)
		}) {
			t.Errorf("%+v %v", s.Problems, err)
		}
	}
	check("before")
	b.under().mu.Lock()
	b.under().status.Relays = []underlay.RelayStatus{{ID: de.ID(), Err: "connection refused"}}
	b.under().mu.Unlock()
	problem("reachable")
	b.end()
	b.Node, b.end = runNode(t, b.dir, b.system)
	eventually(t, "b is up again", func() bool {
		s, err := b.Status(t.Context())
		return err == nil && s.State == localapi.StateUp
	})
	check("after")
	if _, err := b.Up(t.Context(), localapi.UpRequest{AvoidJurisdictions: []string{"no such thing"}}); code(err) == "" {
		t.Error("a label that can't be one is taken")
	}
	if _, err := b.Up(t.Context(), localapi.UpRequest{AvoidJurisdictions: []string{"us", "de"}}); err != nil {
		t.Fatal(err)
	}
	problem("avoids")
	if _, err := b.Up(t.Context(), localapi.UpRequest{AvoidJurisdictions: []string{""}}); err != nil {
		t.Fatal(err)
	}
	b.under().mu.Lock()
	defer b.under().mu.Unlock()
	if r := b.under().state.Relays; len(r) != 2 {
		t.Errorf("none is avoided any more, and yet %+v", r)
	}
}

// A host that moved finds out everything anew, and opens its stream again without a pause.
func TestMovedHost(t *testing.T) {
	a, b, _ := wiredPair(t)
	refreshed := func() int {
		b.under().mu.Lock()
		defer b.under().mu.Unlock()
		return b.under().refreshes
	}
	poke(b.system.moved) // the same addresses: another route
	eventually(t, "the underlay looks again", func() bool { return refreshed() == 1 })
	lastSeen := b.knownTo(a).lastSeen
	s, err := b.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := s.Coordinator.Since
	b.member.engine.hostMoved()
	eventually(t, "b has come again", func() bool { return b.knownTo(a).lastSeen.After(lastSeen) })
	eventually(t, "b is connected", func() bool {
		s, err := b.Status(t.Context())
		return err == nil && s.Coordinator.Connected && s.Coordinator.Since.Equal(before)
	})
	if refreshed() != 2 {
		t.Errorf("%d", refreshed())
	}
}

func TestSlept(t *testing.T) {
	base := clocks{monotonic: time.Hour, wall: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	for _, c := range []struct {
		monotonic, wall, want time.Duration
	}{
		{10 * time.Second, 10 * time.Second, 0},
		{12 * time.Second, 12 * time.Second, 0},                           // a look that was a little late
		{10 * time.Second, 11 * time.Second, 0},                           // a correction of the clock
		{10 * time.Second, 10 * time.Hour, 10*time.Hour - 10*time.Second}, // the host slept
		{time.Minute, time.Minute, 50 * time.Second},                      // the process did
		{10 * time.Second, -time.Hour, time.Hour + 10*time.Second},        // the clock was set back
	} {
		if got := base.slept(clocks{base.monotonic + c.monotonic, base.wall.Add(c.wall)}, 10*time.Second); got != c.want {
			t.Errorf("%v, %v: %v, not %v", c.monotonic, c.wall, got, c.want)
		}
	}
}

// TestAbuse11SignalsOfOthers: what isn't a trusted peer's own call of just now moves nothing.
func TestAbuse11SignalsOfOthers(t *testing.T) {
	a, b, authority := wiredPair(t)
	network, now := authority.Public(), time.Now()
	stranger := identity.AgentKeyFromSeed([32]byte{66})
	signal := func(from identity.AgentKey, to identity.AgentPublic, at time.Time) []byte {
		s, err := identity.Signal{Network: network, To: to, Serial: uint64(at.UnixMilli())}.Sign(from)
		if err != nil {
			t.Fatal(err)
		}
		return s.Raw()
	}
	good := signal(a.key, b.key.Public(), now)
	for what, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"a stranger's":   {signal(stranger, b.key.Public(), now), errStranger},
		"for another":    {signal(a.key, stranger.Public(), now), errForeign},
		"an old one":     {signal(a.key, b.key.Public(), now.Add(-time.Hour)), errStale},
		"one to come":    {signal(a.key, b.key.Public(), now.Add(time.Hour)), errStale},
		"a changed one":  {append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1), identity.ErrSignature},
		"something else": {[]byte("nonsense"), identity.ErrEncoding},
	} {
		if err := b.called(b.member, c.raw); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := b.called(b.member, good); err != nil {
		t.Error(err)
	}
	if err := b.called(b.member, good); !errors.Is(err, errStale) {
		t.Errorf("twice the same: %v", err)
	}
	if _, err := b.Trust(t.Context(), localapi.TrustRequest{Action: localapi.ActionRevoke, Target: "planner"}); err != nil {
		t.Fatal(err)
	}
	if err := b.called(b.member, signal(a.key, b.key.Public(), now.Add(time.Second))); !errors.Is(err, errStranger) {
		t.Errorf("after the revocation: %v", err)
	}
}

// One peer is not called all the time, whatever the data path says, and a clock that was set back doesn't end the calls.
func TestSignalsAreRare(t *testing.T) {
	s, peer, now := newSignals(), identity.AgentPublic{1}, time.Now()
	first, ok := s.serial(peer, now)
	if !ok || first != uint64(now.UnixMilli()) {
		t.Errorf("%d %v", first, ok)
	}
	if _, ok := s.serial(peer, now.Add(signalEvery-1)); ok {
		t.Error("again at once")
	}
	if _, ok := s.serial(identity.AgentPublic{2}, now); !ok {
		t.Error("another peer")
	}
	if again, ok := s.serial(peer, now.Add(-time.Hour)); !ok || again != first+1 {
		t.Errorf("after the clock was set back: %d %v", again, ok)
	}
}

// TestAbuse23RelaysOfOthers: nobody but the authority names a relay, and an old word about one doesn't come back.
func TestAbuse23RelaysOfOthers(t *testing.T) {
	w := newWorld(t)
	b := w.book(w.agent(1), "planner")
	relay := func(n byte, serial uint64, change func(*identity.RelayStatement)) identity.RelayStatement {
		return statement(t, w.authority, n, func(r *identity.RelayStatement) {
			r.Serial, r.NotBefore, r.NotAfter = serial, w.now.Add(-time.Hour), w.now.Add(time.Hour)
			if change != nil {
				change(r)
			}
		})
	}
	set := func(list ...identity.RelayStatement) (bool, error) {
		var raw [][]byte
		for _, r := range list {
			raw = append(raw, r.Raw())
		}
		return b.setRelays(raw)
	}
	forged := statement(t, identity.AuthorityKeyFromSeed([32]byte{66}), 1, nil)
	one, newer, two := relay(1, 5, nil), relay(1, 6, func(r *identity.RelayStatement) { r.Jurisdiction = "de" }), relay(2, 1, nil)
	if changed, err := set(newer, two, two); !changed || err != nil || len(b.relays) != 2 {
		t.Errorf("%v %v %d", changed, err, len(b.relays))
	}
	if changed, err := set(forged); changed || !errors.Is(err, identity.ErrNetwork) || len(b.relays) != 2 {
		t.Errorf("%v %v %d", changed, err, len(b.relays))
	}
	if changed, err := set(one, two); changed || err != nil || b.relays[0].Jurisdiction != "de" {
		t.Errorf("%v %v %+v", changed, err, b.relays[0])
	}
	if got := b.usableRelays([]string{"de"}, w.now); len(got) != 1 || got[0].Key != two.Key {
		t.Errorf("%+v", got)
	}
	if got := b.usableRelays(nil, w.now.Add(2*time.Hour)); len(got) != 0 {
		t.Errorf("expired ones are used: %+v", got)
	}
	if next := b.nextExpiry(w.now); !next.Equal(one.NotAfter) {
		t.Errorf("looked at again at %v", next)
	}
	if changed, err := set(); !changed || err != nil || len(b.relays) != 0 {
		t.Errorf("an empty list: %v %v %d", changed, err, len(b.relays))
	}
	var many []identity.RelayStatement
	for i := range maxRelays + 10 {
		many = append(many, relay(9, 1, func(r *identity.RelayStatement) { r.Key = identity.AgentPublic{byte(i), byte(i >> 8), 9} }))
	}
	if _, err := set(many...); err != nil || len(b.relays) != maxRelays {
		t.Errorf("%d relays are kept, %v", len(b.relays), err)
	}
}

// Over which relays a peer is tried: those where it says that it is, then our own; none that may not be used.
func TestRelaysOfPeers(t *testing.T) {
	w := newWorld(t)
	b := w.book(w.agent(1), "planner")
	var all []identity.RelayStatement
	var raw [][]byte
	for n := range byte(5) {
		r := statement(t, w.authority, n, func(r *identity.RelayStatement) {
			r.NotBefore, r.NotAfter = w.now.Add(-time.Hour), w.now.Add(time.Hour)
			if n == 4 {
				r.Jurisdiction = "us"
			}
		})
		all, raw = append(all, r), append(raw, r.Raw())
	}
	take(t, false, second(b.setRelays(raw)))
	here := underlay.Status{Relays: []underlay.RelayStatus{at(all[1], false), at(all[0], true), {ID: all[3].ID(), Key: all[3].Key}}}
	plan := newRelayPlan(b.usableRelays([]string{"us"}, w.now), here)
	got := plan.of([]identity.AgentPublic{{99}, all[4].Key, all[2].Key})
	if want := []uint32{all[2].ID(), all[0].ID(), all[1].ID()}; !slices.Equal(got, want) {
		t.Errorf("%x, not %x", got, want)
	}
	nowhere := newRelayPlan(b.usableRelays([]string{"us"}, w.now), underlay.Status{})
	if got := nowhere.of(nil); len(got) != 4 || got[0] != all[0].ID() {
		t.Errorf("before anything is known: %x", got)
	}
	if got := relayKeys(here, true); !slices.Equal(got, []identity.AgentPublic{all[0].Key}) {
		t.Errorf("the record names %v", got)
	}
	if got := relayKeys(here, false); len(got) != 2 || got[0] != all[0].Key {
		t.Errorf("signals name %v", got)
	}
	for _, c := range []struct {
		here underlay.Status
		want paths.NAT
	}{
		{underlay.Status{}, paths.NATUnknown}, {here, paths.NATUnknown},
		{underlay.Status{NAT: underlay.NAT{Mapping: stun.None}}, paths.NATNone},
		{underlay.Status{NAT: underlay.NAT{Mapping: stun.EndpointIndependent}}, paths.NATEasy},
		{underlay.Status{NAT: underlay.NAT{Mapping: stun.AddressAndPortDependent}}, paths.NATHard},
		{underlay.Status{Relays: []underlay.RelayStatus{{Connected: true, Transport: "proxy", Since: w.now.Add(-bindLimit)}, {}}}, paths.NATBlocked},
		{underlay.Status{Relays: []underlay.RelayStatus{{Connected: true, Transport: "tls", Since: w.now}}}, paths.NATUnknown}, // UDP may follow
		{underlay.Status{Relays: []underlay.RelayStatus{{Connected: true, Transport: "tls"}, {Connected: true, Transport: "udp"}}}, paths.NATUnknown},
	} {
		if got := natKind(c.here, w.now); got != c.want {
			t.Errorf("%+v: %v", c.here, got)
		}
	}
	if path, kind, relay := b.describePath(underlay.Path{Relay: all[0].ID(), Remote: netip.MustParseAddrPort("[fd00::1]:0")}); path != "relay relay-0" ||
		kind != localapi.PathRelay || relay != "relay-0" {
		t.Errorf("%q %q %q", path, kind, relay)
	}
	if path, kind, _ := b.describePath(underlay.Path{Relay: 7}); !strings.HasPrefix(path, "relay 0") || kind != localapi.PathRelay {
		t.Errorf("%q %q", path, kind)
	}
}

// What an earlier version wrote is read: records that name no relays, no relays at all, and no pass for them, which the node
// asks for at once.
func TestStateOfEarlierVersion(t *testing.T) {
	dir, system := stateDir(t), newLateSystem(t)
	n, end := runNode(t, dir, system)
	if _, err := n.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	end()
	file := filepath.Join(dir, nodeFile)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	fields["version"] = 1
	delete(fields, "relays")
	if _, ok := fields["relay_pass"]; !ok {
		t.Error("there was no pass")
	}
	delete(fields, "relay_pass")
	delete(fields, "avoid_jurisdictions")
	delete(fields, "tun")
	if text, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	n, _ = runNode(t, dir, system)
	eventually(t, "it is up again", func() bool {
		s, err := n.Status(t.Context())
		return err == nil && s.State == localapi.StateUp && s.Coordinator.Connected
	})
	eventually(t, "it has a pass", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.member.book.pass.ValidAt(time.Now()) == nil
	})
	if text, err = os.ReadFile(file); err != nil || !bytes.Contains(text, fmt.Appendf(nil, `"version": %d`, stateVersion)) || !bytes.Contains(text, []byte(`"relay_pass"`)) ||
		!bytes.Contains(text, []byte(`"tun": "kernel"`)) {
		t.Errorf("%v:\n%s", err, text)
	}
}

// Two nodes between which no datagram passes directly talk over a relay, from the first ping on; and say so.
func TestSessionOverRelay(t *testing.T) {
	a, b, authority := wiredPair(t)
	relay := statement(t, authority, 1, nil)
	for _, n := range []*wiredNode{a, b} {
		n.take(n.member, []api.Event{{Type: api.EventRelays, Relays: [][]byte{relay.Raw()}}})
		n.under().finds(func(s *underlay.Status) {
			s.Endpoints = []underlay.Endpoint{{Addr: netip.MustParseAddrPort("192.168.1.2:7745"), Kind: underlay.KindHost}}
			s.Relays, s.Home = []underlay.RelayStatus{at(relay, true)}, relay.ID()
		})
	}
	eventually(t, "both know each other's relay", func() bool {
		return len(a.knownTo(b).record.Relays) == 1 && len(b.knownTo(a).record.Relays) == 1
	})
	r, err := a.Ping(t.Context(), localapi.PingRequest{Target: "warehouse"})
	if err != nil || r.Path != "relay relay-1" || r.PathKind != localapi.PathRelay || r.Relay != "relay-1" || r.Why == "" {
		t.Fatalf("ping: %+v %v", r, err)
	}
	s, err := b.Status(t.Context())
	if err != nil || len(s.Peers) != 1 || s.Peers[0].State != localapi.PeerConnected || s.Peers[0].Relay != "relay-1" || s.Peers[0].Why == "" {
		t.Errorf("status: %+v %v", s.Peers, err)
	}
	// And after a restart.
	b.end()
	b.Node, b.end = runNode(t, b.dir, b.system)
	eventually(t, "b is up again", func() bool {
		s, err := b.Status(t.Context())
		return err == nil && s.State == localapi.StateUp
	})
	b.under().finds(func(s *underlay.Status) { s.Relays, s.Home = []underlay.RelayStatus{at(relay, true)}, relay.ID() })
	eventually(t, "b reaches a", func() bool {
		// The coordinator, a relay itself, lists the network's as it knows them.
		b.take(b.member, []api.Event{{Type: api.EventRelays, Relays: [][]byte{relay.Raw()}}})
		r, err := b.Ping(t.Context(), localapi.PingRequest{Target: "planner"})
		return err == nil && r.Relay == "relay-1"
	})
	// A node that avoids the relay's jurisdiction has no path left.
	relay = statement(t, authority, 1, func(r *identity.RelayStatement) { r.Jurisdiction, r.Serial = "us", 2 })
	b.take(b.member, []api.Event{{Type: api.EventRelays, Relays: [][]byte{relay.Raw()}}})
	if _, err := b.Up(t.Context(), localapi.UpRequest{AvoidJurisdictions: []string{"us"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b is gone for a", func() bool {
		_, err := a.Ping(t.Context(), localapi.PingRequest{Target: "warehouse", Timeout: time.Second})
		return err != nil
	})
}
