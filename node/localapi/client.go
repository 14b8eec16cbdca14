// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
)

// host is the only Host that the daemon answers to. A browser can't be made to send it to a Unix socket.
const host = "pilot"

// maxAnswer bounds what a client reads, in bytes.
const maxAnswer = 16 << 20

// ClientOptions say how a client reaches the daemon, and who it is. Only Dial is required.
type ClientOptions struct {
	// Dial connects to the daemon. It should check who owns the socket.
	Dial func(ctx context.Context) (net.Conn, error)
	// Acting is the agent of the daemon's that all requests are for; empty: its own.
	Acting string
	// Version is this program's. A daemon of another major version is asked for nothing but to end.
	Version string
	// Differs is told of a daemon of another minor version, with each of its answers.
	Differs func(daemon string)
}

// Client talks to the daemon. It is safe for concurrent use.
type Client struct {
	http *http.Client
	opts ClientOptions
}

// NewClient returns a client.
func NewClient(o ClientOptions) *Client {
	return &Client{opts: o, http: &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return o.Dial(ctx) },
		DisableKeepAlives: true,
	}}}
}

// Status asks for the daemon's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Up joins, makes or resumes a network. It returns when the network is usable.
func (c *Client) Up(ctx context.Context, r UpRequest) (UpResult, error) {
	return call[UpResult](ctx, c, http.MethodPost, "/v1/up", r)
}

// Down ends the daemon.
func (c *Client) Down(ctx context.Context) (DownResult, error) {
	return call[DownResult](ctx, c, http.MethodPost, downPath, struct{}{})
}

// Ping sends one echo through the tunnel.
func (c *Client) Ping(ctx context.Context, r PingRequest) (PingResult, error) {
	return call[PingResult](ctx, c, http.MethodPost, "/v1/ping", r)
}

// Invite makes an invite.
func (c *Client) Invite(ctx context.Context, r InviteRequest) (InviteResult, error) {
	return call[InviteResult](ctx, c, http.MethodPost, "/v1/invites", r)
}

// Agents lists the agents that this one may see.
func (c *Client) Agents(ctx context.Context) (AgentList, error) {
	return call[AgentList](ctx, c, http.MethodGet, "/v1/agents", nil)
}

// TrustList lists the consents given and received.
func (c *Client) TrustList(ctx context.Context) (TrustList, error) {
	return call[TrustList](ctx, c, http.MethodGet, "/v1/trust", nil)
}

// Proxies asks for the proxies, with their password.
func (c *Client) Proxies(ctx context.Context) (Proxies, error) {
	return call[Proxies](ctx, c, http.MethodGet, "/v1/proxies", nil)
}

// Trust changes a consent.
func (c *Client) Trust(ctx context.Context, r TrustRequest) (TrustEntry, error) {
	return call[TrustEntry](ctx, c, http.MethodPost, "/v1/trust", r)
}

// WhoIs looks an agent up by name, address or key.
func (c *Client) WhoIs(ctx context.Context, q string) (Agent, error) {
	return call[Agent](ctx, c, http.MethodGet, "/v1/whois?q="+url.QueryEscape(q), nil)
}

type errorBody struct {
	Error *Error `json:"error"`
}

// introduce says in a request who asks, and in whose name.
func (c *Client) introduce(r *http.Request) {
	r.Header.Set("Content-Type", "application/json")
	if c.opts.Version != "" {
		r.Header.Set(VersionHeader, c.opts.Version)
	}
	if c.opts.Acting != "" {
		r.Header.Set(ActingHeader, c.opts.Acting)
	}
}

func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var answer T
	var reader io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return answer, err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, reader)
	if err != nil {
		return answer, err
	}
	c.introduce(req)
	resp, err := c.http.Do(req)
	if err != nil {
		return answer, noAnswer(ctx, err)
	}
	defer resp.Body.Close()
	if err := c.compare(path, resp.Header.Get(VersionHeader)); err != nil {
		return answer, err
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return answer, errCutOff()
	}
	if err := answered(resp, raw); err != nil {
		return answer, err
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return answer, &Error{Code: CodeVersionDiffers, Message: "the daemon's answer can't be read: " + err.Error(), Hint: hintVersion}
	}
	return answer, nil
}

// downPath ends a daemon of any version.
const downPath = "/v1/down"

// compare looks at the version that an answer names; a daemon that names none is older than the header.
func (c *Client) compare(path, daemon string) error {
	if e := checkVersion(c.opts.Version, daemon); e != nil && path != downPath {
		return e
	}
	if c.opts.Differs != nil && CompareVersions(c.opts.Version, daemon) == VersionsMinor {
		c.opts.Differs(daemon)
	}
	return nil
}

const hintVersion = "the daemon may be of another version: run pilot down, then pilot up"

// noAnswer says what it means that a request did not get as far as an answer.
func noAnswer(ctx context.Context, err error) error {
	if own := (*Error)(nil); errors.As(err, &own) { // from dial
		return own
	}
	if ctx.Err() != nil {
		return &Error{Code: CodeTimeout, Message: "the daemon did not answer in time", Hint: "look at its log: pilot help daemon"}
	}
	return &Error{Code: CodeNotRunning, Message: "no pilot daemon answers: " + err.Error(), Hint: "start it with: pilot up"}
}

func errCutOff() error {
	return &Error{Code: CodeNotRunning, Message: "the daemon ended in the middle of its answer", Hint: "start it with: pilot up"}
}

// answered returns the error in an answer that is one.
func answered(resp *http.Response, raw []byte) error {
	if resp.StatusCode < http.StatusBadRequest {
		return nil
	}
	var e errorBody
	if json.Unmarshal(raw, &e) == nil && e.Error != nil {
		return e.Error
	}
	return &Error{Code: CodeVersionDiffers, Message: "the daemon answered " + resp.Status, Hint: hintVersion}
}
