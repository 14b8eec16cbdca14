// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// converse asks a proxy for a connection to addr. It returns the connection that goes there; the caller closes conn
// where it fails.
func converse(ctx context.Context, conn net.Conn, u *url.URL, addr string, c *credentials) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if u.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS with the proxy: %w", err)
		}
		conn = secure
	}
	if _, err := io.WriteString(conn, request(addr, c)); err != nil {
		return nil, reason(ctx, fmt.Errorf("ask the proxy: %w", err))
	}
	limited := &io.LimitedReader{R: conn, N: maxAnswer}
	r := bufio.NewReader(limited)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // what follows is the tunnel, and ends with the connection
	if err != nil {
		return nil, reason(ctx, fmt.Errorf("read the proxy's answer: %w", err))
	}
	switch {
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return nil, fmt.Errorf("%w (it offers %s)", ErrAuth, schemes(resp.Header))
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return nil, fmt.Errorf("%w to connect to %s: HTTP status %d", ErrRefused, addr, resp.StatusCode)
	}
	if !stop() {
		return nil, ctx.Err() // the deadline is set, or being set
	}
	early, err := r.Peek(r.Buffered())
	return &tunnel{Conn: conn, early: early}, err
}

// request is the whole of what is asked.
func request(addr string, c *credentials) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: pilot\r\n", addr, addr)
	if c.user != "" || c.password != "" {
		word := base64.StdEncoding.EncodeToString([]byte(c.user + ":" + c.password))
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", word)
	}
	b.WriteString("\r\n")
	return b.String()
}

// reason prefers the end of the context to what it did to the connection.
func reason(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the proxy does not answer: %w", ctx.Err())
	}
	return err
}

// schemes lists the ways to authenticate that a proxy offers, without their parameters.
func schemes(h http.Header) string {
	var list []string
	for _, v := range h.Values("Proxy-Authenticate") {
		if word, _, _ := strings.Cut(strings.TrimSpace(v), " "); word != "" && len(list) < 4 {
			list = append(list, fmt.Sprintf("%.20q", word))
		}
	}
	if len(list) == 0 {
		return "no way to authenticate"
	}
	return strings.Join(list, ", ")
}

// tunnel is a connection through a proxy.
type tunnel struct {
	net.Conn
	early []byte // was read with the proxy's answer
}

// Proxied tells those who want to know that the connection's other end is not where its address says.
func (t *tunnel) Proxied() bool { return true }

func (t *tunnel) Read(b []byte) (int, error) {
	if len(t.early) > 0 {
		n := copy(b, t.early)
		t.early = t.early[n:]
		return n, nil
	}
	return t.Conn.Read(b)
}

// SyscallConn gives access to the socket's options.
func (t *tunnel) SyscallConn() (syscall.RawConn, error) {
	if c, ok := t.Conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
