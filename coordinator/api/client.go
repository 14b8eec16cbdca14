// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/platform/proxy"
)

const (
	maxResponse    = 16 << 20
	maxHeader      = 32 << 10
	attemptTimeout = 20 * time.Second // one request to one address
	handshakeLimit = 10 * time.Second
	firstByteLimit = 15 * time.Second
	// idleConnections is how long one is kept for later calls: not until TCP asks whether the other end is there.
	idleConnections = 30 * time.Second
)

// ClientOptions say whom a client calls and who it is.
type ClientOptions struct {
	// Addresses are host:port of the network's coordinators, at least one; a missing port is DefaultPort. A call that
	// can't reach one goes on to the next, and later calls begin where the last one succeeded.
	Addresses []string
	// Authority is the pinned key. Only servers that it vouches for are spoken to.
	Authority identity.AuthorityPublic
	// Key proves who calls. With a zero key only Network works.
	Key identity.AgentKey
	// Dial makes TCP connections; nil: as the environment asks for, through a proxy where it names one.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Now is the clock for certificates; nil means time.Now.
	Now func() time.Time
}

// Client calls the coordinators of one network as one agent. It is safe for concurrent use. Its methods return an
// *Error on every failure, and all of its calls may be repeated without harm.
type Client struct {
	addresses []string
	http      *http.Client
	transport *http.Transport
	current   atomic.Uint32 // index of the address that answered last
	now       func() time.Time
	told      atomic.Pointer[toldTime] // nil: no answer has told a time
}

// toldTime is the coordinator's time, and ours at that moment, with the monotonic clock's.
type toldTime struct{ theirs, ours time.Time }

// NewClient returns a client. It makes no connection yet; CloseIdleConnections ends those that it keeps.
func NewClient(o ClientOptions) (*Client, error) {
	if len(o.Addresses) == 0 {
		return nil, &Error{Code: CodeBadRequest, Message: "no coordinator address is known"}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		direct := &net.Dialer{Timeout: handshakeLimit, KeepAliveConfig: KeepAlive()}
		o.Dial = proxy.New(proxy.Options{Dial: direct.DialContext}).DialContext
	}
	c := &Client{now: o.Now}
	for _, a := range o.Addresses {
		addr, err := normalAddress(a)
		if err != nil {
			return nil, err
		}
		c.addresses = append(c.addresses, addr)
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The usual check by name and system roots is replaced by a stricter one: the pinned key.
		InsecureSkipVerify: true,
		VerifyConnection:   serverVerifier(o.Authority, o.Now),
	}
	if !o.Key.IsZero() {
		conf.GetClientCertificate = (&clientCertificates{key: o.Key, now: o.Now}).get
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c.transport = &http.Transport{
		DialContext: o.Dial, TLSClientConfig: conf, Protocols: protocols,
		TLSHandshakeTimeout: handshakeLimit, ResponseHeaderTimeout: firstByteLimit, IdleConnTimeout: idleConnections,
		MaxResponseHeaderBytes: maxHeader, MaxIdleConnsPerHost: 2,
	}
	c.http = &http.Client{Transport: c.transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a coordinator has no reason to send a client elsewhere
	}}
	return c, nil
}

// KeepAlive is for the TCP connections between clients and coordinators. A stream has its own pings, so that TCP asks only
// when those stay away: by Go's default it would ask every 15 seconds, and idle hosts would never sleep.
func KeepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: PingInterval + 15*time.Second, Interval: 15 * time.Second, Count: 4}
}

// heard takes the date of an answer.
func (c *Client) heard(date string) {
	if at, err := http.ParseTime(date); err == nil {
		c.told.Store(&toldTime{theirs: at.Add(time.Second / 2), ours: c.now()}) // it told the whole second, which has begun
	}
}

// ClockOffset is by how much the coordinator's clock is ahead of this host's; known is false before its first answer. It is
// right within a second and the time that the latest answer took, also after this host's clock was set.
func (c *Client) ClockOffset() (offset time.Duration, known bool) {
	told := c.told.Load()
	if told == nil {
		return 0, false
	}
	now := c.now()
	return told.theirs.Add(now.Sub(told.ours)).Sub(now.Round(0)), true
}

// CloseIdleConnections closes connections that are kept for later calls.
func (c *Client) CloseIdleConnections() { c.transport.CloseIdleConnections() }

func normalAddress(a string) (string, error) {
	host, port, err := net.SplitHostPort(a)
	if err != nil { // no port
		host, port, err = net.SplitHostPort(net.JoinHostPort(trimBrackets(a), strconv.Itoa(DefaultPort)))
	}
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || host == "" {
		return "", &Error{Code: CodeBadRequest, Message: fmt.Sprintf("%q is not a coordinator's host:port", a)}
	}
	return net.JoinHostPort(host, port), nil
}

func trimBrackets(s string) string {
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}

// Network asks which network the coordinator serves.
func (c *Client) Network(ctx context.Context) (n NetworkInfo, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/network", nil, &n)
	return n, err
}

// Join asks for membership.
func (c *Client) Join(ctx context.Context, r JoinRequest) (m Membership, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/join", r, &m)
	return m, err
}

// Renew asks for a fresh certificate.
func (c *Client) Renew(ctx context.Context) (m Membership, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/renew", struct{}{}, &m)
	return m, err
}

// PutRecord publishes the caller's tunnel key and endpoints.
func (c *Client) PutRecord(ctx context.Context, r RecordRequest) error {
	return c.call(ctx, http.MethodPut, "/v1/record", r, nil)
}

// Agents lists those with whom the caller has a consent in either direction.
func (c *Client) Agents(ctx context.Context) ([]Peer, error) {
	var a Agents
	err := c.call(ctx, http.MethodGet, "/v1/agents", nil, &a)
	return a.Agents, err
}

// Agent looks one agent up by its exact name, overlay address or key.
func (c *Client) Agent(ctx context.Context, q string) (p Peer, err error) {
	if !askable(q) {
		return p, &Error{Code: CodeNotFound, Message: fmt.Sprintf("%+q is no agent's name, address or key", q)}
	}
	err = c.call(ctx, http.MethodGet, "/v1/agents/"+url.PathEscape(q), nil, &p)
	return p, err
}

// askable reports whether there can be an agent with this name, address or key.
func askable(q string) bool {
	if _, err := netip.ParseAddr(q); err == nil {
		return true
	}
	_, err := identity.ParseAgentPublic(q)
	return err == nil || identity.ValidateName(q) == nil
}

// PutConsent stores a signed consent or withdrawal of the caller.
func (c *Client) PutConsent(ctx context.Context, consent []byte) error {
	return c.call(ctx, http.MethodPost, "/v1/consents", ConsentRequest{Consent: consent}, nil)
}

// Relays lists the statements of the network's relays.
func (c *Client) Relays(ctx context.Context) ([][]byte, error) {
	var r Relays
	err := c.call(ctx, http.MethodGet, "/v1/relays", nil, &r)
	return r.Relays, err
}

// PutRelay says that the caller is a relay. Only agents with TagRelay may.
func (c *Client) PutRelay(ctx context.Context, r RelayRequest) (l RelayListing, err error) {
	err = c.call(ctx, http.MethodPut, "/v1/relay", r, &l)
	return l, err
}

// Signal calls another agent: its node is told to reach out now, if it listens. The coordinator keeps nothing of it.
func (c *Client) Signal(ctx context.Context, signal []byte) error {
	return c.call(ctx, http.MethodPost, "/v1/signals", SignalRequest{Signal: signal}, nil)
}

// CreateInvite makes a join key known. Only agents with TagAdmin may.
func (c *Client) CreateInvite(ctx context.Context, r InviteRequest) error {
	return c.call(ctx, http.MethodPost, "/v1/invites", r, nil)
}

// Invites lists the join keys. Only agents with TagAdmin may.
func (c *Client) Invites(ctx context.Context) ([]Invite, error) {
	var i Invites
	err := c.call(ctx, http.MethodGet, "/v1/invites", nil, &i)
	return i.Invites, err
}

// DeleteInvite revokes a join key: nobody joins by it any more. Only agents with TagAdmin may.
func (c *Client) DeleteInvite(ctx context.Context, join identity.JoinPublic) error {
	return c.call(ctx, http.MethodDelete, "/v1/invites/"+url.PathEscape(join.String()), nil, nil)
}

// Revoke ends an agent's membership for good. Only agents with TagAdmin may.
func (c *Client) Revoke(ctx context.Context, r RevokeRequest) error {
	return c.call(ctx, http.MethodPost, "/v1/revocations", r, nil)
}

// Leave ends this agent's own membership for good: its key can't return, and its name is free.
func (c *Client) Leave(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/leave", nil, nil)
}

// call makes one request and decodes its answer into out, if out isn't nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return &Error{Code: CodeBadRequest, Message: "the request can't be encoded", cause: err}
		}
	}
	return c.failover(ctx, func(addr string) error {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		resp, err := c.open(ctx, addr, method, path, body)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		return decode(resp.Body, out)
	})
}

// failover tries the addresses in turn, from the one that answered last, until one answers. An answer that is an error
// is an answer, except UNAVAILABLE. When none answers, a KEY_MISMATCH outweighs the other reasons.
func (c *Client) failover(ctx context.Context, try func(addr string) error) error {
	first := c.current.Load()
	var failure error
	for i := range uint32(len(c.addresses)) {
		n := (first + i) % uint32(len(c.addresses))
		err := try(c.addresses[n])
		if !HasCode(err, CodeUnavailable) && !HasCode(err, CodeKeyMismatch) {
			c.current.Store(n)
			return err
		}
		if failure == nil || HasCode(err, CodeKeyMismatch) {
			failure = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failure
}

// open sends a request to one address and returns the answer if its status is 200. Its error is an *Error.
func (c *Client) open(ctx context.Context, addr, method, path string, body []byte) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, reader)
	if err != nil {
		return nil, &Error{Code: CodeBadRequest, Message: "the request can't be made", cause: err}
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header["Idempotency-Key"] = nil // not sent; lets net/http repeat the request when a kept connection was dead
	resp, err := c.http.Do(req)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			return nil, e
		}
		return nil, unavailable(err)
	}
	c.heard(resp.Header.Get("Date"))
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, decodeError(resp.StatusCode, resp.Body)
}

// decode reads one JSON value of bounded size.
func decode(r io.Reader, out any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxResponse+1))
	switch {
	case err != nil:
		return unavailable(err)
	case len(data) > maxResponse:
		return &Error{Code: CodeInternal, Message: fmt.Sprintf("the coordinator's answer has more than %d bytes", maxResponse)}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return &Error{Code: CodeInternal, Message: "the coordinator's answer can't be read", cause: err}
	}
	return nil
}

// decodeError makes an *Error of an answer that isn't 200, which may come from a proxy on the way.
func decodeError(status int, r io.Reader) *Error {
	data, _ := io.ReadAll(io.LimitReader(r, MaxRequest))
	var body ErrorBody
	if json.Unmarshal(data, &body) == nil && body.Error != nil && body.Error.Code != "" {
		return body.Error
	}
	e := &Error{Code: CodeInternal, Message: fmt.Sprintf("the coordinator answered with HTTP status %d", status)}
	if status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout {
		e.Code = CodeUnavailable
	}
	return e
}
