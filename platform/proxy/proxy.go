// SPDX-License-Identifier: Apache-2.0

// Package proxy makes TCP connections the way that the environment asks for: straight, or through a proxy by CONNECT
// (RFC 9110, section 9.3.6) or SOCKS5 (RFC 1928), as curl does. What is behind a proxy is named to the proxy, and not
// looked up here: hosts that need one often can't resolve foreign names.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// Environment variables besides HTTPS_PROXY, ALL_PROXY and NO_PROXY, which count in lower case too.
const (
	// AuthFile names a file with "user:password" for the proxy.
	AuthFile = "PILOT_PROXY_AUTH_FILE"
	// AuthCommand is run by the shell, and prints "user:password".
	AuthCommand = "PILOT_PROXY_AUTH_COMMAND"
)

var (
	// ErrConfig says that the environment's settings make no sense.
	ErrConfig = errors.New("proxy settings")
	// ErrAuth says that the proxy did not take the credentials, or there are none.
	ErrAuth = errors.New("the proxy wants other credentials")
	// ErrRefused says that the proxy makes no such connection.
	ErrRefused = errors.New("the proxy refused")
)

const (
	dialLimit    = 10 * time.Second // one TCP connection
	connectLimit = 15 * time.Second // the conversation with the proxy
	// maxAnswer bounds the header of a proxy's answer, in bytes.
	maxAnswer = 64 << 10
)

// DialFunc makes a connection.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Options of New. The zero value is the environment of this process.
type Options struct {
	Env  func(name string) string // nil: os.Getenv
	Dial DialFunc                 // makes the connections, also those to the proxy; nil: net.Dialer
}

// Dialer makes connections as the environment asks for. It is safe for concurrent use.
type Dialer struct {
	proxyOf func(*url.URL) (*url.URL, error)
	dial    DialFunc
	source  source
	err     error // what is wrong with the settings

	mu    sync.Mutex
	known *credentials // that the source gave last; guarded by mu
}

// New reads the environment. What is wrong with it becomes the error of each connection that it is about.
func New(o Options) *Dialer {
	if o.Env == nil {
		o.Env = os.Getenv
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: dialLimit}).DialContext
	}
	get := func(names ...string) string {
		for _, n := range names {
			if v := o.Env(n); v != "" {
				return v
			}
		}
		return ""
	}
	d := &Dialer{dial: o.Dial, source: source{file: o.Env(AuthFile), command: o.Env(AuthCommand)}}
	address := get("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
	if own(address, o.Env(OwnProxies)) {
		address = ""
	}
	d.err = check(address)
	config := httpproxy.Config{HTTPSProxy: address, NoProxy: get("no_proxy", "NO_PROXY")}
	if d.err != nil {
		config.HTTPSProxy = "http://invalid" // only tells which connections would take it
	}
	d.proxyOf = config.ProxyFunc()
	return d
}

// OwnProxies is the variable that names, as host:port with commas between them, proxies that lead into the network, as pilot
// env prints it: what the network itself is made of can't go through them.
const OwnProxies = "PILOT_AGENT_PROXY"

// own reports whether a proxy's URL is that of one of these.
func own(address, list string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Host != "" && slices.Contains(strings.Split(list, ","), u.Host)
}

// check looks at a proxy's address without ever quoting it: there may be a password inside.
func check(address string) error {
	if address == "" {
		return nil
	}
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return fmt.Errorf("%w: HTTPS_PROXY or ALL_PROXY is not a URL such as http://proxy:3128", ErrConfig)
	}
	if _, err := portOf(u); err != nil {
		return err
	}
	return nil
}

// portOf returns a proxy's port, or the usual one of its kind.
func portOf(u *url.URL) (string, error) {
	usual := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	if usual == "" {
		return "", fmt.Errorf("%w: a proxy is http, https, socks5 or socks5h, and not %q", ErrConfig, u.Scheme)
	}
	if p := u.Port(); p != "" {
		return p, nil
	}
	return usual, nil
}

// Proxy tells through which proxy a connection to addr would go, as host:port; empty: straight.
func (d *Dialer) Proxy(addr string) string {
	u, err := d.proxyOf(&url.URL{Scheme: "https", Host: addr})
	if err != nil || u == nil || d.err != nil {
		return ""
	}
	port, _ := portOf(u)
	return net.JoinHostPort(u.Hostname(), port)
}

// DialContext connects to addr, which is host:port, over TCP. A connection through a proxy has a method Proxied() bool
// that returns true. Errors never hold credentials.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	u, err := d.proxyOf(&url.URL{Scheme: "https", Host: addr})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	case u == nil:
		return d.dial(ctx, network, addr)
	case d.err != nil:
		return nil, d.err
	}
	if strings.ContainsFunc(addr, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("%w: %q is no address", ErrRefused, addr)
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit+connectLimit)
	defer cancel()
	used, err := d.credentials(ctx, u, nil)
	if err != nil {
		return nil, err
	}
	conn, err := d.through(ctx, u, network, addr, used)
	if !errors.Is(err, ErrAuth) || d.source.empty() {
		return conn, err
	}
	// Passwords of proxies are often changed every few minutes: look whether there is another one.
	fresh, other := d.credentials(ctx, u, used)
	if other != nil {
		return nil, other
	}
	if *fresh == *used {
		return nil, err
	}
	return d.through(ctx, u, network, addr, fresh)
}

// credentials returns those for a proxy: from the source if there is one, else of its URL. Others than stale are asked for
// where stale is what the source gave last.
func (d *Dialer) credentials(ctx context.Context, u *url.URL, stale *credentials) (*credentials, error) {
	if d.source.empty() {
		password, _ := u.User.Password()
		return &credentials{u.User.Username(), password}, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil || stale != nil && *d.known == *stale {
		c, err := d.source.read(ctx)
		if err != nil {
			return nil, err
		}
		d.known = &c
	}
	return d.known, nil
}

// through makes a connection through a proxy.
func (d *Dialer) through(ctx context.Context, u *url.URL, network, addr string, c *credentials) (net.Conn, error) {
	port, err := portOf(u)
	if err != nil {
		return nil, err
	}
	at := net.JoinHostPort(u.Hostname(), port)
	if u.Scheme == "socks5" || u.Scheme == "socks5h" {
		return d.socks(ctx, at, network, addr, c)
	}
	conn, err := d.dial(ctx, "tcp", at)
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy %s: %w", at, err)
	}
	tunnel, err := converse(ctx, conn, u, addr, c)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return tunnel, nil
}

// socks makes a connection through a SOCKS5 proxy, which resolves the name.
func (d *Dialer) socks(ctx context.Context, at, network, addr string, c *credentials) (net.Conn, error) {
	var auth *proxy.Auth
	if c.user != "" {
		auth = &proxy.Auth{User: c.user, Password: c.password}
	}
	s, err := proxy.SOCKS5("tcp", at, auth, forward(d.dial))
	if err != nil {
		return nil, fmt.Errorf("%w: SOCKS5: %w", ErrConfig, err)
	}
	conn, err := s.(proxy.ContextDialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &tunnel{Conn: conn}, nil
}

// forward makes a dialer of package x/net/proxy out of a function.
type forward DialFunc

func (f forward) Dial(network, addr string) (net.Conn, error) {
	return f(context.Background(), network, addr)
}

func (f forward) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return f(ctx, network, addr)
}
