// SPDX-License-Identifier: Apache-2.0

// Package gateway lets programs that know nothing of the network reach its agents: as a SOCKS5 proxy (RFC 1928, with names
// resolved here, and UDP) and as an HTTP proxy (RFC 9110, section 9.3.6, and requests in absolute form).
//
// Only agents are reached, by name or address. What is anywhere else is refused, unless the operator allows the internet:
// then an address is looked at after its name was resolved, and just before it is dialled, and this host, its links and
// its own networks are refused all the same. Whoever calls has to show a password: everybody on a host can connect to
// its loopback addresses.
package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/netstack/target"
	"github.com/pilot-protocol/pilot/node/splice"
)

// ErrForeign says that a name or an address is nobody's in the network.
var ErrForeign = errors.New("not a name or an address in the network")

const (
	// maxConns is how many connections a proxy has at once; more wait.
	maxConns = 4096
	// greetLimit is how long a caller may take to say what it wants, dialLimit how long to get there.
	greetLimit = 10 * time.Second
	dialLimit  = 30 * time.Second
	// A connection on which nothing moves ends after idleLimit, and after halfLimit where one side has said all. Ends that
	// are gone are found by TCP's keepalives long before.
	idleLimit = 2 * time.Hour
	halfLimit = 15 * time.Minute
)

// Network is where a gateway leads to.
type Network interface {
	// Resolve returns the address of an agent; what is nobody's is ErrForeign, or a *net.DNSError if it could only be a
	// name in the network.
	Resolve(ctx context.Context, host string) (netip.Addr, error)
	// DialContext connects to an address and port that Resolve returned.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// ListenPacket opens a UDP socket from which agents are sent to.
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// Options of New.
type Options struct {
	Network Network
	// SOCKS5 and HTTP are where the proxies listen, nil: there is none. Run closes them.
	SOCKS5, HTTP net.Listener
	// User and Password are what a caller has to show.
	User, Password string
	// Direct lets the internet be reached too.
	Direct bool
	// Resolver is for the internet's names; nil: the host's.
	Resolver *net.Resolver
	Log      *slog.Logger
}

// Gateway is the proxies of one agent.
type Gateway struct {
	o        Options
	log      *slog.Logger
	wanted   [2][sha256.Size]byte // hashes of user and password
	internet *net.Dialer          // nil: it may not be reached
	http     *http.Transport
	splicer  *splice.Splicer

	// flows are those of callers; none begins once closing.
	mu      sync.Mutex
	closing bool // guarded by mu
	flows   sync.WaitGroup
}

// New makes a gateway; Run makes it answer.
func New(o Options) *Gateway {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{
		o: o, log: o.Log, wanted: [2][sha256.Size]byte{sha256.Sum256([]byte(o.User)), sha256.Sum256([]byte(o.Password))},
		splicer: splice.New(),
	}
	if o.Direct {
		g.internet = &net.Dialer{Resolver: o.Resolver, ControlContext: publicOnly}
	}
	g.http = g.newTransport()
	return g
}

// Run answers until ctx ends, and returns when all connections have.
func (g *Gateway) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if g.o.SOCKS5 != nil {
		group.Go(func() error { return g.serveSOCKS(ctx, newLimited(g.o.SOCKS5, maxConns)) })
	}
	if g.o.HTTP != nil {
		group.Go(func() error { return g.serveHTTP(ctx, newLimited(g.o.HTTP, maxConns)) })
	}
	err := group.Wait()
	g.mu.Lock()
	g.closing = true
	g.mu.Unlock()
	g.flows.Wait()
	g.http.CloseIdleConnections()
	return err
}

// begin counts one more flow, unless the gateway is being closed.
func (g *Gateway) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing {
		return false
	}
	g.flows.Add(1)
	return true
}

// admits compares without telling by its time how much was right.
func (g *Gateway) admits(user, password []byte) bool {
	u, p := sha256.Sum256(user), sha256.Sum256(password)
	return subtle.ConstantTimeCompare(u[:], g.wanted[0][:])&subtle.ConstantTimeCompare(p[:], g.wanted[1][:]) == 1
}

// join makes the caller's connection one to far, until both have ended. How they end is seen by the programs on both sides.
func (g *Gateway) join(ctx context.Context, near, far net.Conn) {
	if err := g.splicer.Join(ctx, near, far, splice.Options{Idle: idleLimit, Half: halfLimit}); err != nil {
		g.log.Debug("a caller's connection broke off", "error", err)
	}
}

// dial connects a caller to where it wants to go. What is dialled is the address that was looked at.
func (g *Gateway) dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	if port == 0 {
		return nil, &net.AddrError{Err: "invalid port", Addr: host + ":0"}
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	addr, err := g.o.Network.Resolve(ctx, host)
	switch {
	case err == nil:
		return g.o.Network.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, port).String())
	case g.internet != nil && errors.Is(err, ErrForeign):
		return g.internet.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	}
	return nil, err
}

// forbiddenError says that an address is of a kind that no proxy may reach.
type forbiddenError struct {
	addr  netip.Addr
	class target.Class
}

func (e *forbiddenError) Error() string {
	return fmt.Sprintf("%v may not be reached: it is %s", e.addr, e.class)
}

// publicOnly refuses to connect a socket to what is not out in the world. It is asked about each address just before.
func publicOnly(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if class := target.ClassOf(ap.Addr()); class != target.Public {
		return &forbiddenError{addr: ap.Addr(), class: class}
	}
	return nil
}

// outcome is why a caller can't get where it wants to.
type outcome uint8

const (
	outcomeFailed outcome = iota
	outcomeForbidden
	outcomeRefused
	outcomeNoNetwork
	outcomeNoHost
	outcomeTimeout
)

func outcomeOf(err error) outcome {
	var forbidden *forbiddenError
	var name *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &forbidden), errors.Is(err, ErrForeign), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return outcomeForbidden
	case errors.Is(err, syscall.ECONNREFUSED):
		return outcomeRefused
	case errors.Is(err, syscall.ENETUNREACH):
		return outcomeNoNetwork
	case errors.Is(err, syscall.EHOSTUNREACH), errors.As(err, &name) && name.IsNotFound:
		return outcomeNoHost
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT), errors.As(err, &timeout) && timeout.Timeout():
		return outcomeTimeout
	}
	return outcomeFailed
}
