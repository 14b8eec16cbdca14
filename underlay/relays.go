// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

const (
	// maxRelays bounds how many relays are looked at, of those that a state has.
	maxRelays = 32
	// relayIdle is how long a relay that is not home, and that nothing was sent over, stays connected.
	relayIdle = 5 * time.Minute
	// maxWaiting is how many datagrams wait for a relay that is being connected, and waitingLimit how long.
	maxWaiting   = 64
	waitingLimit = 5 * time.Second
	// trialRelays is how many are connected to find the nearest where none of them answers over UDP.
	trialRelays = 3
	// The relays are looked after at these intervals: while something is being waited for, and otherwise.
	busyLook = 250 * time.Millisecond
	calmLook = 30 * time.Second
	// elsewherePause is how often at most a new address at a relay lets the node ask anew: some translators choose another one
	// time and again.
	elsewherePause = 5 * time.Minute
)

// relayOptions are what the relays need of the underlay.
type relayOptions struct {
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	send    func(*Burst) error // from the node's port
	deliver func(*Burst)       // what came over TLS
	changed func()
	// gone is told that a relay has no client with the address of a path over it; must not wait.
	gone func(Path)
	// elsewhere is told that a relay sees the node's port at another address than before.
	elsewhere func()
	log       *slog.Logger
}

// relays keeps clients of the relays that are needed. Only manage, in one goroutine, starts and ends them.
type relays struct {
	relayOptions
	lines   atomic.Pointer[lineSet]
	kick    chan struct{} // one slot: look after them
	scratch sync.Pool     // of *scratch
	moved   atomic.Bool   // the host did
	told    time.Time     // elsewhere, last; the manager's alone

	mu       sync.Mutex
	home     home
	surveyed bool // the distances are known as far as they can be
}

// lineSet is immutable.
type lineSet struct {
	byID map[uint32]*line
	list []*line // as State has them
}

// line is one relay, and the client that is connected to it or tries to be.
type line struct {
	id        uint32
	statement identity.RelayStatement
	key       identity.AgentKey
	pass      *atomic.Pointer[[]byte]
	client    atomic.Pointer[relay.Client] // nil: not wanted
	wanted    atomic.Bool                  // something was sent since the last look
	gone      atomic.Bool                  // it is not in State any more
	measured  atomic.Int64                 // round trip by STUN, in nanoseconds; 0: not known

	// The manager's alone.
	stop     context.CancelFunc // ends the client
	lastUse  time.Time
	tried    bool           // it was connected to learn its distance
	lostFrom time.Time      // since when it is wanted and not connected; zero: it is connected
	seen     netip.AddrPort // where it saw the node's port last; invalid: nowhere yet

	mu      sync.Mutex
	waiting []waiting
}

// waiting is a datagram for which there is no connection yet.
type waiting struct {
	to       netip.Addr
	datagram []byte
	since    time.Time
}

// scratch is where datagrams are put behind headers.
type scratch struct{ burst Burst }

func newRelays(o relayOptions) *relays {
	r := &relays{relayOptions: o, kick: make(chan struct{}, 1)}
	r.lines.Store(&lineSet{})
	r.scratch.New = func() any { return &scratch{Burst{Data: make([]byte, 0, MaxBurst)}} }
	return r
}

// set takes over the relays that a state has. Those that are the same go on.
func (r *relays) set(s *State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.lines.Load()
	next := &lineSet{byID: make(map[uint32]*line, len(s.Relays))}
	for _, st := range s.Relays {
		id := st.ID()
		if next.byID[id] != nil || s.Key.IsZero() || len(s.Pass) == 0 || len(next.list) == maxRelays {
			continue
		}
		l := old.byID[id]
		if l == nil || !l.same(s, &st) {
			l = &line{id: id, statement: st, key: s.Key, pass: new(atomic.Pointer[[]byte])}
			r.surveyed = false
		}
		pass := s.Pass
		l.pass.Store(&pass)
		next.byID[id] = l
		next.list = append(next.list, l)
	}
	for _, l := range old.list {
		if next.byID[l.id] != l {
			l.gone.Store(true)
		}
	}
	r.lines.Store(next)
	r.poke()
}

// same reports whether a line can go on under a newer statement, which differs in its times then.
func (l *line) same(s *State, st *identity.RelayStatement) bool {
	return l.statement.Key == st.Key && l.statement.UDP == st.UDP && slices.Equal(l.statement.Addresses, st.Addresses) &&
		l.statement.Name == st.Name && l.statement.Region == st.Region && l.statement.Jurisdiction == st.Jurisdiction &&
		l.key.Public() == s.Key.Public() && l.statement.Network == s.Network
}

func (r *relays) poke() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// measure notes the distance of a relay; 0: it does not answer.
func (r *relays) measure(id uint32, rtt time.Duration) {
	if l := r.lines.Load().byID[id]; l != nil {
		l.measured.Store(int64(rtt))
	}
}

// settled says that all distances that can be known are.
func (r *relays) settled() {
	r.mu.Lock()
	r.surveyed = true
	r.mu.Unlock()
	r.poke()
}

// refresh says that the host moved.
func (r *relays) refresh() {
	r.moved.Store(true)
	for _, l := range r.lines.Load().list {
		if c := l.client.Load(); c != nil {
			c.Refresh()
		}
	}
}

// send sends a burst over its relay, or lets it wait for the connection.
func (r *relays) send(b *Burst) error {
	l := r.lines.Load().byID[b.Path.Relay]
	if l == nil {
		return ErrNoRelay
	}
	if !l.wanted.Load() {
		l.wanted.Store(true)
	}
	to := b.Path.Remote.Addr()
	if c := l.client.Load(); c != nil {
		if at, ok := c.UDP(); ok {
			return r.sendUDP(c, at, to, b)
		}
		if err := sendTLS(c, to, b); !errors.Is(err, relay.ErrNotConnected) {
			return err
		}
	}
	if l.hold(to, b) {
		r.poke()
	}
	return nil
}

func sendTLS(c *relay.Client, to netip.Addr, b *Burst) error {
	for d := range b.Each {
		if err := c.SendTLS(to, d); err != nil {
			return err
		}
	}
	return nil
}

// sendUDP copies the datagrams behind headers, and sends as many as fit with one call.
func (r *relays) sendUDP(c *relay.Client, at netip.AddrPort, to netip.Addr, b *Burst) error {
	s, _ := r.scratch.Get().(*scratch)
	defer r.scratch.Put(s)
	out := &s.burst
	size := min(len(b.Data), b.Size) + relay.HeaderSize
	*out = Burst{Path: Path{Remote: at}, Data: out.Data[:0], Size: size, Class: b.Class}
	var first error
	count := 0
	flush := func() {
		if err := r.relayOptions.send(out); err != nil && first == nil {
			first = err
		}
		out.Data, count = out.Data[:0], 0
	}
	for d := range b.Each {
		if count == MaxSegments || len(out.Data)+relay.HeaderSize+len(d) > MaxBurst {
			flush()
		}
		out.Data = append(c.AppendHeader(out.Data, to), d...)
		count++
	}
	if count > 0 {
		flush()
	}
	return first
}

// hold keeps datagrams until there is a connection, the newest of them. It reports whether nothing waited before.
func (l *line) hold(to netip.Addr, b *Burst) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, now := len(l.waiting) == 0, time.Now()
	for d := range b.Each {
		if len(l.waiting) == maxWaiting {
			l.waiting = append(l.waiting[:0], l.waiting[1:]...)
		}
		l.waiting = append(l.waiting, waiting{to, bytes.Clone(d), now})
	}
	return first
}

// release returns what waits if there is a connection, and forgets what waited for too long.
func (l *line) release(now time.Time, connected bool) (ready []waiting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = slices.DeleteFunc(l.waiting, func(w waiting) bool { return now.Sub(w.since) > waitingLimit })
	if connected {
		ready, l.waiting = l.waiting, nil
	}
	return ready
}

// accept takes what a relay sent to the node's port.
func (r *relays) accept(d []byte, from netip.AddrPort) (inner []byte, path Path, ok bool) {
	for _, l := range r.lines.Load().list {
		c := l.client.Load()
		if c == nil {
			continue
		}
		inner, source, ok := c.Accept(d, from)
		if ok {
			return inner, Path{Relay: l.id, Remote: netip.AddrPortFrom(source, 0)}, true
		}
	}
	return nil, Path{}, false
}

// status tells how things stand with each relay.
func (r *relays) status() (list []RelayStatus) {
	home := r.homeID()
	for _, l := range r.lines.Load().list {
		st := &l.statement
		s := RelayStatus{
			ID: l.id, Key: st.Key, Name: st.Name, Region: st.Region, Jurisdiction: st.Jurisdiction,
			Home: l.id == home, RTT: time.Duration(l.measured.Load()),
		}
		if c := l.client.Load(); c != nil {
			now := c.Status()
			s.Connected, s.Since = now.State == relay.StateConnected, now.Since
			if s.Transport = now.Transport; s.Connected && now.RTT > 0 {
				s.RTT = now.RTT
			}
			if now.Err != nil {
				s.Err = now.Err.Error()
			}
		}
		list = append(list, s)
	}
	return list
}

// observed lists where the relays see the node's port, the home relay first.
func (r *relays) observed() (list []netip.AddrPort) {
	home := r.homeID()
	for _, l := range r.lines.Load().list {
		c := l.client.Load()
		if c == nil {
			continue
		}
		switch at := c.Status().Observed; {
		case !at.IsValid():
		case l.id == home:
			list = append([]netip.AddrPort{at}, list...)
		default:
			list = append(list, at)
		}
	}
	return list
}

// run looks after the clients until ctx ends.
func (r *relays) run(ctx context.Context) {
	var clients sync.WaitGroup
	defer clients.Wait()
	running := map[*line]bool{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
		case <-timer.C:
		}
		timer.Reset(r.manage(ctx, time.Now(), running, &clients))
		r.changed()
	}
}

// manage starts and ends clients, chooses the home relay, sends what waited. It returns after how long to look again.
func (r *relays) manage(ctx context.Context, now time.Time, running map[*line]bool, clients *sync.WaitGroup) time.Duration {
	r.mu.Lock()
	order, surveyed := r.lines.Load().list, r.surveyed
	r.mu.Unlock()
	wait := calmLook
	if r.moved.Swap(false) {
		for _, l := range order {
			l.tried = false
		}
	}
	for l := range running {
		if l.gone.Load() {
			l.end(running)
		}
	}
	r.chooseHome(now, order, surveyed)
	for _, l := range r.needed(now, order, surveyed) {
		if !running[l] && l.start(ctx, r, clients, now) {
			running[l] = true
		}
	}
	for l := range running {
		if l.id != r.homeID() && now.Sub(l.lastUse) > relayIdle {
			l.end(running)
			continue
		}
		connected := l.look(now)
		r.compare(l, now)
		if r.flush(l, now, connected); !connected {
			wait = busyLook
		}
	}
	return wait
}

// homeID returns the home relay's ID, or 0.
func (r *relays) homeID() uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.home.id
}

func (r *relays) chooseHome(now time.Time, order []*line, surveyed bool) {
	var list []candidate
	known := false
	for _, l := range order {
		c := candidate{id: l.id, rtt: l.rtt(), failed: !l.lostFrom.IsZero() && now.Sub(l.lostFrom) >= homePatience}
		c.connected = l.client.Load() != nil && l.lostFrom.IsZero()
		known = known || c.connected
		list = append(list, c)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.home.id == 0 && !surveyed && !known {
		return // the nearest will be known in a moment
	}
	old := r.home
	if r.home = old.choose(now, list); r.home.id != old.id {
		r.log.Info("the home relay changed", "from", old.id, "to", r.home.id)
		for _, l := range order {
			if l.id == old.id {
				l.lastUse = now // it stays for a while
			}
		}
	}
}

// needed lists the relays that shall be connected.
func (r *relays) needed(now time.Time, order []*line, surveyed bool) (list []*line) {
	id, trials := r.homeID(), trialRelays
	for _, l := range order {
		if !surveyed || l.measured.Load() > 0 {
			trials = 0
		}
	}
	for _, l := range order {
		used := l.wanted.Swap(false)
		// Where no relay answers over UDP the nearest is found by connecting to some.
		trial := trials > 0 && !l.tried
		if trials--; trial {
			l.tried = true
		}
		if used || trial {
			l.lastUse = now
		}
		if used || trial || l.id == id {
			list = append(list, l)
		}
	}
	return list
}

// rtt is the relay's distance as far as it is known.
func (l *line) rtt() time.Duration {
	if c := l.client.Load(); c != nil {
		if s := c.Status(); s.State == relay.StateConnected && s.RTT > 0 {
			return s.RTT
		}
	}
	return time.Duration(l.measured.Load())
}

// look notes whether the relay is connected.
func (l *line) look(now time.Time) bool {
	if l.client.Load().Status().State == relay.StateConnected {
		l.lostFrom = time.Time{}
		return true
	}
	if l.lostFrom.IsZero() {
		l.lostFrom = now
	}
	return false
}

// compare notes where a relay sees the node's port. Another address than before means that the way out of the network
// changed without the host's taking notice, as when a router dials in anew: what was found out may not hold any more.
func (r *relays) compare(l *line, now time.Time) {
	at := l.client.Load().Status().Observed
	if !at.IsValid() || at == l.seen {
		return
	}
	first := !l.seen.IsValid()
	l.seen = at
	if !first && now.Sub(r.told) >= elsewherePause {
		r.told = now
		r.elsewhere()
	}
}

// flush sends what waited for the connection.
func (r *relays) flush(l *line, now time.Time, connected bool) {
	for _, w := range l.release(now, connected) {
		b := Burst{Path: Path{Relay: l.id, Remote: netip.AddrPortFrom(w.to, 0)}, Data: w.datagram, Size: len(w.datagram)}
		if err := r.send(&b); err != nil {
			r.log.Debug("what waited for the relay is lost", "relay", l.statement.Name, "error", err)
		}
	}
}

// start runs a client.
func (l *line) start(ctx context.Context, r *relays, clients *sync.WaitGroup, now time.Time) bool {
	c, err := relay.New(relay.Options{
		Statement: l.statement, Network: l.statement.Network, Key: l.key,
		Pass: func() []byte { return *l.pass.Load() },
		Dial: r.dial,
		SendUDP: func(to netip.AddrPort, d []byte) error {
			return r.relayOptions.send(&Burst{Path: Path{Remote: to}, Data: d, Size: len(d)})
		},
		Deliver: func(from netip.Addr, d []byte) {
			r.deliver(&Burst{Path: Path{Relay: l.id, Remote: netip.AddrPortFrom(from, 0)}, Data: d, Size: len(d)})
		},
		Gone:    func(to netip.Addr) { r.gone(Path{Relay: l.id, Remote: netip.AddrPortFrom(to, 0)}) },
		Changed: r.poke, Log: r.log,
	})
	if err != nil {
		r.log.Error("a relay can't be used", "relay", l.statement.Name, "error", err)
		return false
	}
	ctx, l.stop = context.WithCancel(ctx)
	l.lostFrom = now
	l.client.Store(c)
	clients.Go(func() {
		if err := c.Run(ctx); err != nil {
			r.log.Error("a relay's client ended", "relay", l.statement.Name, "error", err)
		}
	})
	return true
}

// end ends the client.
func (l *line) end(running map[*line]bool) {
	l.stop()
	l.client.Store(nil)
	l.lostFrom, l.lastUse = time.Time{}, time.Time{}
	delete(running, l)
}
