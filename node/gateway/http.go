// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxHeader bounds a request's header, in bytes.
const maxHeader = 64 << 10

// newTransport makes what requests in absolute form are passed on by.
func (g *Gateway) newTransport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, port, err := splitPort(address)
			if err != nil {
				return nil, err
			}
			return g.dial(ctx, host, port)
		},
		DisableCompression: true, // what is asked for is the caller's business
		MaxIdleConns:       128, MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
}

// forward passes on requests in absolute form.
func (g *Gateway) forward() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: g.http, FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) { g.fail(w, r.URL.Host, err) },
		ErrorLog:     slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
}

// serveHTTP is the HTTP proxy on l, which it closes, until ctx ends.
func (g *Gateway) serveHTTP(ctx context.Context, l net.Listener) error {
	forward := g.forward()
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !g.begin() {
				return
			}
			defer g.flows.Done()
			g.proxy(ctx, w, r, forward)
		}),
		ReadHeaderTimeout: greetLimit, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("HTTP proxy: %w", err)
	}
	return nil
}

// proxy answers one request.
func (g *Gateway) proxy(ctx context.Context, w http.ResponseWriter, r *http.Request, forward http.Handler) {
	user, password, shown := proxyPassword(r.Header.Get("Proxy-Authorization"))
	switch {
	case !shown || !g.admits([]byte(user), []byte(password)):
		w.Header().Set("Proxy-Authenticate", `Basic realm="pilot"`)
		say(w, http.StatusProxyAuthRequired, "this proxy wants a password: run  eval \"$(pilot env)\"")
	case r.Method == http.MethodConnect:
		g.tunnel(ctx, w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		forward.ServeHTTP(w, r)
	case r.URL.IsAbs():
		say(w, http.StatusNotImplemented, "this proxy passes on http only, and other things by CONNECT")
	default:
		say(w, http.StatusBadRequest, "this is a proxy, and no server of pages")
	}
}

// proxyPassword reads a header as of RFC 7617.
func proxyPassword(header string) (user, password string, ok bool) {
	scheme, text, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(raw), ":")
}

// rewrite makes a request to a proxy one to a server. What a caller says of where it comes from stays, and nothing is added:
// the server sees the agent.
func rewrite(r *httputil.ProxyRequest) {
	r.Out.Host = r.Out.URL.Host // it counts, and not the header (RFC 9112, section 3.2.2)
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = values
		}
	}
	if _, ok := r.In.Header["User-Agent"]; !ok {
		r.Out.Header.Set("User-Agent", "") // or the transport says one of its own
	}
	r.Out.URL.User = (*url.Userinfo)(nil)
}

// tunnel makes the caller's connection one to where it wants to go.
func (g *Gateway) tunnel(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close") // what follows is for somebody else
	host, port, err := splitPort(r.Host)
	if err != nil {
		say(w, http.StatusBadRequest, "CONNECT wants a host and a port")
		return
	}
	// Not the request's context: it ends too when the caller has said all.
	far, err := g.dial(ctx, host, port)
	if err != nil {
		g.fail(w, host, err)
		return
	}
	defer far.Close()
	near, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		g.fail(w, host, err)
		return
	}
	defer near.Close()
	// The server may have set one for the header.
	if near.SetDeadline(time.Time{}) != nil {
		return
	}
	if _, err := io.WriteString(near, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	g.join(ctx, readAhead(near, buffered.Reader), far)
}

// readAhead is a connection from which some bytes are in a buffer.
func readAhead(c net.Conn, r *bufio.Reader) net.Conn {
	n := r.Buffered()
	if n == 0 {
		return c
	}
	return &ahead{Conn: c, r: io.MultiReader(io.LimitReader(r, int64(n)), c)}
}

func splitPort(address string) (string, uint16, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || host == "" || port == 0 || !printable([]byte(host)) {
		return "", 0, &net.AddrError{Err: "invalid host or port", Addr: address}
	}
	return host, uint16(port), nil
}

// fail says why a caller can't get where it wants to.
func (g *Gateway) fail(w http.ResponseWriter, host string, err error) {
	g.log.Debug("a caller of the HTTP proxy is not served", "host", host, "error", err)
	status := http.StatusBadGateway
	switch outcomeOf(err) {
	case outcomeForbidden:
		status = http.StatusForbidden
	case outcomeTimeout:
		status = http.StatusGatewayTimeout
	case outcomeFailed, outcomeRefused, outcomeNoNetwork, outcomeNoHost:
	}
	say(w, status, fmt.Sprintf("%q: %v", host, err))
}

// say answers with one line of text.
func say(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "pilot: "+text+"\n") // where it fails the caller has gone
}
