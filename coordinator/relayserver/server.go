// SPDX-License-Identifier: Apache-2.0

// Package relayserver is a relay: it forwards sealed datagrams between the members of a network that are connected to it.
// It learns who talks to whom, when and how much; it can read and change nothing, and keeps nothing.
//
// What travels is described in package relay (underlay/relay), which has the client.
package relayserver

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

// What a client may do by default.
const (
	DefaultRate    = 500_000_000 // bytes a second
	DefaultBurst   = 8 << 20     // bytes at once
	DefaultClients = 4096
)

const (
	helloLimit    = 10 * time.Second       // from the TLS handshake to the client's first frame
	idleLimit     = 5 * time.Minute        // without a ping
	checkInterval = time.Minute            // whether a client is still a member
	maxGreeted    = 512                    // connections at once whose clients have not said yet who they are
	clockSkew     = 5 * time.Minute        // that clocks may be apart
	queueLimit    = 1 << 20                // bytes that wait for a client's TLS connection
	gonePause     = 100 * time.Millisecond // between two times that a client is told of one that is gone
)

// Options of a relay.
type Options struct {
	// Network is the authority of the network that it serves.
	Network identity.AuthorityPublic
	// Key is the relay's own.
	Key identity.AgentKey
	// Host is the address to take UDP on; empty means all.
	Host string
	// Ports are those to try for UDP, in their order; after them a free one is taken.
	Ports []uint16
	// Listener takes TLS connections, for a relay that has a port of its own; nil where somebody else calls Serve.
	Listener net.Listener
	// Check refuses a member whose pass is a genuine one, such as a revoked one; nil refuses none. It is asked when a
	// member connects, and every minute from then on.
	Check func(context.Context, identity.RelayPass) error
	// Rate and Burst limit what one client sends, in bytes a second and bytes at once; 0 means the default, a negative
	// Rate no limit.
	Rate, Burst int
	// Clients is how many there may be at once; 0 means the default.
	Clients int
	// Log may be nil. What is logged never has names, addresses of agents, or anything that they send.
	Log *slog.Logger
	// Now is the clock for passes; nil means time.Now.
	Now func() time.Time
}

// Server is a relay. Its methods are safe for concurrent use.
type Server struct {
	options Options
	log     *slog.Logger
	key     identity.AgentPublic
	tls     *tls.Config
	udp     *udp // nil: none
	table   *table
	counts  counters
	greeted chan struct{} // a slot for each client that has not said yet who it is
	cookies [32]byte      // key of the challenges
	ended   chan struct{} // closed when Run ends: connections end, and no new ones begin
	conns   sync.WaitGroup

	mu      sync.Mutex
	stopped bool                            // guards conns against being waited for and added to at once
	revoked map[identity.AgentPublic]uint64 // serials up to which certificates and passes are void
}

// New opens the UDP port. A host without UDP gets a relay for TLS alone.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rate == 0 {
		o.Rate = DefaultRate
	}
	if o.Burst <= 0 {
		o.Burst = DefaultBurst
	}
	if o.Clients <= 0 {
		o.Clients = DefaultClients
	}
	if o.Key.IsZero() {
		return nil, errors.New("relayserver: a key is needed")
	}
	s := &Server{
		options: o, log: o.Log, key: o.Key.Public(), table: newTable(o.Clients), greeted: make(chan struct{}, maxGreeted),
		ended: make(chan struct{}), revoked: make(map[identity.AgentPublic]uint64),
	}
	if _, err := io.ReadFull(rand.Reader, s.cookies[:]); err != nil {
		return nil, fmt.Errorf("relayserver: %w", err)
	}
	certificate, err := relay.TLSCertificate(o.Key, o.Now())
	if err != nil {
		return nil, err
	}
	s.tls = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{relay.ALPN}, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{*certificate}, ClientAuth: tls.RequireAnyClientCert,
	}
	if s.udp, err = openUDP(s, o.Host, o.Ports); err != nil {
		s.log.Warn("the relay has no UDP port, only TLS", "error", err)
	}
	return s, nil
}

// Close gives up what New has opened, in place of Run.
func (s *Server) Close() { s.udp.close() }

// UDPPort is the port that it takes UDP on, 0 if there is none.
func (s *Server) UDPPort() uint16 {
	if s.udp == nil {
		return 0
	}
	return s.udp.port
}

// TLSConfig is for connections that name relay.ALPN. It is shared: do not write to it.
func (s *Server) TLSConfig() *tls.Config { return s.tls }

// Run forwards until ctx ends, and returns nil then: all connections have ended too. It can be called once.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.udp != nil {
		for _, l := range s.udp.loops {
			g.Go(l.run)
		}
	}
	if s.options.Listener != nil {
		g.Go(func() error { return s.accept(ctx) })
	}
	g.Go(func() error {
		<-ctx.Done()
		s.stop()
		return nil
	})
	return g.Wait()
}

// stop ends all connections, and UDP when they have ended.
func (s *Server) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	if s.options.Listener != nil {
		_ = s.options.Listener.Close()
	}
	close(s.ended)
	s.conns.Wait()
	s.udp.close()
}

// accept takes connections on the relay's own port.
func (s *Server) accept(ctx context.Context) error {
	for {
		conn, err := s.options.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("relayserver: %w", err)
		case err != nil: // no more descriptors, most likely
			s.log.Warn("taking a connection", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
			continue
		}
		go s.Serve(tls.Server(conn, s.tls))
	}
}

// Serve serves one connection until it ends, and closes it. The handshake may be done already.
func (s *Server) Serve(conn *tls.Conn) {
	defer conn.NetConn().Close()
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return
	}
	s.conns.Add(1)
	s.mu.Unlock()
	defer s.conns.Done()
	relay.Tune(conn.NetConn())
	c, err := s.greet(conn)
	if err == nil {
		err = c.run()
	}
	s.log.Debug("a relay connection ended", "error", err)
}

// Revoke ends an agent's connection and refuses its passes up to a serial.
func (s *Server) Revoke(agent identity.AgentPublic, serial uint64) {
	s.mu.Lock()
	s.revoked[agent] = max(serial, s.revoked[agent])
	s.mu.Unlock()
	if c := s.table.find(identity.Address(s.options.Network, agent)); c != nil && s.isRevoked(agent, c.member.Load().Serial) {
		c.end(relay.ReasonRevoked)
	}
}

func (s *Server) isRevoked(agent identity.AgentPublic, serial uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.revoked[agent]
	return ok && serial <= last
}

// member opens a pass and checks that it makes the agent a member now.
func (s *Server) member(ctx context.Context, agent identity.AgentPublic, raw []byte) (identity.RelayPass, relay.Reason, error) {
	pass, err := identity.OpenRelayPass(raw, s.options.Network)
	if err != nil {
		return pass, relay.ReasonMember, err
	}
	if pass.Agent != agent {
		return pass, relay.ReasonMember, errors.New("the pass is another agent's")
	}
	now := s.options.Now()
	if pass.ValidAt(now.Add(clockSkew)) != nil && pass.ValidAt(now.Add(-clockSkew)) != nil {
		return pass, relay.ReasonExpired, pass.ValidAt(now)
	}
	if s.isRevoked(agent, pass.Serial) {
		return pass, relay.ReasonRevoked, errors.New("the pass is revoked")
	}
	if err := s.check(ctx, pass); err != nil {
		return pass, relay.ReasonRevoked, err
	}
	return pass, 0, nil
}

func (s *Server) check(ctx context.Context, pass identity.RelayPass) error {
	if s.options.Check == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, helloLimit)
	defer cancel()
	return s.options.Check(ctx, pass)
}

// addrPort is the address of a connection's other end, unmapped; invalid if it has none.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
