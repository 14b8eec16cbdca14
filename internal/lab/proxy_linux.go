// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"
)

// proxyUser is the name in the credentials of each [Proxy].
const proxyUser = "agent"

// Proxy is an HTTP proxy on a host that knows CONNECT and nothing else (RFC 9110, section 9.3.6) and wants Basic
// credentials. Its password can be changed at any time; it is asked for when a tunnel is opened, and tunnels that
// are open stay open. Its sockets are the host's, the program is the test.
type Proxy struct {
	host     *Host
	listener net.Listener
	file     string // where the valid credentials are, "user:password"
	running  sync.WaitGroup

	mu      sync.Mutex
	secret  string
	tunnels map[net.Conn]struct{}
	counts  ProxyCounts
}

// ProxyCounts tell what a proxy was asked for.
type ProxyCounts struct {
	Opened  int // tunnels
	Refused int // requests with no credentials or old ones: 407
	Failed  int // what was asked for does not answer, or is no CONNECT
}

// Proxy starts a proxy on the host, at port 3128 of all its addresses. The valid credentials are kept in a file of
// that name in the home of the host client.
func (h *Host) Proxy(client *Host, file string) *Proxy {
	h.lab.tb.Helper()
	p := &Proxy{host: h, tunnels: map[net.Conn]struct{}{}, file: client.WriteFile(file, "", 0o600)}
	p.Rotate()
	var err error
	if p.listener, err = listenOn(h, netip.MustParseAddrPort("0.0.0.0:3128")); err != nil {
		h.lab.tb.Fatalf("lab: proxy: %v", err)
	}
	p.running.Go(func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(conn) })
		}
	})
	h.lab.tb.Cleanup(func() {
		_ = p.listener.Close()
		p.Cut()
		p.running.Wait()
	})
	return p
}

// File is the path of the file with the valid credentials.
func (p *Proxy) File() string { return p.file }

// Rotate makes a new password, which is in the file at once. The old one is not valid any more.
func (p *Proxy) Rotate() {
	p.host.lab.tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.secret = proxyUser + ":" + rand.Text()
	// By renaming: a reader finds a whole password.
	err := os.WriteFile(p.file+".new", []byte(p.secret+"\n"), 0o600)
	if err = errors.Join(err, os.Rename(p.file+".new", p.file)); err != nil {
		p.host.lab.tb.Fatalf("lab: proxy: %v", err)
	}
}

// RotateEvery makes a new password again and again until the context ends.
func (p *Proxy) RotateEvery(ctx context.Context, interval time.Duration) {
	p.running.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				p.Rotate()
			}
		}
	})
}

// Cut ends all tunnels.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.tunnels {
		_ = conn.Close()
	}
}

// Counts tell what the proxy was asked for so far.
func (p *Proxy) Counts() ProxyCounts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

func (p *Proxy) count(f func(*ProxyCounts)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.counts)
}

// permitted tells whether a request has the password of this moment.
func (p *Proxy) permitted(r *http.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The header has the form of Authorization, so the library's parser serves.
	asked := &http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
	user, password, ok := asked.BasicAuth()
	return ok && subtle.ConstantTimeCompare([]byte(user+":"+password), []byte(p.secret)) == 1
}

// serve answers the requests of one client until one becomes a tunnel.
func (p *Proxy) serve(client net.Conn) {
	defer p.forget(client)
	p.remember(client)
	in := bufio.NewReader(client)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		switch {
		case r.Method != http.MethodConnect:
			p.count(func(c *ProxyCounts) { c.Failed++ })
			fmt.Fprint(client, "HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			return
		case !p.permitted(r):
			p.count(func(c *ProxyCounts) { c.Refused++ })
			fmt.Fprint(client, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"lab\"\r\nContent-Length: 0\r\n\r\n")
			continue
		}
		p.tunnel(client, in, r.Host)
		return
	}
}

// tunnel connects the client to a target, which is an address and a port: this proxy resolves no names.
func (p *Proxy) tunnel(client net.Conn, in *bufio.Reader, target string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	at, err := netip.ParseAddrPort(target)
	var server *net.TCPConn
	if err == nil {
		server, err = dialFrom(ctx, p.host, at)
	}
	if err != nil {
		p.count(func(c *ProxyCounts) { c.Failed++ })
		fmt.Fprint(client, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return
	}
	defer p.forget(server)
	p.remember(server)
	_ = server.SetDeadline(time.Time{})
	p.count(func(c *ProxyCounts) { c.Opened++ })
	fmt.Fprint(client, "HTTP/1.1 200 OK\r\n\r\n")
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	})
	_, _ = io.Copy(server, in)
	_ = server.Close()
	back.Wait()
}

func (p *Proxy) remember(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tunnels[c] = struct{}{}
}

func (p *Proxy) forget(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tunnels, c)
}
