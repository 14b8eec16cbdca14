// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/platform"
)

// Files in the state folder.
const (
	keyFileName   = "relay.key"
	stateFileName = "relay.json"
	lockFileName  = "relay.lock"
)

var (
	// ErrNoNetwork is returned for a relay that belongs to no network yet and has no invite.
	ErrNoNetwork = errors.New("relayserver: this relay belongs to no network yet")
	// ErrOtherNetwork is returned for an invite to another network than the one that the relay belongs to.
	ErrOtherNetwork = errors.New("relayserver: this relay belongs to another network")
	// ErrStateFile is returned for a state file that can't be read. It is never replaced.
	ErrStateFile = errors.New("relayserver: the relay's state file is damaged; restore it, or remove it and join again")
	// ErrEnded is returned by Ready when Run has ended.
	ErrEnded = errors.New("relayserver: not running")
)

// StandaloneOptions are those of a relay that runs alone.
type StandaloneOptions struct {
	// StateDir has the relay's key and what it knows of its network. It is made if it is missing.
	StateDir string
	// Invite admits it; nil where it belongs to a network already.
	Invite *identity.Invite
	// Name is a label that no other relay has; empty: the one of its certificate, or one that is made of its key.
	Name string
	// Region is where it is; it may be empty.
	Region string
	// Listen is the TCP address; the UDP port has the same number, or the next one if that is taken.
	Listen string
	// Advertise are the host:port by which agents reach it, 1 to 8.
	Advertise []string
	// Rate limits what one client sends, as in Options.
	Rate int
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Standalone is a relay that runs alone: a member of the network with the tag for it, which the coordinators list as long
// as it says so again and again.
type Standalone struct {
	options StandaloneOptions
	log     *slog.Logger
	key     identity.AgentKey
	state   standaloneState // only Run changes it
	server  *Server
	unlock  func() error

	ready     chan struct{} // closed when statement is set
	ended     chan struct{}
	statement identity.RelayStatement
}

// standaloneState is the content of the state file.
type standaloneState struct {
	Version      int                      `json:"version"`
	Network      string                   `json:"network"`
	Authority    identity.AuthorityPublic `json:"authority"`
	Coordinators []string                 `json:"coordinators"`
	Certificate  []byte                   `json:"certificate,omitempty"`
}

const stateVersion = 1

// NewStandalone reads the state folder and opens the ports.
func NewStandalone(o StandaloneOptions) (*Standalone, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Standalone{options: o, log: o.Log, ready: make(chan struct{}), ended: make(chan struct{})}
	if err := s.open(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Standalone) open() (err error) {
	o := s.options
	if err := platform.SecureDir(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("the relay's state folder: %w", err)
	}
	if s.unlock, err = platform.LockFile(filepath.Join(o.StateDir, lockFileName)); err != nil {
		return fmt.Errorf("the relay's state folder: %w", err)
	}
	if s.key, err = LoadKey(filepath.Join(o.StateDir, keyFileName)); err != nil {
		return err
	}
	if err := s.readState(); err != nil {
		return err
	}
	switch invite := o.Invite; {
	case invite == nil && s.state.Authority.IsZero():
		return ErrNoNetwork
	case invite == nil:
	case !s.state.Authority.IsZero() && s.state.Authority != invite.Authority:
		return fmt.Errorf("%w: %s", ErrOtherNetwork, s.state.Network)
	default:
		s.state.Network, s.state.Authority, s.state.Coordinators = invite.NetworkName, invite.Authority, invite.Coordinators
	}
	listen := net.ListenConfig{KeepAliveConfig: api.KeepAlive()}
	listener, err := listen.Listen(context.Background(), "tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("the relay's port: %w", err)
	}
	host, ports := UDPPorts(listener.Addr(), 0)
	s.server, err = New(Options{
		Network: s.state.Authority, Key: s.key, Host: host, Ports: ports, Listener: listener, Rate: o.Rate, Log: o.Log, Now: o.Now,
	})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return nil
}

// UDPPorts is where to take UDP beside a TCP address: on the same host, and on the first port or the next one. A first
// port of 0 is that of the TCP address.
func UDPPorts(a net.Addr, first uint16) (host string, ports []uint16) {
	if ap := addrPort(a); ap.IsValid() {
		if !ap.Addr().IsUnspecified() {
			host = ap.Addr().String()
		}
		if first == 0 {
			first = ap.Port()
		}
	}
	ports = []uint16{first}
	if first > 0 && first < 65535 {
		ports = append(ports, first+1)
	}
	return host, ports
}

// Close gives up what NewStandalone has opened, in place of Run.
func (s *Standalone) Close() {
	if s.server != nil {
		_ = s.server.options.Listener.Close()
		s.server.Close()
	}
	if s.unlock != nil {
		if err := s.unlock(); err != nil {
			s.log.Warn("unlocking the state folder", "error", err)
		}
		s.unlock = nil
	}
}

// Addr is the TCP address that it listens on.
func (s *Standalone) Addr() net.Addr { return s.server.options.Listener.Addr() }

// Network is the name of its network.
func (s *Standalone) Network() string { return s.state.Network }

// Stats is what it has done.
func (s *Standalone) Stats() Stats { return s.server.Stats() }

// Ready waits until it is listed, and returns what the authority says of it then. It returns ErrEnded if Run ends before.
func (s *Standalone) Ready(ctx context.Context) (identity.RelayStatement, error) {
	select {
	case <-s.ready:
		return s.statement, nil
	case <-s.ended:
		return identity.RelayStatement{}, ErrEnded
	case <-ctx.Done():
		return identity.RelayStatement{}, ctx.Err()
	}
}

// Run joins, forwards and keeps itself listed until ctx ends, and returns nil then. What a coordinator refuses before it
// was ever listed, and the end of its membership, end it with an *api.Error. It can be called once.
func (s *Standalone) Run(ctx context.Context) error {
	defer close(s.ended)
	defer s.Close()
	client, err := api.NewClient(api.ClientOptions{
		Addresses: s.state.Coordinators, Authority: s.state.Authority, Key: s.key, Now: s.options.Now,
	})
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	if err := s.join(ctx, client); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error { return s.server.Run(inner) })
	g.Go(func() error { return s.keepListed(inner, client) })
	g.Go(func() error { return s.follow(inner, client) })
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// join becomes a member by the invite, unless it is one.
func (s *Standalone) join(ctx context.Context, client *api.Client) error {
	invite := s.options.Invite
	if invite == nil {
		return nil
	}
	acceptance, err := identity.Acceptance{Network: invite.Authority, Agent: s.key.Public()}.Sign(invite.Key)
	if err != nil {
		return err
	}
	req := api.JoinRequest{Acceptance: acceptance.Raw(), Relay: true}
	if len(s.state.Certificate) == 0 {
		req.Name = s.options.Name
		if req.Name == "" {
			req.Name = fmt.Sprintf("relay-%08x", identity.RelayID(s.key.Public()))
		}
	}
	m, err := client.Join(ctx, req)
	if err != nil {
		return err
	}
	return s.admitted(m)
}

// admitted keeps what a coordinator says of the membership.
func (s *Standalone) admitted(m api.Membership) error {
	cert, err := identity.OpenCertificate(m.Certificate, s.state.Authority)
	if err != nil || cert.Agent != s.key.Public() {
		return errors.Join(errors.New("relayserver: the coordinator sent a certificate that isn't this relay's"), err)
	}
	s.state.Certificate = m.Certificate
	if len(m.Coordinators) > 0 {
		s.state.Coordinators = m.Coordinators
	}
	return s.writeState()
}

// keepListed says again and again that it is a relay, and renews its certificate in time.
func (s *Standalone) keepListed(ctx context.Context, client *api.Client) error {
	tick := time.NewTicker(api.PingInterval)
	defer tick.Stop()
	retry := retries()
	listed := false
	for {
		err := s.list(ctx, client)
		var refusal *api.Error
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && !listed:
			listed = true
			close(s.ready)
		case err == nil:
		case api.HasCode(err, api.CodeRevoked), errors.As(err, &refusal) && !listed && final(refusal.Code):
			return err
		default:
			s.log.Warn("telling the coordinator of this relay", "error", err)
		}
		wait := tick.C
		if err == nil {
			retry.Reset()
		} else if d := retry.NextBackOff(); d < api.PingInterval {
			wait = time.After(d)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wait:
		}
	}
}

// final reports whether it is no use to ask again.
func final(code string) bool {
	switch code {
	case api.CodeUnavailable, api.CodeInternal, api.CodeRateLimited:
		return false
	}
	return true
}

func retries() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval = time.Second, 2, time.Minute
	b.Reset()
	return b
}

func (s *Standalone) list(ctx context.Context, client *api.Client) error {
	cert, err := identity.OpenCertificate(s.state.Certificate, s.state.Authority)
	if err != nil {
		return err
	}
	if now := s.options.Now(); !now.Before(cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3)) {
		m, err := client.Renew(ctx)
		if err != nil {
			return err
		}
		if err := s.admitted(m); err != nil {
			return err
		}
	}
	name := s.options.Name
	if name == "" {
		name = cert.Name
	}
	listing, err := client.PutRelay(ctx, api.RelayRequest{
		Name: name, Region: s.options.Region, Addresses: s.options.Advertise, UDPPort: s.server.UDPPort(),
	})
	if err != nil {
		return err
	}
	statement, err := identity.OpenRelayStatement(listing.Statement, s.state.Authority)
	if err != nil || statement.Key != s.key.Public() {
		return errors.Join(errors.New("relayserver: the coordinator sent a statement that isn't this relay's"), err)
	}
	select {
	case <-s.ready:
	default:
		s.statement = statement
	}
	return nil
}

// follow hears who is revoked.
func (s *Standalone) follow(ctx context.Context, client *api.Client) error {
	retry := retries()
	for {
		for event, err := range client.WatchRevocations(ctx) {
			if err != nil {
				s.log.Debug("the coordinator's stream ended", "error", err)
				break
			}
			retry.Reset()
			if event.Type == api.EventRevocation {
				s.revoke(event.Revocation)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry.NextBackOff()):
		}
	}
}

func (s *Standalone) revoke(raw []byte) {
	r, err := identity.OpenRevocation(raw, s.state.Authority)
	if err != nil {
		s.log.Warn("a revocation that isn't the authority's", "error", err)
		return
	}
	s.server.Revoke(r.Agent, r.Serial)
}

func (s *Standalone) readState() error {
	path := filepath.Join(s.options.StateDir, stateFileName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("the relay's state folder: %w", err)
	}
	if err := json.Unmarshal(data, &s.state); err != nil || s.state.Version != stateVersion || s.state.Authority.IsZero() ||
		len(s.state.Coordinators) == 0 {
		return fmt.Errorf("%w: %s", ErrStateFile, path)
	}
	if _, err := identity.OpenCertificate(s.state.Certificate, s.state.Authority); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrStateFile, path, err)
	}
	return nil
}

func (s *Standalone) writeState() error {
	s.state.Version = stateVersion
	data, err := json.MarshalIndent(s.state, "", "  ")
	if err != nil {
		return err
	}
	if err := platform.WriteFileAtomic(filepath.Join(s.options.StateDir, stateFileName), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("the relay's state folder: %w", err)
	}
	return nil
}
