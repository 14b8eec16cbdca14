// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/pilot-protocol/pilot/node/splice"
)

// maxRequest bounds a request's body, in bytes.
const maxRequest = 64 << 10

// Daemon is what the local API needs of the node. Failures are *Error; others are shown as INTERNAL.
type Daemon interface {
	Up(context.Context, UpRequest) (UpResult, error)
	Down(context.Context) (DownResult, error)
	Status(context.Context) (Status, error)
	Ping(context.Context, PingRequest) (PingResult, error)
	Invite(context.Context, InviteRequest) (InviteResult, error)
	Agents(context.Context) (AgentList, error)
	Trust(context.Context, TrustRequest) (TrustEntry, error)
	WhoIs(ctx context.Context, q string) (Agent, error)
}

// TrustLister is the read side of trust.
type TrustLister interface {
	TrustList(context.Context) (TrustList, error)
}

// Proxier tells how programs are let into the network.
type Proxier interface {
	Proxies(context.Context) (Proxies, error)
}

// Locals are the daemon's agents besides its own.
type Locals interface {
	// AddLocal makes one, which belongs to the caller.
	AddLocal(ctx context.Context, caller net.Conn, r LocalRequest) (LocalAgent, error)
	// RemoveLocal ends one for good, if it belongs to the caller.
	RemoveLocal(ctx context.Context, caller net.Conn, name string) (LocalAgent, error)
	ListLocals(ctx context.Context) (LocalList, error)
	// Acting returns the API of one, if it belongs to the caller.
	Acting(caller net.Conn, name string) (http.Handler, error)
}

// ActingHeader names the agent of the daemon's that a request is for; without it that is the daemon's own.
const ActingHeader = "Pilot-Acting-As"

// Caller decides by a connection who is calling. It returns an *Error to refuse.
type Caller func(net.Conn) error

// ServerOptions are what a Server needs. All but Locals, Metrics and Diagnoser are required.
type ServerOptions struct {
	Daemon    Daemon
	Trust     TrustLister
	Checker   Checker
	Proxies   Proxier
	Connector Connector
	Publisher Publisher
	Caller    Caller
	Locals    Locals       // optional
	Metrics   http.Handler // optional
	// Diagnoser is optional: without one there is no such path.
	Diagnoser Diagnoser
	Keys      KeyKeeper // optional, likewise
	Version   string    // of this program, for clients to compare
	Log       *slog.Logger
}

// Server answers the local API.
type Server struct {
	opts    ServerOptions
	mux     *http.ServeMux
	splicer *splice.Splicer
	streams *streams
}

// NewServer returns a server; Serve makes it answer.
func NewServer(opts ServerOptions) *Server {
	s := &Server{opts: opts, mux: http.NewServeMux(), splicer: splice.New(), streams: newStreams()}
	d := opts.Daemon
	s.mux.Handle("GET /v1/status", answer(func(r *http.Request) (any, error) { return d.Status(r.Context()) }))
	s.mux.Handle("POST /v1/up", post(d.Up))
	s.mux.Handle("POST "+downPath, answer(func(r *http.Request) (any, error) { return d.Down(r.Context()) }))
	s.mux.Handle("POST /v1/ping", post(d.Ping))
	s.mux.Handle("POST /v1/invites", post(d.Invite))
	s.mux.Handle("GET /v1/agents", answer(func(r *http.Request) (any, error) { return d.Agents(r.Context()) }))
	s.mux.Handle("GET /v1/trust", answer(func(r *http.Request) (any, error) { return opts.Trust.TrustList(r.Context()) }))
	s.mux.Handle("POST /v1/trust", post(d.Trust))
	s.mux.Handle("GET /v1/whois", answer(func(r *http.Request) (any, error) {
		return d.WhoIs(r.Context(), r.URL.Query().Get("q"))
	}))
	s.mux.Handle("POST /v1/netcheck", answer(func(r *http.Request) (any, error) { return opts.Checker.Netcheck(r.Context()) }))
	if opts.Diagnoser != nil {
		s.mux.Handle("GET /v1/diagnosis", answer(func(r *http.Request) (any, error) { return opts.Diagnoser.Diagnose(r.Context()) }))
	}
	s.mux.Handle("GET /v1/proxies", answer(func(r *http.Request) (any, error) { return opts.Proxies.Proxies(r.Context()) }))
	s.mux.HandleFunc("POST /v1/connect", s.connect)
	s.mux.Handle("GET /v1/serve", answer(func(r *http.Request) (any, error) { return opts.Publisher.ServeList(r.Context()) }))
	s.mux.Handle("POST /v1/serve", post(func(ctx context.Context, q ServeRequest) (ServeList, error) {
		return opts.Publisher.Serve(ctx, q)
	}))
	if l := opts.Locals; l != nil {
		s.mux.Handle("GET /v1/local", answer(func(r *http.Request) (any, error) { return l.ListLocals(r.Context()) }))
		s.mux.Handle("POST /v1/local", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			post(func(ctx context.Context, q LocalRequest) (LocalAgent, error) {
				return l.AddLocal(ctx, CallerConn(r.Context()), q)
			}).ServeHTTP(w, r)
		}))
		s.mux.Handle("DELETE /v1/local/{name}", answer(func(r *http.Request) (any, error) {
			return l.RemoveLocal(r.Context(), CallerConn(r.Context()), r.PathValue("name"))
		}))
	}
	if opts.Keys != nil {
		s.mux.Handle("GET /v1/keys", answer(func(r *http.Request) (any, error) { return opts.Keys.Keys(r.Context()) }))
		s.mux.Handle("POST /v1/keys", post(opts.Keys.MoveKeys))
	}
	if opts.Metrics != nil {
		s.mux.Handle("GET /metrics", opts.Metrics)
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, &Error{Code: CodeUsage, Message: "there is no " + r.Method + " " + r.URL.Path, Hint: "the CLI may be of another version"})
	})
	return s
}

type connKey struct{}

// CallerConn is the connection that a request came by, for whoever wants to know more of the caller; nil where ctx is none
// of a request's.
func CallerConn(ctx context.Context) net.Conn {
	conn, _ := ctx.Value(connKey{}).(net.Conn)
	return conn
}

// Serve answers on l until ctx ends, then lets running requests finish for two seconds. It closes l. It is called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer s.streams.close()
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelError), // panics, above all
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		srv.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP refuses what doesn't come from a local program that may call, then answers.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.opts.Version != "" {
		w.Header().Set(VersionHeader, s.opts.Version)
	}
	if err := s.admit(r); err != nil {
		fail(w, err)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	name, as := r.Header[ActingHeader]
	if !as {
		s.mux.ServeHTTP(w, r)
		return
	}
	api, err := s.acting(CallerConn(r.Context()), name)
	if err != nil {
		fail(w, err)
		return
	}
	r.Header.Del(ActingHeader)
	api.ServeHTTP(w, r)
}

// acting finds the API of another agent of the daemon's.
func (s *Server) acting(caller net.Conn, name []string) (http.Handler, error) {
	if s.opts.Locals == nil || len(name) != 1 {
		return nil, &Error{Code: CodeUsage, Message: "one agent of this daemon may be named by " + ActingHeader}
	}
	return s.opts.Locals.Acting(caller, name[0])
}

// Admitted answers requests that another server has admitted, in place of Serve: see Locals.Acting. They end with Close.
func (s *Server) Admitted() http.Handler { return s.mux }

// Close ends the streams of a server that doesn't Serve.
func (s *Server) Close() { s.streams.close() }

func (s *Server) admit(r *http.Request) error {
	for _, h := range []string{"Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode"} {
		if _, ok := r.Header[h]; ok {
			return &Error{Code: CodeForbidden, Message: "requests from web pages are refused (" + h + " header)"}
		}
	}
	if r.Host != host {
		return &Error{Code: CodeForbidden, Message: "the Host of a request must be \"" + host + "\""}
	}
	conn := CallerConn(r.Context())
	if conn == nil {
		return &Error{Code: CodeForbidden, Message: "the caller can't be told"}
	}
	return s.opts.Caller(conn)
}

// answer makes a handler of a function without a body.
func answer(f func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			fail(w, err)
			return
		}
		write(w, http.StatusOK, v)
	})
}

// post makes a handler of a function from a JSON body to a JSON answer.
func post[Q, A any](f func(context.Context, Q) (A, error)) http.Handler {
	return answer(func(r *http.Request) (any, error) {
		var q Q
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		return f(r.Context(), q)
	})
}

// decode reads the body of a request.
func decode(r *http.Request, q any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(q); err != nil {
		return &Error{Code: CodeUsage, Message: "the request can't be read: " + err.Error(), Hint: "the CLI may be of another version"}
	}
	return nil
}

func fail(w http.ResponseWriter, err error) {
	var e *Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e = &Error{Code: CodeTimeout, Message: "it did not end in time"}
	default:
		e = &Error{Code: CodeInternal, Message: err.Error(), Hint: "the daemon's log may say more"}
	}
	write(w, status(e.Code), errorBody{Error: e})
}

func write(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // where it fails the caller has gone: nobody is left to tell
}
