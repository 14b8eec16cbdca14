// SPDX-License-Identifier: Apache-2.0

// Package node is one pilot daemon: it belongs to a network, does what its coordinator says as far as signatures bear it
// out, keeps trust, and serves the local API and this host's names.
//
// All that a node knows is in its book, which one lock guards. Whatever changes the book then saves it and turns it
// into a plan (a pure function) for the parts below. The coordinator is asked and listened to by goroutines of their own, and
// may be gone at any time.
package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/pilot-protocol/pilot/coordinator"
	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/magicdns"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/recent"
	"github.com/pilot-protocol/pilot/node/serve"
	"github.com/pilot-protocol/pilot/platform"
)

// Options of New. Only StateDir is needed.
type Options struct {
	StateDir string
	Version  string
	Log      *slog.Logger
	Now      func() time.Time
	System   System // nil: this host
	// DNSGuard is a command that undoes this host's DNS settings if this process is killed, see platform.Options.Guard.
	DNSGuard []string
	// Caller decides who may use the local API; nil: root, the daemon's own user, and the group "pilot".
	Caller localapi.Caller
	// Sealing is what keys may be sealed with; nil: what this system offers.
	Sealing platform.Sealing
	// Egress is what the program of a sandbox may reach outside of the network; nil: there is no sandbox.
	Egress Egress
	// Who says who is calling; nil: as the socket tells.
	Who func(net.Conn) (platform.Caller, error)
}

// Egress decides about names that are none of the network's, and tells what was decided.
type Egress interface {
	magicdns.Gate
	Status() localapi.Egress
}

// gate is not a nil Egress in an interface.
func (o Options) gate() magicdns.Gate {
	if o.Egress == nil {
		return nil
	}
	return o.Egress
}

// Node is one daemon. Its methods are safe for concurrent use.
type Node struct {
	opts   Options
	log    *slog.Logger
	recent *recent.Log // the latest lines of log
	now    func() time.Time
	system System
	shared *engine // of the daemon whose other agent this is; nil: it is the daemon's own, and makes one
	folder folder
	unlock func() error
	tasks  chan func(context.Context) error // goroutines that Run starts for requests
	stop   chan struct{}                    // closed once by Down
	once   sync.Once
	upLock chan struct{} // held while the network is being brought up
	// serveLock is held while published ports are changed.
	serveLock chan struct{}
	hosted    *hosted                                 // nil: none runs; guarded by upLock
	served    atomic.Pointer[coordinator.Coordinator] // the latest one of hosted, to count what it does as a relay
	locals    *locals

	mu     sync.Mutex // guards all below
	saved  savedNode
	disk   []byte // node.json as it was last written
	key    identity.AgentKey
	member *membership // nil while no network is up
}

// membership is a network that is up.
type membership struct {
	book         *book
	tunnels      []tunnelKey
	engine       *engine
	seat         *seat // in engine
	served       *serve.Server
	proxies      *proxies // nil: there are none
	savedProxies savedProxies
	client       atomic.Pointer[api.Client] // another one after a join that brought other addresses
	zone         string
	link         coordinatorLink
	synced       chan struct{}             // closed when the coordinator has told everything for the first time
	asking       *rate.Limiter             // questions of this host's programs about unknown names
	republish    chan struct{}             // one slot: there is something to tell the coordinator
	renew        chan struct{}             // one slot: look at what is due
	hurry        chan struct{}             // one slot: don't wait before the coordinator is tried again
	calls        chan identity.AgentPublic // peers to be signalled
	signals      signals
	told         identity.Record    // the last one that the coordinator took
	hangUp       context.CancelFunc // ends the present stream
	expiry       time.Time          // when a consent ends next, as of the last look
}

// coordinatorLink is how things stand with the coordinator.
type coordinatorLink struct {
	connected bool
	since     time.Time
	err       error
	nextTry   time.Time
}

// New locks and reads the state folder. Failures are *localapi.Error.
func New(o Options) (*Node, error) { return newNode(o, nil) }

// newNode makes a daemon, or with an engine one more agent of the daemon whose engine that is.
func newNode(o Options, shared *engine) (*Node, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	kept := recent.New(recentLog)
	o.Log = slog.New(kept.Handler(o.Log.Handler()))
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.System == nil {
		o.System = host{stateDir: o.StateDir, guard: o.DNSGuard, log: o.Log}
	}
	if o.Sealing == nil {
		o.Sealing = platform.SystemSealer
	}
	if o.Caller == nil {
		o.Caller = mayControl
	}
	if o.Who == nil {
		o.Who = platform.PeerCaller
	}
	if err := platform.SecureDir(o.StateDir, 0o700); err != nil {
		return nil, explain(err)
	}
	unlock, err := lockState(o.StateDir)
	if err != nil {
		return nil, err
	}
	n := &Node{
		opts: o, log: o.Log, recent: kept, now: o.Now, system: o.System, shared: shared, folder: newFolder(o.StateDir, o.Sealing), unlock: unlock,
		tasks: make(chan func(context.Context) error), stop: make(chan struct{}), upLock: make(chan struct{}, 1), serveLock: make(chan struct{}, 1),
		locals: newLocals(),
	}
	if err := n.load(); err != nil {
		return nil, errors.Join(err, unlock())
	}
	return n, nil
}

// lockState keeps others from using the folder.
func lockState(dir string) (unlock func() error, err error) {
	unlock, err = lockPatiently(filepath.Join(dir, lockFile))
	if errors.Is(err, platform.ErrLocked) {
		return nil, &localapi.Error{Code: localapi.CodeStateLocked, Message: "another daemon uses " + dir, Hint: "stop it with: pilot down"}
	}
	return unlock, explain(err)
}

const (
	lockLimit = 2 * time.Second // how long another may hold the state folder
	lockPause = 20 * time.Millisecond
)

// lockPatiently waits a moment for a lock: whoever undoes what a killed daemon left behind holds it for that long.
func lockPatiently(path string) (release func() error, err error) {
	for end := time.Now().Add(lockLimit); ; time.Sleep(lockPause) {
		release, err = platform.LockFile(path)
		if !errors.Is(err, platform.ErrLocked) || time.Now().After(end) {
			return release, err
		}
	}
}

// load reads what an earlier run saved.
func (n *Node) load() error {
	if err := n.folder.migrateAll(); err != nil {
		return err
	}
	if _, err := n.folder.read(nodeFile, &n.saved); err != nil {
		return err
	}
	n.saved.Version = stateVersion
	if !n.saved.member() {
		return nil
	}
	return n.checkSaved()
}

// checkSaved verifies what was saved before anything rests on it.
func (n *Node) checkSaved() error {
	var agent savedAgent
	found, err := n.folder.read(agentFile, &agent)
	if err != nil {
		return err
	}
	if !found {
		return damaged(filepath.Join(n.folder.dir, agentFile), errors.New("it is missing, and "+nodeFile+" needs it"))
	}
	if n.key, err = n.folder.agentKey(nil); err != nil {
		return err
	}
	if err := newBook(n.saved.Authority, n.key.Public()).load(n.saved); err != nil {
		return damaged(filepath.Join(n.folder.dir, nodeFile), err)
	}
	if _, err := servedPorts(n.saved.Served); err != nil {
		return damaged(filepath.Join(n.folder.dir, nodeFile), err)
	}
	_, err = n.folder.tunnelKeys(n.saved.Authority, n.key.Public())
	return err
}

// Cleanup undoes what a daemon that was killed left behind on this host. With a daemon running it does nothing but
// return [platform.ErrLocked].
func Cleanup(stateDir string) error {
	if _, err := os.Stat(stateDir); err != nil {
		return nil // there has never been one
	}
	unlock, err := platform.LockFile(filepath.Join(stateDir, lockFile))
	if err != nil {
		return explain(err)
	}
	err = platform.RestoreDNS(stateDir, slog.New(slog.DiscardHandler))
	socket := platform.SocketPath(stateDir)
	if info, stale := os.Lstat(socket); stale == nil && info.Mode().Type() == os.ModeSocket {
		err = errors.Join(err, os.Remove(socket)) // nobody listens: the lock is ours
	}
	return errors.Join(explain(err), unlock())
}

// Run serves the local API, brings the network up if it was up before, and returns when everything has ended: after
// Down or the end of ctx with nil, otherwise with what failed.
func (n *Node) Run(ctx context.Context) error {
	defer func() {
		if err := n.unlock(); err != nil {
			n.log.Warn("the state folder's lock", "error", err)
		}
	}()
	if err := n.system.RestoreDNS(); err != nil {
		n.log.Warn("the host's DNS settings of an earlier run could not be restored", "error", err)
	}
	listener, err := n.system.ListenLocal()
	if err != nil {
		return explain(err)
	}
	server := localapi.NewServer(localapi.ServerOptions{
		Daemon: n, Trust: n, Checker: n, Proxies: n, Connector: n, Publisher: n, Locals: n, Caller: n.opts.Caller, Metrics: n.metrics(), Log: n.log,
		Version: n.opts.Version, Diagnoser: n, Keys: n,
	})
	return n.runTasks(ctx, func(ctx context.Context) error { return server.Serve(ctx, listener) })
}

// runShared is Run for an agent of another one's daemon.
func (n *Node) runShared(ctx context.Context) error {
	defer func() {
		if err := n.unlock(); err != nil {
			n.log.Warn("the state folder's lock", "error", err)
		}
	}()
	return n.runTasks(ctx, func(context.Context) error { return nil })
}

// runTasks serves, and starts what requests need, until Down or the end of ctx.
func (n *Node) runTasks(ctx context.Context, serve func(context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group.Go(func() error { return serve(ctx) })
	group.Go(func() error {
		for {
			select {
			case task := <-n.tasks:
				group.Go(func() error { return task(ctx) })
			case <-n.stop:
				cancel()
				return nil
			case <-ctx.Done():
				return nil
			}
		}
	})
	n.mu.Lock()
	wanted := n.saved.Up && n.saved.member()
	n.mu.Unlock()
	if wanted {
		group.Go(func() error { n.resume(ctx); return nil })
	}
	return group.Wait()
}

// resume brings the network up again after a restart. It goes on trying: at boot the host may not be ready yet.
func (n *Node) resume(ctx context.Context) {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		_, err := n.Up(ctx, localapi.UpRequest{})
		if err == nil || ctx.Err() != nil {
			return
		}
		n.log.Error("the network is not up", "error", err, "next_try", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// start hands a goroutine to Run.
func (n *Node) start(ctx context.Context, task func(context.Context) error) error {
	select {
	case n.tasks <- task:
		return nil
	case <-n.stop:
	case <-ctx.Done():
		return ctx.Err()
	}
	return errEnding()
}

// ending reports whether somebody said down.
func (n *Node) ending() bool {
	select {
	case <-n.stop:
		return true
	default:
		return false
	}
}

func errEnding() error {
	return &localapi.Error{Code: localapi.CodeNotRunning, Message: "the daemon is ending", Hint: "run: pilot up"}
}

// Member tells whether this node belongs to a network, up or not.
func (n *Node) Member() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.saved.member()
}

// MemberOf tells whether this node belongs to the network of that authority, up or not.
func (n *Node) MemberOf(network identity.AuthorityPublic) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.saved.member() && n.saved.Authority == network
}

// Leave ends this agent's membership for good. The node is of no use afterwards.
func (n *Node) Leave(ctx context.Context) error {
	var m *membership
	if err := n.view(func(v *membership) error { m = v; return nil }); err != nil {
		return err
	}
	return explain(m.client.Load().Leave(ctx))
}

// Down ends the daemon: the network stays known, and pilot up brings it back.
func (n *Node) Down(context.Context) (localapi.DownResult, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.saved.Up = false
	err := n.saveLocked()
	n.once.Do(func() { close(n.stop) })
	return localapi.DownResult{PID: os.Getpid()}, err
}

// saveLocked writes node.json if it differs from what is on disk.
func (n *Node) saveLocked() error {
	if n.member != nil {
		n.member.book.save(&n.saved)
	}
	text, err := json.Marshal(n.saved)
	if err != nil {
		return err
	}
	if bytes.Equal(text, n.disk) {
		return nil
	}
	if err := n.folder.write(nodeFile, n.saved); err != nil {
		return err
	}
	n.disk = text
	return nil
}

// applyLocked hands what the book means to the parts below.
func (n *Node) applyLocked() error {
	m := n.member
	return m.seat.set(m.book.plan(planInput{
		tunnels: m.tunnels, connected: m.link.connected, now: n.now(), key: n.key, hosts: n.addresses(),
		here: m.engine.underlay.Status(), avoid: n.saved.AvoidJurisdictions,
	}))
}

// change lets f change the book, then saves and applies it. What f changed holds even if the disk is full.
func (n *Node) change(f func(*membership) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member == nil {
		return errNotUp()
	}
	if err := f(n.member); err != nil {
		return err
	}
	poke(n.member.renew) // a consent with an expiry may be new
	return errors.Join(n.applyLocked(), n.saveLocked())
}

// view lets f read the book.
func (n *Node) view(f func(*membership) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member == nil {
		return errNotUp()
	}
	return f(n.member)
}

// poke fills a one-slot channel.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// newTunnelKey makes a tunnel key and lets the identity sign it.
func newTunnelKey(network identity.AuthorityPublic, key identity.AgentKey, now time.Time) (tunnelKey, error) {
	t, err := identity.NewTunnelKey(rand.Reader)
	if err != nil {
		return tunnelKey{}, err
	}
	suites := identity.SuiteChaCha
	if platform.HasAES() {
		suites |= identity.SuiteAES
	}
	s, err := identity.TunnelStatement{
		Network: network, Tunnel: t.Public(), Suites: suites, NotBefore: now.Add(-tunnelSkew), NotAfter: now.Add(tunnelLife),
	}.Sign(key)
	if err != nil {
		return tunnelKey{}, fmt.Errorf("sign a tunnel key: %w", err)
	}
	return tunnelKey{key: t, statement: s}, nil
}
