// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

const (
	headerTimeout  = 10 * time.Second
	readTimeout    = 30 * time.Second
	writeTimeout   = 45 * time.Second
	idleTimeout    = 2 * time.Minute
	requestTimeout = 15 * time.Second // what the registry may take for one request
	lineTimeout    = 10 * time.Second // for one line of a stream
	maxHeader      = 16 << 10
)

// server puts the registry behind HTTP: who calls, how often, with what body.
type server struct {
	*registry
	hub       *hub
	closing   <-chan struct{} // ends the streams
	addresses *limiter[netip.Addr]
	joins     *limiter[netip.Addr]
	agents    *limiter[identity.AgentPublic]
	signals   *signals
	streams   slots
}

func newServer(r *registry, h *hub, closing <-chan struct{}) *server {
	return &server{
		registry: r, hub: h, closing: closing,
		addresses: newLimiter[netip.Addr](addressRate, addressBurst),
		joins:     newLimiter[netip.Addr](joinRate, joinBurst),
		agents:    newLimiter[identity.AgentPublic](agentRate, agentBurst),
		signals:   newSignals(),
		streams:   slots{used: make(map[identity.AgentPublic]int)},
	}
}

// endpoint answers one request with a value for JSON; nil stands for {}.
type endpoint func(r *http.Request, c caller) (any, error)

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/network", s.serve(s.getNetwork))
	mux.Handle("POST /v1/join", s.serve(s.known(s.postJoin)))
	mux.Handle("POST /v1/renew", s.serve(s.members(s.postRenew)))
	mux.Handle("PUT /v1/record", s.serve(s.members(s.putRecordRequest)))
	mux.Handle("GET /v1/agents", s.serve(s.members(s.getAgents)))
	mux.Handle("GET /v1/agents/{q}", s.serve(s.members(s.getAgent)))
	mux.Handle("POST /v1/consents", s.serve(s.members(s.postConsent)))
	mux.Handle("POST /v1/signals", s.serve(s.members(s.postSignalRequest)))
	mux.Handle("POST /v1/invites", s.serve(s.admins(s.postInvite)))
	mux.Handle("GET /v1/invites", s.serve(s.admins(s.getInvites)))
	mux.Handle("DELETE /v1/invites/{join}", s.serve(s.admins(s.deleteInviteRequest)))
	mux.Handle("POST /v1/revocations", s.serve(s.admins(s.postRevocation)))
	mux.Handle("POST /v1/leave", s.serve(s.members(s.postLeave)))
	mux.Handle("PUT /v1/relay", s.serve(s.members(s.putRelayRequest)))
	mux.Handle("GET /v1/relays", s.serve(s.members(s.getRelays)))
	mux.HandleFunc("GET /v1/watch", s.watch)
	mux.Handle("/", s.serve(func(r *http.Request, _ caller) (any, error) {
		return nil, fail(api.CodeNotFound, "", "there is no such endpoint")
	}))
	return mux
}

func (s *server) getNetwork(*http.Request, caller) (any, error) {
	return api.NetworkInfo{
		Name: s.network.Name, Authority: s.network.Authority, Zone: s.network.Name + zoneSuffix, Version: api.Version,
	}, nil
}

func (s *server) postJoin(r *http.Request, c caller) (any, error) {
	if !s.joins.allow(limitKey(c.addr), s.now()) {
		return nil, errRate()
	}
	var req api.JoinRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.join(r.Context(), c, req)
}

func (s *server) postRenew(r *http.Request, c caller) (any, error) { return s.renew(r.Context(), c) }

func (s *server) putRecordRequest(r *http.Request, c caller) (any, error) {
	var req api.RecordRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return nil, s.putRecord(r.Context(), c, req)
}

func (s *server) getAgents(r *http.Request, c caller) (any, error) {
	return s.registry.agents(r.Context(), c.agent)
}

func (s *server) getAgent(r *http.Request, c caller) (any, error) {
	return s.lookup(r.Context(), c.agent, r.PathValue("q"))
}

func (s *server) postConsent(r *http.Request, c caller) (any, error) {
	var req api.ConsentRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return nil, s.putConsent(r.Context(), c, req)
}

func (s *server) postSignalRequest(r *http.Request, c caller) (any, error) {
	var req api.SignalRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return nil, s.postSignal(r.Context(), c, req)
}

func (s *server) putRelayRequest(r *http.Request, c caller) (any, error) {
	var req api.RelayRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.putRelay(r.Context(), c, req)
}

func (s *server) getRelays(r *http.Request, _ caller) (any, error) {
	list, err := s.relays(r.Context())
	return api.Relays{Relays: list}, err
}

func (s *server) postInvite(r *http.Request, c caller) (any, error) {
	var req api.InviteRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return nil, s.createInvite(r.Context(), c, req)
}

func (s *server) getInvites(r *http.Request, _ caller) (any, error) { return s.invites(r.Context()) }

func (s *server) deleteInviteRequest(r *http.Request, c caller) (any, error) {
	return nil, s.deleteInvite(r.Context(), c, r.PathValue("join"))
}

func (s *server) postRevocation(r *http.Request, c caller) (any, error) {
	var req api.RevokeRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return nil, s.revoke(r.Context(), c, req)
}

func (s *server) postLeave(r *http.Request, c caller) (any, error) {
	return nil, s.leave(r.Context(), c)
}

// admit says who calls, as far as that is known, and holds back who calls too often.
func (s *server) admitCaller(r *http.Request) (caller, error) {
	var c caller
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		c.addr = ap.Addr().Unmap().WithZone("")
	}
	if !s.addresses.allow(limitKey(c.addr), s.now()) {
		return c, errRate()
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return c, nil
	}
	agent, err := api.ClientAgent(r.TLS)
	if err != nil {
		return c, fail(api.CodeUnauthenticated, hintCertificate, "the client certificate: %v", err)
	}
	if !s.agents.allow(agent, s.now()) {
		return c, errRate()
	}
	c.agent = agent
	return c, nil
}

const hintCertificate = "Show a certificate for the agent's Ed25519 key, signed with that key."

func errRate() *api.Error {
	return fail(api.CodeRateLimited, "Wait some seconds between attempts.", "too many requests")
}

// known wants a caller that has proved a key.
func (s *server) known(next endpoint) endpoint {
	return func(r *http.Request, c caller) (any, error) {
		if c.agent.IsZero() {
			return nil, fail(api.CodeUnauthenticated, hintCertificate, "a client certificate is needed")
		}
		return next(r, c)
	}
}

// members wants a caller that is a member now.
func (s *server) members(next endpoint) endpoint {
	return s.known(func(r *http.Request, c caller) (any, error) {
		if _, err := s.member(r.Context(), c.agent); err != nil {
			return nil, err
		}
		return next(r, c)
	})
}

// admins wants a member with the tag for it.
func (s *server) admins(next endpoint) endpoint {
	return s.known(func(r *http.Request, c caller) (any, error) {
		a, err := s.member(r.Context(), c.agent)
		if err != nil {
			return nil, err
		}
		if !a.admin() {
			err := fail(api.CodeForbidden, "Ask an agent with the tag admin, or the coordinator's operator.", "only agents with the tag %q may do this", api.TagAdmin)
			return nil, s.audit(r.Context(), c, "admin", r.Pattern, "", err) // the path is the caller's, and may be long
		}
		return next(r, c)
	})
}

// serve makes an HTTP handler of an endpoint.
func (s *server) serve(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, api.MaxRequest)
		c, err := s.admitCaller(r)
		var v any
		if err == nil {
			v, err = e(r, c)
		}
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		if v == nil {
			v = struct{}{}
		}
		answer(w, http.StatusOK, v)
	})
}

func (s *server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e := s.toError(r, err)
	answer(w, status(e.Code), api.ErrorBody{Error: e})
}

// toError makes an answer of any error. What isn't the caller's doing is logged here and not told in detail.
func (s *server) toError(r *http.Request, err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	s.log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrConflict) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fail(api.CodeUnavailable, "Try again in some seconds.", "the coordinator's registry doesn't answer as it should")
	}
	return fail(api.CodeInternal, "The coordinator's log has the details.", "the coordinator failed")
}

func answer(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		status, data = http.StatusInternalServerError, []byte(`{"error":{"code":"INTERNAL","message":"the answer can't be encoded"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // the caller may be gone; nobody else is concerned
}

// status is the HTTP status of a code.
func status(code string) int {
	switch code {
	case api.CodeBadRequest, api.CodeNameInvalid:
		return http.StatusBadRequest
	case api.CodeUnauthenticated:
		return http.StatusUnauthorized
	case api.CodeNotMember, api.CodeForbidden, api.CodeRevoked, api.CodeJoinKeyUnknown, api.CodeJoinKeyExpired,
		api.CodeJoinKeyUsed, api.CodeJoinKeyRevoked:
		return http.StatusForbidden
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeNameTaken, api.CodeConflict:
		return http.StatusConflict
	case api.CodeRateLimited:
		return http.StatusTooManyRequests
	case api.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// decodeBody reads one JSON object. Fields that it doesn't know are left for newer coordinators.
func decodeBody(body io.Reader, v any) error {
	data, err := io.ReadAll(body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return fail(api.CodeBadRequest, "", "a request's body has at most %d bytes", api.MaxRequest)
	case err != nil:
		return fail(api.CodeBadRequest, "", "the body could not be read")
	}
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return fail(api.CodeBadRequest, "", "the body isn't a JSON object")
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fail(api.CodeBadRequest, "", "the body isn't the JSON that was expected: %v", err)
	}
	return nil
}

// watch serves a stream.
func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	c, err := s.admitCaller(r)
	if err == nil {
		_, err = s.members(func(*http.Request, caller) (any, error) { return nil, nil })(r, c)
	}
	if err == nil && !s.streams.take(c.agent) {
		err = fail(api.CodeRateLimited, "", "an agent has at most %d streams", maxStreams)
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer s.streams.free(c.agent)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	lines := lineWriter{w: w, control: http.NewResponseController(w)}
	if err := lines.begin(); err != nil {
		return
	}
	err = s.stream(ctx, s.hub, c, r.URL.RawQuery == api.ShowRevocations, func(e api.Event) error { return lines.write(e) })
	var e *api.Error
	switch {
	case r.Context().Err() != nil || errors.Is(err, errGone):
		return // the client is gone
	case errors.As(err, &e):
	case ctx.Err() != nil:
		e = fail(api.CodeUnavailable, "", "the coordinator is stopping")
	default:
		e = s.toError(r, err)
	}
	_ = lines.write(api.ErrorBody{Error: e}) // the last line; the client sees the end anyhow
}

// errGone says that the client of a stream doesn't read.
var errGone = errors.New("the client is gone")

// lineWriter writes JSON lines, each of which must leave within lineTimeout.
type lineWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (l lineWriter) begin() error {
	if err := l.control.SetReadDeadline(time.Time{}); err != nil { // it would end the connection
		return err
	}
	l.w.Header().Set("Content-Type", "application/x-ndjson")
	l.w.Header().Set("Cache-Control", "no-store")
	l.w.Header().Set("X-Content-Type-Options", "nosniff")
	return l.flush()
}

func (l lineWriter) write(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := l.control.SetWriteDeadline(time.Now().Add(lineTimeout)); err != nil {
		return errGone
	}
	if _, err := l.w.Write(append(data, '\n')); err != nil {
		return errGone
	}
	return l.flush()
}

func (l lineWriter) flush() error {
	if l.control.Flush() != nil {
		return errGone
	}
	return nil
}
