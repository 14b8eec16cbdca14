// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/pilot-protocol/pilot/identity"
)

// Options of a client. All functions are called from several goroutines, and must not wait.
type Options struct {
	// Statement says which relay. It is the authority's, opened by the caller.
	Statement identity.RelayStatement
	// Network is the authority of the network whose relay it is.
	Network identity.AuthorityPublic
	// Key is the agent's that is the client.
	Key identity.AgentKey
	// Pass returns that agent's pass for relays as it is now.
	Pass func() []byte
	// Dial makes a TCP connection to host:port, through a proxy where there is one; a connection through one has a method
	// Proxied() bool that returns true. nil means net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// SendUDP sends a datagram from the node's UDP port. nil means that there is no UDP.
	SendUDP func(to netip.AddrPort, datagram []byte) error
	// Deliver gets each datagram that came over TLS, with the overlay address of its sender. It must not keep it.
	Deliver func(from netip.Addr, datagram []byte)
	// Gone is told that an agent is not connected to this relay, after something was sent to it. It may be nil.
	Gone func(to netip.Addr)
	// Changed is told that Status changed. It may be nil.
	Changed func()
	// Log may be nil.
	Log *slog.Logger
}

// State is how far a client is.
type State string

// The states.
const (
	StateConnecting State = "connecting" // no connection yet, or one after another was lost
	StateConnected  State = "connected"
	StateFailed     State = "failed" // the last attempt failed; another follows
)

// The transports of datagrams.
const (
	TransportUDP   = "udp"
	TransportTLS   = "tls"
	TransportProxy = "proxy" // TLS, through an HTTP proxy
)

// Status is what a client knows about its relay.
type Status struct {
	State     State
	Transport string         // of datagrams now: TransportUDP, TransportTLS, TransportProxy; empty unless connected
	RTT       time.Duration  // smoothed, over the transport; 0: not known yet
	Observed  netip.AddrPort // where the relay sees this node's UDP port; invalid unless Transport is TransportUDP
	Since     time.Time      // when the state began
	Err       error          // why the last attempt failed; nil when connected
}

var (
	// ErrNotConnected is returned by SendTLS while there is no connection.
	ErrNotConnected = errors.New("relay: not connected")
	// ErrQueueFull is returned by SendTLS when the connection is slower than what is sent.
	ErrQueueFull = errors.New("relay: the queue to the relay is full")
	// ErrTooLong is returned by SendTLS for more than MaxDatagram bytes.
	ErrTooLong = fmt.Errorf("relay: a datagram has more than %d bytes", MaxDatagram)
	// ErrServer is why a connection fails when its other end is not the relay.
	ErrServer = errors.New("relay: the server is not the relay that the authority named")

	errSilent = errors.New("relay: no answer")
)

const (
	connectLimit  = 15 * time.Second       // from the first dial to the welcome
	dialStagger   = 250 * time.Millisecond // between the addresses of a relay
	steadyAfter   = 30 * time.Second       // a connection that lasts as long clears the back-off
	maxRetry      = time.Minute
	replacedPause = 30 * time.Second // two nodes with one identity must not take turns faster
)

// Client keeps one agent connected to one relay. Its methods are safe for concurrent use, and none waits.
type Client struct {
	options Options
	log     *slog.Logger
	refresh chan struct{} // one slot
	live    atomic.Pointer[session]

	mu     sync.Mutex
	status Status
}

// New returns a client that connects when it is run.
func New(o Options) (*Client, error) {
	switch {
	case len(o.Statement.Addresses) == 0 || o.Statement.Network != o.Network:
		return nil, fmt.Errorf("relay: %w", identity.ErrNetwork)
	case o.Key.IsZero() || o.Pass == nil || o.Deliver == nil:
		return nil, errors.New("relay: a key, a pass and a receiver are needed")
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{KeepAlive: -1}).DialContext
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.Gone == nil {
		o.Gone = func(netip.Addr) {}
	}
	return &Client{
		options: o, log: o.Log.With("relay", o.Statement.Name), refresh: make(chan struct{}, 1),
		status: Status{State: StateConnecting, Since: time.Now()},
	}, nil
}

// Run keeps the connection until ctx ends, and returns nil then. It can be called once.
func (c *Client) Run(ctx context.Context) error {
	b := backoff.NewExponentialBackOff()
	b.Multiplier, b.MaxInterval = 2, maxRetry
	b.Reset()
	for {
		began := time.Now()
		err := c.connection(ctx)
		c.live.Store(nil)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steadyAfter {
			b.Reset()
		}
		pause := b.NextBackOff()
		var bye *ByeError
		if errors.As(err, &bye) && bye.Reason == ReasonReplaced {
			pause = max(pause, replacedPause)
		}
		c.log.Info("the connection to the relay ended", "error", err, "again_in", pause.Round(time.Millisecond))
		c.setStatus(Status{State: StateFailed, Since: time.Now(), Err: err})
		select {
		case <-ctx.Done():
			return nil
		case <-c.refresh:
			b.Reset()
		case <-time.After(pause):
		}
	}
}

// Status returns what is known now.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *Client) setStatus(s Status) {
	c.mu.Lock()
	c.status = s
	c.mu.Unlock()
	c.options.Changed()
}

// Refresh says that the host moved, woke, or has another way out: the UDP path is proved anew at once, and the connection
// made again if it doesn't answer.
func (c *Client) Refresh() {
	select {
	case c.refresh <- struct{}{}:
	default:
	}
}

// UDP returns where to send headers with datagrams behind them, and whether there is a way.
func (c *Client) UDP() (netip.AddrPort, bool) {
	if s := c.live.Load(); s != nil {
		if to := s.udp.Load(); to != nil {
			return *to, true
		}
	}
	return netip.AddrPort{}, false
}

// AppendHeader appends to b the 32 bytes that go before a datagram to the agent with an overlay address. They are worth
// something only while UDP has a way.
func (c *Client) AppendHeader(b []byte, to netip.Addr) []byte {
	s := c.live.Load()
	if s == nil {
		return Header{Address: to}.Append(b)
	}
	s.use()
	return Header{Slot: s.welcome.Slot, Token: s.welcome.Token, Address: to}.Append(b)
}

// SendTLS sends a datagram over the TLS connection. It returns ErrQueueFull rather than wait, and copies the datagram.
func (c *Client) SendTLS(to netip.Addr, datagram []byte) error {
	s := c.live.Load()
	switch {
	case s == nil:
		return ErrNotConnected
	case len(datagram) > MaxDatagram:
		return ErrTooLong
	}
	s.use()
	if s.out.Data(0, to, datagram, len(datagram), 0) == 0 {
		return ErrQueueFull
	}
	return nil
}

// Accept takes a UDP datagram whose first byte is TypeData or TypeControl. It returns what is inside of data from this
// relay, and the overlay address of the agent that the relay says it is from. All else is dropped or dealt with, and ok is
// false. It does not allocate for data, and neither does it write to d.
func (c *Client) Accept(d []byte, _ netip.AddrPort) (inner []byte, source netip.Addr, ok bool) {
	s := c.live.Load()
	if s == nil || len(d) == 0 {
		return nil, source, false
	}
	if d[0] == TypeControl {
		if m, ok := ParseControl(d); ok && m.Slot == s.slot && m.Token.Equal(s.token) && VerifyControl(d, &s.welcome.Secret) {
			select {
			case s.controls <- m:
			default: // a repeated one follows
			}
		}
		return nil, source, false
	}
	h, ok := ParseHeader(d)
	if !ok || h.Slot != s.slot || !h.Token.Equal(s.token) {
		return nil, source, false
	}
	s.heard.Store(true)
	return d[HeaderSize:], h.Address, true
}

// connection connects once and serves the connection until it ends.
func (c *Client) connection(ctx context.Context) error {
	c.setStatus(Status{State: StateConnecting, Since: time.Now(), Err: c.Status().Err})
	limited, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := c.dial(limited)
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := c.greet(limited, conn)
	if err != nil {
		return err
	}
	cancel()
	return s.run(ctx)
}

// dial connects to the first of the relay's addresses that answers as the relay. They begin one after another, and the
// next one early if one fails.
func (c *Client) dial(ctx context.Context) (*tls.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn *tls.Conn
		err  error
	}
	addresses := c.options.Statement.Addresses
	results := make(chan result, len(addresses))
	started, pending := 0, 0
	start := func() {
		addr := addresses[started]
		started++
		pending++
		go func() {
			conn, err := c.dialOne(ctx, addr)
			results <- result{conn, err}
		}()
	}
	start()
	var failures error
	for pending > 0 {
		var next <-chan time.Time
		if started < len(addresses) {
			next = time.After(dialStagger)
		}
		select {
		case r := <-results:
			pending--
			if r.err == nil {
				cancel()
				for range pending { // the others end now: none of them may outlive Run
					if late := <-results; late.err == nil {
						_ = late.conn.NetConn().Close()
					}
				}
				return r.conn, nil
			}
			failures = errors.Join(failures, r.err)
			if started < len(addresses) {
				start()
			}
		case <-next:
			start()
		}
	}
	return nil, failures
}

func (c *Client) dialOne(ctx context.Context, addr string) (*tls.Conn, error) {
	raw, err := c.options.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	Tune(raw)
	certificate, err := TLSCertificate(c.options.Key, time.Now())
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN}, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{*certificate},
		// The usual check by name and system roots is replaced by a stricter one: the key in the authority's statement.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if key, err := PeerKey(&cs); err != nil || key != c.options.Statement.Key || cs.NegotiatedProtocol != ALPN {
				return ErrServer
			}
			return nil
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("relay at %s: %w", addr, err), raw.Close())
	}
	return conn, nil
}

// greet says who we are, and learns our slot.
func (c *Client) greet(ctx context.Context, conn *tls.Conn) (*session, error) {
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s := newSession(c, conn)
	var err error
	if s.slot, s.token, err = randomSlot(); err != nil {
		return nil, err
	}
	hello := Hello{Slot: s.slot, Token: s.token, Pass: s.pass}
	if _, err := conn.Write(hello.Append(nil)); err != nil {
		return nil, err
	}
	t, body, err := ReadFrame(s.in)
	switch {
	case err != nil:
		return nil, err
	case t == FrameBye && len(body) > 0:
		return nil, &ByeError{Reason: Reason(body[0])}
	case t != FrameWelcome:
		return nil, fmt.Errorf("%w: the first is of type %d", ErrFrame, t)
	}
	if s.welcome, err = ParseWelcome(body); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	s.bind = newBinder(c.targets(s), s.welcome, rand.Reader)
	return s, conn.SetDeadline(time.Time{})
}

// targets are the UDP addresses at which the relay may be: the one that the connection goes to, and the other ones that
// its statement names as numbers. Names are not resolved.
func (c *Client) targets(s *session) []netip.AddrPort {
	if s.welcome.UDP == 0 || c.options.SendUDP == nil {
		return nil
	}
	var list []netip.AddrPort
	add := func(text string) {
		if ap, err := netip.ParseAddrPort(text); err == nil {
			to := netip.AddrPortFrom(ap.Addr().Unmap(), s.welcome.UDP)
			if !slices.Contains(list, to) {
				list = append(list, to)
			}
		}
	}
	if !s.proxied {
		add(s.conn.RemoteAddr().String())
	}
	for _, a := range c.options.Statement.Addresses {
		add(a)
	}
	return list
}

// randomSlot chooses what the relay writes into what it sends over UDP, so that nobody else can make it.
func randomSlot() (slot uint32, token Token, err error) {
	var b [12]byte
	if _, err := io.ReadFull(rand.Reader, b[:]); err != nil {
		return 0, token, err
	}
	return binary.BigEndian.Uint32(b[:]), Token(b[4:]), nil
}
