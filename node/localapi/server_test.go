// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon answers each call with what it was asked.
type daemon struct {
	calls []string
	err   error
	far   chan *net.TCPConn // ends of connections
}

func (d *daemon) note(call string) error { d.calls = append(d.calls, call); return d.err }

func (d *daemon) Up(_ context.Context, r UpRequest) (UpResult, error) {
	return UpResult{Name: r.Name}, d.note("up " + r.Name)
}
func (d *daemon) Down(context.Context) (DownResult, error) { return DownResult{PID: 7}, d.note("down") }
func (d *daemon) Status(context.Context) (Status, error) {
	return Status{State: StateUp}, d.note("status")
}
func (d *daemon) Ping(_ context.Context, r PingRequest) (PingResult, error) {
	return PingResult{Name: r.Target, RTT: 1.5}, d.note("ping " + r.Target)
}
func (d *daemon) Invite(_ context.Context, r InviteRequest) (InviteResult, error) {
	return InviteResult{Uses: r.Uses}, d.note("invite")
}
func (d *daemon) Agents(context.Context) (AgentList, error) { return AgentList{}, d.note("agents") }
func (d *daemon) Trust(_ context.Context, r TrustRequest) (TrustEntry, error) {
	return TrustEntry{Name: r.Target, State: r.Action}, d.note("trust " + r.Action + " " + r.Target)
}
func (d *daemon) WhoIs(_ context.Context, q string) (Agent, error) {
	return Agent{Name: q}, d.note("whois " + q)
}
func (d *daemon) TrustList(context.Context) (TrustList, error) {
	return TrustList{Entries: []TrustEntry{{Name: "x"}}}, d.note("trust list")
}

func (d *daemon) Netcheck(context.Context) (Netcheck, error) {
	return Netcheck{Code: "open"}, d.note("netcheck")
}

func (d *daemon) Proxies(context.Context) (Proxies, error) {
	return Proxies{HTTP: "http://pilot:x@127.0.0.1:1"}, d.note("proxies")
}

// serve runs a server on a Unix socket until the test ends.
func serve(t *testing.T, d *daemon, caller Caller) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerOptions{Daemon: d, Trust: d, Checker: d, Proxies: d, Connector: d, Publisher: d, Caller: caller, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return socket
}

func anybody(net.Conn) error { return nil }

func client(socket string) *Client {
	return NewClient(ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}})
}

func TestCalls(t *testing.T) {
	d := &daemon{}
	c := client(serve(t, d, anybody))
	ctx := t.Context()
	if r, err := c.Up(ctx, UpRequest{Name: "planner"}); err != nil || r.Name != "planner" {
		t.Error(r, err)
	}
	if r, err := c.Status(ctx); err != nil || r.State != StateUp {
		t.Error(r, err)
	}
	if r, err := c.Ping(ctx, PingRequest{Target: "b"}); err != nil || r.RTT != 1.5 {
		t.Error(r, err)
	}
	if r, err := c.Invite(ctx, InviteRequest{Uses: 3}); err != nil || r.Uses != 3 {
		t.Error(r, err)
	}
	if _, err := c.Agents(ctx); err != nil {
		t.Error(err)
	}
	if r, err := c.Trust(ctx, TrustRequest{Action: ActionRequest, Target: "b"}); err != nil || r.Name != "b" {
		t.Error(r, err)
	}
	if r, err := c.TrustList(ctx); err != nil || len(r.Entries) != 1 {
		t.Error(r, err)
	}
	if r, err := c.WhoIs(ctx, "a b&c"); err != nil || r.Name != "a b&c" {
		t.Error(r, err)
	}
	if r, err := c.Down(ctx); err != nil || r.PID != 7 {
		t.Error(r, err)
	}
	if len(d.calls) != 9 {
		t.Errorf("calls: %v", d.calls)
	}
}

func TestErrors(t *testing.T) {
	d := &daemon{}
	socket := serve(t, d, anybody)
	c := client(socket)
	d.err = &Error{Code: CodeNameTaken, Message: "taken", Hint: "another", Suggestion: "planner-2"}
	var e *Error
	if _, err := c.Up(t.Context(), UpRequest{}); !errors.As(err, &e) || e.Suggestion != "planner-2" || e.Code != CodeNameTaken {
		t.Errorf("got %v", err)
	}
	d.err = errors.New("disk on fire")
	if _, err := c.Status(t.Context()); !errors.As(err, &e) || e.Code != CodeInternal || !strings.Contains(e.Message, "disk on fire") {
		t.Errorf("got %v", err)
	}
	if _, err := client(socket + "x").Status(t.Context()); !errors.As(err, &e) || e.Code != CodeNotRunning || e.Hint == "" {
		t.Errorf("got %v", err)
	}
	for _, code := range []string{CodeUsage, CodeForbidden, CodeNotFound, CodeConflict, CodeUnavailable, CodeKeyMismatch, CodeStateDamaged} {
		if status(code) < 400 || ExitStatus(code) == 0 {
			t.Errorf("%s: HTTP %d, exit %d", code, status(code), ExitStatus(code))
		}
	}
}

// raw sends a request as a browser or a script would.
func raw(t *testing.T, socket, method, path, host string, header http.Header, body string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host, req.Header = host, header
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestAbuse01WebPage: a page whose name was rebound to this API sends its own Host, or an Origin. Both are refused before
// anything happens.
func TestAbuse01WebPage(t *testing.T) {
	d := &daemon{}
	socket := serve(t, d, anybody)
	for name, r := range map[string]struct {
		host   string
		header http.Header
	}{
		"rebound name":    {"evil.example", http.Header{}},
		"localhost":       {"localhost:8080", http.Header{}},
		"loopback":        {"127.0.0.1", http.Header{}},
		"look-alike":      {"pilot.evil.example", http.Header{}},
		"the page's name": {"pilot.internal", http.Header{}},
		"Origin":          {"pilot", http.Header{"Origin": {"http://evil.example"}}},
		"null Origin":     {"pilot", http.Header{"Origin": {"null"}}},
		"empty Origin":    {"pilot", http.Header{"Origin": {""}}},
		"fetch metadata":  {"pilot", http.Header{"Sec-Fetch-Site": {"cross-site"}}},
		"Referer":         {"pilot", http.Header{"Referer": {"http://evil.example/"}}},
	} {
		for _, path := range []string{"/v1/status", "/metrics", "/v1/down"} {
			code, body := raw(t, socket, http.MethodPost, path, r.host, r.header, "{}")
			if code != http.StatusForbidden || !strings.Contains(body, CodeForbidden) {
				t.Errorf("%s, %s: %d %s", name, path, code, body)
			}
		}
	}
	if len(d.calls) != 0 {
		t.Errorf("something happened: %v", d.calls)
	}
	if code, _ := raw(t, socket, http.MethodGet, "/v1/status", "pilot", http.Header{}, ""); code != http.StatusOK {
		t.Errorf("a local program gets %d", code)
	}
}

// TestAbuse02OtherUser: a caller that the socket's credentials don't admit gets a refusal, whatever it asks.
func TestAbuse02OtherUser(t *testing.T) {
	d := &daemon{}
	refuse := &Error{Code: CodePermission, Message: "you may not"}
	c := client(serve(t, d, func(c net.Conn) error {
		if _, ok := c.(*net.UnixConn); !ok {
			t.Errorf("the caller is judged by a %T", c)
		}
		return refuse
	}))
	var e *Error
	if _, err := c.Down(t.Context()); !errors.As(err, &e) || e.Code != CodePermission {
		t.Errorf("got %v", err)
	}
	if _, err := c.Status(t.Context()); !errors.As(err, &e) || e.Code != CodePermission {
		t.Errorf("got %v", err)
	}
	if len(d.calls) != 0 {
		t.Errorf("something happened: %v", d.calls)
	}
}

func TestBadRequests(t *testing.T) {
	d := &daemon{}
	socket := serve(t, d, anybody)
	for name, body := range map[string]string{
		"not JSON": "invite=x", "empty": "", "unknown field": `{"nickname":"x"}`, "wrong type": `{"name":1}`,
		"too long": `{"name":"` + strings.Repeat("x", maxRequest) + `"}`,
	} {
		if code, text := raw(t, socket, http.MethodPost, "/v1/up", "pilot", http.Header{}, body); code != http.StatusBadRequest || !strings.Contains(text, CodeUsage) {
			t.Errorf("%s: %d %s", name, code, text)
		}
	}
	if code, _ := raw(t, socket, http.MethodGet, "/v1/nothing", "pilot", http.Header{}, ""); code != http.StatusBadRequest {
		t.Errorf("an unknown path: %d", code)
	}
	if len(d.calls) != 0 {
		t.Errorf("something happened: %v", d.calls)
	}
}

// FuzzRequest sends any bytes as the body of each call.
func FuzzRequest(f *testing.F) {
	f.Add("up", []byte(`{"name":"planner"}`))
	f.Add("trust", []byte(`{"action":"approve","target":"x","ports":[{"proto":6,"first":1,"last":2}],"accept_key":"agent:x"}`))
	f.Add("ping", []byte(`{"target":"x","timeout":1}`))
	f.Add("serve", []byte(`{"action":"publish","protocol":"http","port":80,"target":"unix:/run/x"}`))
	f.Add("connect", []byte(`{"host":"x","port":22,"protocol":"udp"}`))
	f.Fuzz(func(t *testing.T, call string, body []byte) {
		d := &daemon{}
		s := NewServer(ServerOptions{Daemon: d, Trust: d, Checker: d, Proxies: d, Connector: d, Publisher: d, Caller: anybody, Log: slog.New(slog.DiscardHandler)})
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		req, err := http.NewRequestWithContext(context.WithValue(t.Context(), connKey{}, a), http.MethodPost, "http://pilot/", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path, req.Host = "/v1/"+call, host
		s.ServeHTTP(&discard{}, req)
	})
}

type discard struct{ h http.Header }

func (d *discard) Header() http.Header {
	if d.h == nil {
		d.h = http.Header{}
	}
	return d.h
}
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}
