// SPDX-License-Identifier: Apache-2.0

// Package serve publishes local ports under an agent's address: TCP connections and UDP flows of peers are passed on to a
// program of this host, and HTTP requests with headers that say who asks.
//
// Who may talk to a port at all is not decided here: what comes from a peer was sealed by it, and its packets were let in
// by consents and ports. What may be published is decided by who wants it, see [Target.Check].
package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/splice"
	"github.com/pilot-protocol/pilot/platform"
)

const (
	// maxFlows is how many connections a port has at once, maxPeerFlows how many of one peer; for udp a quarter of each.
	maxFlows     = 4096
	maxPeerFlows = 1024
	// dialLimit is how long a target may take to accept.
	dialLimit = 10 * time.Second
	// A connection on which nothing moves ends after idleLimit (RFC 5382, REQ-5), and after halfLimit where one side has
	// said all. Ends that are gone are found by TCP's keepalives long before.
	idleLimit = 2 * time.Hour
	halfLimit = 15 * time.Minute
	// retryTime is how long a port waits that could not be listened on.
	retryTime = 5 * time.Second
)

// Network is where peers are.
type Network interface {
	// ListenTCP and ListenUDP listen on the agent's address.
	ListenTCP(ctx context.Context, port uint16) (net.Listener, error)
	ListenUDP(ctx context.Context, port uint16) (net.PacketConn, error)
	// Caller says whose an address is.
	Caller(netip.Addr) (localapi.Agent, error)
}

// Port is one that is published. It is a value: equal ones are the same.
type Port struct {
	Protocol  string // localapi.ServeTCP, ServeUDP or ServeHTTP
	Port      uint16 // of the agent's address
	Target    Target
	Publisher Publisher
}

// key is what there can be one of.
type key struct {
	udp  bool
	port uint16
}

// Known tells whether there is such a protocol.
func Known(protocol string) bool {
	return protocol == localapi.ServeTCP || protocol == localapi.ServeUDP || protocol == localapi.ServeHTTP
}

// Same tells whether two can't be published at once.
func (p Port) Same(other Port) bool { return p.key() == other.key() }

func (p Port) key() key { return key{udp: p.Protocol == localapi.ServeUDP, port: p.Port} }

// Options of New. Network and Prefix are needed.
type Options struct {
	Network Network
	Prefix  netip.Prefix // of the network
	Socket  string       // the local API's, which is not to be published
	// Dial connects to targets, by tcp, udp or unix; nil: as a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Peer says who is at the other end of a Unix socket; nil: platform.PeerCaller.
	Peer func(net.Conn) (platform.Caller, error)
	Log  *slog.Logger
}

// Server publishes ports.
type Server struct {
	o       Options
	log     *slog.Logger
	splicer *splice.Splicer
	changed chan struct{} // one slot

	mu    sync.Mutex // guards all below
	ports map[key]*published
	ended bool
}

// New makes a server that publishes nothing yet.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Peer == nil {
		o.Peer = platform.PeerCaller
	}
	return &Server{o: o, log: o.Log, splicer: splice.New(), changed: make(chan struct{}, 1), ports: make(map[key]*published)}
}

// Set publishes these ports and no others. Connections to those that stay as they are go on, all others are reset. The
// error says which can't be listened on; that is tried again, and shown by Status, until they are set no more.
func (s *Server) Set(ctx context.Context, ports []Port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return net.ErrClosed
	}
	wanted := make(map[key]Port)
	for _, p := range ports {
		wanted[p.key()] = p
	}
	for k, p := range s.ports {
		if w, ok := wanted[k]; !ok || w != p.Port {
			p.remove()
			delete(s.ports, k)
		}
	}
	var errs []error
	for k, w := range wanted {
		if s.ports[k] != nil {
			continue
		}
		p := newPublished(s, w)
		s.ports[k] = p
		errs = append(errs, p.listen(ctx))
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

// Failing says why a port that is set can't be listened on; nil: it can.
func (s *Server) Failing(p Port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.ports[p.key()]; q != nil {
		return q.failed
	}
	return nil
}

// Run serves what is set until ctx ends, and returns when all connections have.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for {
		var retry <-chan time.Time // nil where every port is listened on: a daemon has a server for each of many agents
		s.mu.Lock()
		for _, p := range s.ports {
			if p.start(ctx) {
				group.Go(func() error { p.run(ctx); return nil })
			}
			if !p.begun {
				retry = time.After(retryTime)
			}
		}
		s.mu.Unlock()
		select {
		case <-s.changed:
		case <-retry:
		case <-ctx.Done():
			s.mu.Lock()
			s.ended = true
			for _, p := range s.ports {
				p.remove()
			}
			s.mu.Unlock()
			return group.Wait()
		}
	}
}

// Status lists what is published, by port.
func (s *Server) Status() []localapi.Served {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]localapi.Served, 0, len(s.ports))
	for _, p := range s.ports {
		list = append(list, p.status())
	}
	slices.SortFunc(list, func(a, b localapi.Served) int {
		if a.Port != b.Port {
			return int(a.Port) - int(b.Port)
		}
		return len(a.Protocol) - len(b.Protocol) // two of a port are tcp or http, and udp
	})
	return list
}

// explainListen says why a port can't be listened on.
func explainListen(p Port, err error) error {
	text := fmt.Sprintf("port %d of this agent's address", p.Port)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return &localapi.Error{Code: localapi.CodePortTaken, Message: text + " is in use",
			Hint: fmt.Sprintf("a program that listens on it is reached without pilot serve, where consents allow; or choose another: pilot serve %d=%s", p.Port%10000+10000, p.Target)}
	case errors.Is(err, fs.ErrPermission):
		return &localapi.Error{Code: localapi.CodePermission, Message: fmt.Sprintf("the daemon may not listen on %s: %v", text, err),
			Hint: "ports below 1024 need CAP_NET_BIND_SERVICE where there is an interface; choose another one, or run the daemon with it"}
	}
	return &localapi.Error{Code: localapi.CodeInternal, Message: fmt.Sprintf("can't listen on %s: %v", text, err), Hint: "it is tried again; see: pilot status"}
}
