// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/coordinator/relayserver"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/platform"
)

// DefaultNetwork is the name of a network whose founder gave none.
const DefaultNetwork = "pilot"

// Files in the state folder.
// KeyFile is the name of the authority's key in the state folder.
const KeyFile = "authority.key"

const (
	rootFile    = "authority.pem" // the authority's TLS certificate, for curl --cacert
	networkFile = "network.json"
	lockFile    = "coordinator.lock"
	natsFolder  = "nats"
)

var (
	// ErrRegistryLost is returned by Run when the network's entry is gone from a registry that had it.
	ErrRegistryLost = errors.New("coordinator: the registry of this network is gone; restore the NATS data from a backup, or point to the NATS that has it")
	// ErrStateDamaged is returned by New when a file in the state folder can't be read.
	ErrStateDamaged = errors.New("coordinator: a state file is damaged; restore it from a backup")
	// ErrStopped is returned when Run has ended.
	ErrStopped = errors.New("coordinator: not running")
)

const shutdownTimeout = 5 * time.Second

// Options of a coordinator.
type Options struct {
	// Listen is the TCP address; empty means all addresses and api.DefaultPort.
	Listen string
	// StateDir has the authority key and, without NATS, the registry. It is made if it is missing.
	StateDir string
	// NATS is the URL of an existing NATS with JetStream; empty means one inside this process.
	NATS string
	// Network is the name of a network that doesn't exist yet; empty means DefaultNetwork.
	Network string
	// Advertise are the host:port under which nodes reach this coordinator.
	Advertise []string
	// Relay says what kind of relay it is beside.
	Relay RelayOptions
	// Authority is the key; nil means that of StateDir, which is made where no network exists yet.
	Authority *identity.AuthorityKey
	// Sealing is what the key may be sealed with; nil means what this system offers.
	Sealing platform.Sealing
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Coordinator is one coordinator process. Its methods are safe for concurrent use.
type Coordinator struct {
	options  Options
	ca       *ca.CA
	known    bool // the network exists, so the registry must have it
	listener net.Listener
	unlock   func() error
	leaf     leafSource
	relay    *relayserver.Server // nil: it is none
	relayKey identity.AgentPublic

	ready    chan struct{} // closed when registry is set
	stopped  chan struct{} // closed when Run has ended
	registry *registry
}

// networkState is the content of networkFile: which network this state folder belongs to.
type networkState struct {
	Version   int                      `json:"version"`
	Name      string                   `json:"name"`
	Authority identity.AuthorityPublic `json:"authority"`
}

const stateVersion = 1

// New reads the state folder and opens the TCP port; requests wait there until Run.
func New(o Options) (*Coordinator, error) {
	if o.Network == "" {
		o.Network = DefaultNetwork
	}
	if err := identity.ValidateNetworkName(o.Network); err != nil {
		return nil, fmt.Errorf("the network's name: %w", err)
	}
	if o.Listen == "" {
		o.Listen = ":" + strconv.Itoa(api.DefaultPort)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Coordinator{options: o, ready: make(chan struct{}), stopped: make(chan struct{})}
	if err := c.open(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Coordinator) open() (err error) {
	o := c.options
	if err := platform.SecureDir(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("the coordinator's state folder: %w", err)
	}
	if c.unlock, err = platform.LockFile(filepath.Join(o.StateDir, lockFile)); err != nil {
		return fmt.Errorf("the coordinator's state folder: %w", err)
	}
	state, err := c.readState()
	if err != nil {
		return err
	}
	key := o.Authority
	if key == nil {
		_, err := os.Stat(filepath.Join(o.StateDir, natsFolder))
		fresh := !c.known && errors.Is(err, fs.ErrNotExist)
		if o.Sealing == nil {
			o.Sealing = platform.SystemSealer
		}
		loaded, err := ca.Load(filepath.Join(o.StateDir, KeyFile), fresh, o.Sealing)
		if err != nil {
			return err
		}
		key = &loaded
	}
	if c.known && state.Authority != key.Public() {
		return fmt.Errorf("%w: %s is of %s and the authority key is %s", ErrStateDamaged, networkFile, state.Authority, key.Public())
	}
	if c.ca, err = ca.New(*key); err != nil {
		return err
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Root()})
	if err := platform.WriteFileAtomic(filepath.Join(o.StateDir, rootFile), root, 0o644); err != nil {
		return fmt.Errorf("the coordinator's state folder: %w", err)
	}
	listen := net.ListenConfig{KeepAliveConfig: api.KeepAlive()}
	if c.listener, err = listen.Listen(context.Background(), "tcp", o.Listen); err != nil {
		return fmt.Errorf("the coordinator's port: %w", err)
	}
	c.leaf = leafSource{ca: c.ca, names: c.names, now: o.Now}
	return c.openRelay()
}

// Close gives up what New has opened. It is for a coordinator that isn't run; Run does it itself.
func (c *Coordinator) Close() {
	if c.listener != nil {
		c.listener.Close()
	}
	if c.relay != nil {
		c.relay.Close()
	}
	if c.unlock != nil {
		if err := c.unlock(); err != nil {
			c.options.Log.Warn("unlocking the state folder", "error", err)
		}
		c.unlock = nil
	}
}

func (c *Coordinator) readState() (s networkState, err error) {
	path := filepath.Join(c.options.StateDir, networkFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return s, fmt.Errorf("the coordinator's state folder: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil || s.Authority.IsZero() {
		return s, fmt.Errorf("%w: %s", ErrStateDamaged, path)
	}
	if s.Version != stateVersion {
		return s, fmt.Errorf("%w: %s has version %d, and this program knows %d", ErrStateDamaged, path, s.Version, stateVersion)
	}
	c.known = true
	return s, nil
}

// Addr is the TCP address that it listens on.
func (c *Coordinator) Addr() net.Addr { return c.listener.Addr() }

// Authority is the public half of the network's key.
func (c *Coordinator) Authority() identity.AuthorityPublic { return c.ca.Authority() }

// Run serves until the context ends, and returns nil then. It can be called once.
func (c *Coordinator) Run(ctx context.Context) error {
	defer close(c.stopped)
	defer c.Close()
	o := c.options
	prefix := identity.NetworkPrefix(c.ca.Authority()).Addr().As16()
	s, err := store.Open(ctx, store.Options{
		URL: o.NATS, Dir: filepath.Join(o.StateDir, natsFolder), Prefix: "pilot-" + hex.EncodeToString(prefix[1:6]), Log: o.Log,
	})
	if err != nil {
		return err
	}
	defer s.Close()
	network, err := found(ctx, s, networkRecord{Name: o.Network, Authority: c.ca.Authority(), Created: o.Now().UTC()}, c.known)
	if err != nil {
		return err
	}
	if err := c.writeState(network); err != nil {
		return err
	}
	r := &registry{
		store: s, ca: c.ca, network: network, advertise: o.Advertise, now: o.Now, log: o.Log, updater: newUpdater(),
		refusals: newRefusals(), pulse: newPulse(),
	}
	err = c.serve(ctx, r)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func newUpdater() *updater { return &updater{seed: maphash.MakeSeed()} }

func (c *Coordinator) writeState(n networkRecord) error {
	if c.known {
		return nil
	}
	data, err := json.MarshalIndent(networkState{Version: stateVersion, Name: n.Name, Authority: n.Authority}, "", "  ")
	if err != nil {
		return err
	}
	if err := platform.WriteFileAtomic(filepath.Join(c.options.StateDir, networkFile), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("the coordinator's state folder: %w", err)
	}
	return nil
}

func (c *Coordinator) serve(ctx context.Context, r *registry) error {
	g, ctx := errgroup.WithContext(ctx)
	h := newHub(c.revoked)
	// The hub outlives the server, so that streams end in order.
	hubCtx, stopHub := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHub()
	following := make(chan struct{})
	g.Go(func() error { return h.run(hubCtx, r.store, func() { close(following) }) })
	select {
	case <-following:
	case <-ctx.Done():
		stopHub()
		return g.Wait()
	}
	c.registry = r
	if err := c.listRelay(ctx, r); err != nil {
		r.log.Warn("listing this coordinator as a relay", "error", err) // it is tried again
	}
	close(c.ready)
	srv := c.httpServer(newServer(r, h, ctx.Done()))
	g.Go(func() error {
		c.options.Log.Info("coordinator is up", "addr", c.Addr().String(), "network", r.network.Name, "authority", c.Authority().String())
		if err := srv.ServeTLS(c.listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving the coordinator's port: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		defer stopHub()
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if srv.Shutdown(stop) != nil {
			return srv.Close()
		}
		return nil
	})
	g.Go(func() error { return c.announce(ctx, r) })
	if c.relay != nil {
		g.Go(func() error { return c.relay.Run(ctx) })
		g.Go(func() error { return c.keepListed(ctx, r) })
	}
	return g.Wait()
}

func (c *Coordinator) httpServer(s *server) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	conf := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.RequestClientCert, // any key may knock; the handlers ask whose it is
		GetCertificate: c.leaf.get,
	}
	return &http.Server{
		Handler: s.handler(), Protocols: protocols,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(c.options.Log.Handler(), slog.LevelDebug),
		TLSConfig:      conf, TLSNextProto: c.relayProtocol(conf),
	}
}

// announce tells the other coordinators' members that this one is up.
func (c *Coordinator) announce(ctx context.Context, r *registry) error {
	if len(c.options.Advertise) == 0 {
		<-ctx.Done()
		return nil
	}
	key := presenceCoordinator + rand.Text()
	tick := time.NewTicker(api.PingInterval)
	defer tick.Stop()
	for {
		if err := put(ctx, r.store.Presence, key, coordinatorRecord{Addresses: c.options.Advertise}); err != nil && ctx.Err() == nil {
			r.log.Warn("announcing this coordinator", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Ready waits until the coordinator serves. It returns ErrStopped if Run ends before.
func (c *Coordinator) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-c.stopped:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CreateInvite makes a join key known in the name of the process's operator, or of the agent whose consent it carries.
// It waits until the coordinator is ready.
func (c *Coordinator) CreateInvite(ctx context.Context, req api.InviteRequest) error {
	if err := c.Ready(ctx); err != nil {
		return err
	}
	return c.registry.createInvite(ctx, caller{}, req)
}

// names are those that the TLS certificate is made for, at the moment that it is made.
func (c *Coordinator) names() []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	for _, a := range c.options.Advertise {
		if host, _, err := net.SplitHostPort(a); err == nil {
			names = append(names, host)
		}
	}
	if ap, err := netip.ParseAddrPort(c.listener.Addr().String()); err == nil && !ap.Addr().IsUnspecified() {
		return append(names, ap.Addr().Unmap().WithZone("").String())
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		c.options.Log.Debug("listing this host's addresses", "error", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			names = append(names, p.Addr().String())
		}
	}
	return names
}

// leafSource makes the TLS certificate and renews it.
type leafSource struct {
	ca    *ca.CA
	names func() []string
	now   func() time.Time

	mu      sync.Mutex
	current *tls.Certificate
	made    time.Time
}

func (l *leafSource) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if age := now.Sub(l.made); l.current != nil && age >= 0 && age < ca.RenewAfter {
		return l.current, nil
	}
	leaf, err := l.ca.Leaf(l.names(), now)
	if err != nil {
		return nil, err
	}
	l.current, l.made = leaf, now
	return leaf, nil
}
