// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// How often this host's programs may make the node ask about unknown names: so many a second, and in one go.
const (
	askRate  = 2
	askBurst = 30
)

// bringUp starts what carries packets, then the goroutines that talk with the coordinator. It is for one caller at a time.
func (n *Node) bringUp(ctx context.Context) error {
	n.mu.Lock()
	running := n.member != nil
	n.mu.Unlock()
	if running {
		return nil
	}
	m, err := n.prepare()
	if err != nil {
		return err
	}
	n.mu.Lock()
	if n.ending() { // somebody said down meanwhile: it shall not come up by itself the next time
		n.mu.Unlock()
		return errors.Join(errEnding(), n.abandon(m))
	}
	_, mode, _ := m.seat.describe()
	n.member, n.saved.Up, n.saved.TUN, n.saved.Proxies = m, true, mode, m.savedProxies
	err = n.applyLocked()
	if err == nil {
		err = n.saveLocked()
	}
	if err != nil {
		n.member = nil
		n.mu.Unlock()
		return errors.Join(err, n.abandon(m))
	}
	if n.shared == nil {
		m.engine.announce()
	}
	n.mu.Unlock()
	if err := n.start(ctx, func(ctx context.Context) error { return n.live(ctx, m) }); err != nil {
		return errors.Join(err, n.abandon(m))
	}
	select {
	case <-m.synced:
	case <-time.After(syncLimit):
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// prepare makes a membership of what was saved.
func (n *Node) prepare() (*membership, error) {
	m := &membership{
		book: newBook(n.saved.Authority, n.key.Public()), zone: n.saved.Network + ".internal",
		synced: make(chan struct{}), republish: make(chan struct{}, 1), renew: make(chan struct{}, 1),
		hurry: make(chan struct{}, 1), calls: make(chan identity.AgentPublic, waitingCalls), signals: newSignals(),
		asking: rate.NewLimiter(askRate, askBurst),
	}
	m.link.since = n.now()
	n.mu.Lock()
	saved := n.saved
	n.mu.Unlock()
	if err := m.book.load(saved); err != nil {
		return nil, damaged(nodeFile, err)
	}
	var err error
	if m.tunnels, err = n.folder.tunnelKeys(n.saved.Authority, n.key.Public()); err != nil {
		return nil, err
	}
	if len(m.tunnels) == 0 || !usable(m.tunnels[0].statement, n.now()) || n.folder.writtenAfter(n.now()) {
		if err := n.rotate(m); err != nil {
			return nil, err
		}
	}
	if err := n.connect(m); err != nil {
		return nil, err
	}
	if m.engine = n.shared; m.engine == nil {
		if m.engine, err = openEngine(engineOptions{
			system: n.system, network: n.saved.Authority, self: n.key.Public(), zone: m.zone, tun: wantedTUN(saved), gate: n.opts.gate(),
			socket: platform.SocketPath(n.opts.StateDir), log: n.log,
		}); err != nil {
			return nil, err
		}
	}
	if m.seat, err = m.engine.sit(n.key.Public(), n.saved.Authority); err != nil {
		return nil, errors.Join(err, n.abandon(m))
	}
	_, mode, _ := m.seat.describe()
	if n.shared != nil {
		mode = localapi.TUNKernel // proxies are there where they are asked for
	}
	if m.proxies, err = n.openProxies(&saved.Proxies, mode); err != nil {
		return nil, errors.Join(err, n.abandon(m))
	}
	m.savedProxies = saved.Proxies
	m.served = n.newServer(m.seat)
	return m, nil
}

// abandon undoes what prepare did, where live has not begun.
func (n *Node) abandon(m *membership) error {
	m.proxies.close()
	switch {
	case n.shared == nil:
		m.engine.abandon()
	case m.seat != nil:
		return m.seat.leave(m.book.network)
	}
	return nil
}

// wantedTUN is how packets shall get to programs: as they did before. An interface of the kernel's was the only way once;
// where the network comes up again by itself it is waited for.
func wantedTUN(s savedNode) string {
	switch {
	case s.TUN != "":
		return s.TUN
	case s.Up:
		return localapi.TUNKernel
	}
	return localapi.TUNAuto
}

// usable reports whether a tunnel key of an earlier run can be used on. One that was made later than now can't: the clock
// was ahead then, and peers would take this run's handshakes for replays of that one's.
func usable(t identity.TunnelStatement, now time.Time) bool {
	return !now.Before(t.NotBefore.Add(tunnelSkew)) && now.Before(t.NotAfter)
}

// coordinators lists whom to call: a coordinator in this process by the shortest way.
func (n *Node) coordinators() []string {
	if !n.saved.Hosted {
		return n.saved.Coordinators
	}
	host, port, err := net.SplitHostPort(n.saved.Listen)
	if err != nil {
		return n.saved.Coordinators
	}
	p, _ := strconv.Atoi(port)
	ip := net.ParseIP(host)
	if host == "" {
		ip = net.IPv6unspecified
	}
	if ip == nil {
		return []string{n.saved.Listen}
	}
	return loopback(&net.TCPAddr{IP: ip, Port: p})
}

// connect makes the client of the coordinators that are known now.
func (n *Node) connect(m *membership) error {
	client, err := api.NewClient(api.ClientOptions{
		Addresses: n.coordinators(), Authority: n.saved.Authority, Key: n.key, Now: n.now,
	})
	if err != nil {
		return err
	}
	if old := m.client.Swap(client); old != nil {
		old.CloseIdleConnections()
	}
	return nil
}

// live runs a membership until the daemon ends.
func (n *Node) live(ctx context.Context, m *membership) error {
	group, ctx := errgroup.WithContext(ctx)
	if n.shared == nil {
		group.Go(func() error { return m.engine.run(ctx, n.page(), func() { n.reapply(m) }) })
		group.Go(func() error { return n.watchHost(ctx, m) })
		group.Go(func() error { return n.answerMisses(ctx, m) })
		group.Go(func() error { return hearGone(ctx, m) })
		group.Go(func() error { return n.runLocals(ctx, m.engine) })
	}
	group.Go(func() error { return m.proxies.run(ctx) })
	group.Go(func() error { return m.served.Run(ctx) })
	group.Go(func() error { return n.republishPorts(ctx, m) })
	group.Go(func() error { return n.follow(ctx, m) })
	group.Go(func() error { return n.publish(ctx, m) })
	group.Go(func() error { return n.keepFresh(ctx, m) })
	group.Go(func() error { return n.listen(ctx, m) })
	group.Go(func() error { return n.call(ctx, m) })
	group.Go(func() error { return n.watchPlace(ctx, m) })
	group.Go(func() error { return n.watchMoves(ctx, m) })
	group.Go(func() error { n.greet(ctx, m); return nil })
	err := group.Wait()
	m.client.Load().CloseIdleConnections()
	n.mu.Lock()
	n.member = nil
	n.mu.Unlock()
	if n.shared != nil {
		err = errors.Join(err, m.seat.leave(m.book.network))
	}
	return err
}

// greetLimit bounds how many peers are greeted, and greetTime how long that may take.
const (
	greetLimit = 32
	greetTime  = 5 * time.Second
)

// greet opens sessions with the peers that were reachable when the node ended: theirs with the node's earlier run are
// dead, and they would notice only after seconds.
func (n *Node) greet(ctx context.Context, m *membership) {
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	var addrs []netip.Addr
	n.mu.Lock()
	for _, p := range m.book.plan(planInput{tunnels: m.tunnels, now: n.now()}).overlay.Peers {
		if m.book.peers[p.Agent].online && len(addrs) < greetLimit {
			addrs = append(addrs, p.Addr)
		}
	}
	n.mu.Unlock()
	var group errgroup.Group
	for _, a := range addrs {
		group.Go(func() error {
			_, err := m.engine.overlay.Ping(ctx, m.book.self, a)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		n.log.Debug("not all known peers answer", "error", err)
	}
}

// reapply hands the plan to the parts below once more.
func (n *Node) reapply(m *membership) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member != m {
		return
	}
	if err := n.applyLocked(); err != nil {
		n.log.Error("the state can't be applied", "error", err)
	}
}

// rotate puts a new tunnel key in front of the older ones, which go on answering for a while.
func (n *Node) rotate(m *membership) error {
	t, err := newTunnelKey(m.book.network, n.key, n.now())
	if err != nil {
		return err
	}
	keys := slices.Insert(slices.Clone(m.tunnels), 0, t)
	keys = slices.DeleteFunc(keys, func(k tunnelKey) bool { return n.now().After(k.statement.NotAfter) })
	keys = keys[:min(len(keys), keptTunnels)]
	if err := n.folder.saveTunnelKeys(keys); err != nil {
		return err
	}
	m.tunnels = keys
	return nil
}

// describe fills in what up shows.
func (n *Node) describe(r *localapi.UpResult) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.member
	if m == nil {
		return
	}
	r.Network, r.Zone = n.saved.Network, m.zone
	r.Name, r.FQDN = m.book.certificate.Name, m.book.certificate.Name+"."+m.zone
	r.Address, r.Key = identity.Address(m.book.network, m.book.self), m.book.self
	_, r.TUN, r.TUNWhy = m.seat.describe()
	r.SOCKS5, r.HTTPProxy = m.proxies.addrs()
	r.Hosted = n.saved.Hosted
	r.Coordinators = n.saved.Coordinators
	if r.Hosted {
		r.Coordinators = n.advertised(n.saved.Authority, n.saved.Listen)
	}
	for _, w := range m.engine.warnings() {
		r.Warnings = append(r.Warnings, w.Message)
	}
	if !m.link.connected {
		reason := "no answer yet"
		if m.link.err != nil {
			reason = explain(m.link.err).Error()
		}
		r.Warnings = append(r.Warnings, "the coordinator is not reachable: "+reason+"; known peers work meanwhile")
	}
}

// addresses lists those of this host's interfaces.
func (n *Node) addresses() []netip.Addr {
	addrs, err := n.system.Addresses()
	if err != nil {
		n.log.Warn("this host's addresses can't be read", "error", err)
	}
	return addrs
}
