// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

const (
	// headerLimit is how long a caller may take for the head of a request, stallLimit how long it may send nothing of a body
	// that it announced, or take nothing of an answer, and keepLimit how long a connection is kept for its next request.
	headerLimit = 10 * time.Second
	stallLimit  = time.Minute
	keepLimit   = 2 * time.Minute
	// maxHead bounds the head of a request, in bytes, and maxStreams the requests at once of one HTTP/2 connection.
	maxHead    = 64 << 10
	maxStreams = 100
)

// httpServer passes requests on, with headers that say whose they are.
type httpServer struct {
	p     *published
	plain *http.Transport // HTTP/1.1
	h2c   *http.Transport // HTTP/2 without TLS, as gRPC has it
	proxy *httputil.ReverseProxy

	mu      sync.Mutex // guards closing
	closing bool
	running sync.WaitGroup // handlers
}

// buffers are for answers on their way.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[32 << 10]byte); ok {
		return p[:]
	}
	return new([32 << 10]byte)[:]
}

func (b *buffers) Put(p []byte) { b.pool.Put((*[32 << 10]byte)(p)) }

// askedKey is under which a request's context has what is asked.
type askedKey struct{}

// asked is a request of a peer's.
type asked struct {
	by   localapi.Agent
	body *body // nil: none
}

func askedOf(ctx context.Context) *asked {
	a, _ := ctx.Value(askedKey{}).(*asked)
	return a
}

func newHTTPServer(p *published) *httpServer {
	h := &httpServer{p: p}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := p.s.dial(ctx, p.Target, p.Publisher)
		if ctx.Err() == nil {
			p.reached(err)
		}
		return conn, err
	}
	transport := func(set func(*http.Protocols, bool)) *http.Transport {
		t := &http.Transport{DialContext: dial, DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: keepLimit, Protocols: new(http.Protocols)}
		set(t.Protocols, true)
		return t
	}
	h.plain, h.h2c = transport((*http.Protocols).SetHTTP1), transport((*http.Protocols).SetUnencryptedHTTP2)
	h.proxy = &httputil.ReverseProxy{
		Rewrite: h.rewrite, Transport: h, FlushInterval: -1, ErrorHandler: h.failed, BufferPool: new(buffers),
		ErrorLog: slog.NewLogLogger(p.s.log.Handler(), slog.LevelDebug),
	}
	return h
}

// serveHTTP answers peers' requests.
func (p *published) serveHTTP(ctx context.Context) {
	h := newHTTPServer(p)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerLimit, IdleTimeout: keepLimit, MaxHeaderBytes: maxHead,
		Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(p.s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	_ = srv.Serve(acceptor{p: p, ctx: ctx}) // the listener was closed
	srv.Close()
	h.close()
}

// acceptor is the listener as net/http takes it.
type acceptor struct {
	p   *published
	ctx context.Context
}

func (a acceptor) Accept() (net.Conn, error) {
	conn, peer, err := a.p.accept(a.ctx)
	if err != nil {
		return nil, err
	}
	return &peerConn{Conn: conn, p: a.p, peer: peer}, nil
}

func (a acceptor) Close() error   { return a.p.tcp.Close() }
func (a acceptor) Addr() net.Addr { return a.p.tcp.Addr() }

// peerConn is a peer's connection, counted.
type peerConn struct {
	net.Conn
	p    *published
	peer netip.Addr
	once sync.Once
}

func (c *peerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.p.moved.Forth.Add(uint64(n))
	return n, err
}

// Write fails where the peer takes nothing for too long.
func (c *peerConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(stallLimit)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	c.p.moved.Back.Add(uint64(n))
	return n, err
}

// CloseWrite says that no more will be sent.
func (c *peerConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (c *peerConn) Close() error {
	c.once.Do(func() { c.p.flows.done(c.peer) })
	return c.Conn.Close()
}

// begin counts one more handler, unless the server is ending.
func (h *httpServer) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return false
	}
	h.running.Add(1)
	return true
}

// close waits for all handlers, whose contexts have ended.
func (h *httpServer) close() {
	h.mu.Lock()
	h.closing = true
	h.mu.Unlock()
	h.running.Wait()
	h.plain.CloseIdleConnections()
	h.h2c.CloseIdleConnections()
}

// ServeHTTP finds out who asks, each time anew, and passes the request on.
func (h *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.begin() {
		panic(http.ErrAbortHandler)
	}
	defer h.running.Done()
	if r.Method == http.MethodConnect {
		http.Error(w, "pilot: this is no proxy", http.StatusMethodNotAllowed)
		return
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	var a asked
	if err == nil {
		a.by, err = h.p.s.o.Network.Caller(peer.Addr())
	}
	if err != nil {
		h.p.flows.refuse()
		http.Error(w, "pilot: it can't be told whose request this is", http.StatusForbidden)
		return
	}
	if r.Body != nil && r.Body != http.NoBody {
		a.body = &body{ReadCloser: r.Body, to: http.NewResponseController(w)}
		r.Body = a.body
	}
	h.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), askedKey{}, &a)))
}

// body is that of a request, whose sender may not stall.
type body struct {
	io.ReadCloser
	to      *http.ResponseController
	over    bool
	stalled atomic.Bool
}

func (b *body) Read(p []byte) (int, error) {
	if b.over {
		return b.ReadCloser.Read(p)
	}
	if err := b.to.SetReadDeadline(time.Now().Add(stallLimit)); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.over = true
		b.stalled.Store(errors.Is(err, os.ErrDeadlineExceeded))
		if errors.Is(err, io.EOF) {
			_ = b.to.SetReadDeadline(time.Time{}) // the answer may take its time; fails where the caller has gone
		}
	}
	return n, err
}

// rewrite makes the target's request of a peer's.
func (h *httpServer) rewrite(r *httputil.ProxyRequest) {
	out := r.Out
	out.URL.Scheme, out.URL.Host = "http", h.p.Target.Addr.String()
	if h.p.Target.Unix != "" {
		out.URL.Host = "localhost"
	}
	out.URL.RawQuery = r.In.URL.RawQuery // the program decides what it makes of it
	// Another name is none of the proxy's business; what programs check it for is their own.
	out.Host = r.In.Host
	identify(out.Header, askedOf(r.In.Context()).by)
	r.SetXForwarded()
	// Headers after the body could not be looked at before the request is on its way.
	out.Trailer = nil
	if !strings.EqualFold(out.Header.Get("Upgrade"), "websocket") {
		// What a connection becomes must not be more requests, whose headers nobody would look at: h2c.
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
	}
}

// RoundTrip asks the target, in the protocol that it must know.
func (h *httpServer) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		return h.h2c.RoundTrip(r)
	}
	return h.plain.RoundTrip(r)
}

// failed answers in the target's place.
func (h *httpServer) failed(w http.ResponseWriter, r *http.Request, err error) {
	status, text := http.StatusBadGateway, "does not answer: "+plain(err).Error()
	var own *localapi.Error
	a := askedOf(r.Context())
	switch {
	case a.body != nil && a.body.stalled.Load():
		http.Error(w, "pilot: the rest of the request did not come", http.StatusRequestTimeout)
		return
	case errors.Is(err, context.Canceled):
		panic(http.ErrAbortHandler) // the caller has gone, or the port
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		status, text = http.StatusGatewayTimeout, "does not answer in time"
	case errors.As(err, &own):
		text = "may not be reached"
	}
	h.p.s.log.Debug("a request got no answer", "port", h.p.Port.Port, "error", err)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.Error(w, fmt.Sprintf("pilot: the program behind port %d %s", h.p.Port.Port, text), status)
}
