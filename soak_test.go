// SPDX-License-Identifier: Apache-2.0

package pilot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"github.com/pilot-protocol/pilot/node/gateway"
)

const (
	// soakConnections is how many connections the soak makes; PILOT_SOAK says another number.
	soakConnections = 2000
	// soakWorkers is how many at a time.
	soakWorkers = 8
	// soakRest is how long what has closed may take to be gone: a closed TCP connection rests for a quarter of a minute.
	soakRest = time.Minute
	// soakSlack is by how many goroutines a node that does nothing may differ from one moment to the next.
	soakSlack = 10
)

// leftovers are what connections must not leave behind.
type leftovers struct{ goroutines, descriptors, sockets int }

func countLeftovers(nodes ...*Node) leftovers {
	l := leftovers{goroutines: runtime.NumGoroutine()}
	if names, err := os.ReadDir("/proc/self/fd"); err == nil { // Linux
		l.descriptors = len(names)
	}
	for _, n := range nodes {
		l.sockets += n.node.Sockets()
	}
	return l
}

// soak is two agents, of whom one has proxies.
type soak struct {
	t              *testing.T
	server, client *Node
	socks          proxy.Dialer
	http           *http.Client
	connect        string
}

// Thousands of short connections by an embedded node and through both proxies, some of them refused, leave no goroutine,
// descriptor or port behind.
func TestSoak(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv("PILOT_SOAK"))
	if err != nil {
		count = soakConnections
	}
	s := &soak{t: t, server: founder(t, options(t, "planner"))}
	s.client = joined(t, s.server, "indexer")
	s.proxies()
	s.serve()
	for kind := range 6 {
		s.one(kind) // what starts lazily has started
	}
	before := countLeftovers(s.client, s.server)
	before.sockets = 2 // the server's listeners
	began := time.Now()
	var wg sync.WaitGroup
	for w := range soakWorkers {
		wg.Go(func() {
			for i := w; i < count && !t.Failed(); i += soakWorkers {
				s.one(i % 6)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	after := s.settled(before)
	t.Logf("%d connections in %v; before %+v, after %+v", count, took.Round(time.Millisecond), before, after)
}

// settled waits until there is no more than there was.
func (s *soak) settled(before leftovers) (now leftovers) {
	for end := time.Now().Add(soakRest); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		now = countLeftovers(s.client, s.server)
		if now.goroutines <= before.goroutines+soakSlack && now.descriptors <= before.descriptors && now.sockets <= before.sockets {
			return now
		}
	}
	buf := make([]byte, 1<<20)
	s.t.Fatalf("before %+v, after %+v\n%s", before, now, buf[:runtime.Stack(buf, true)])
	return now
}

// proxies lets this host's programs in by the client's node.
func (s *soak) proxies() {
	const user, password = "pilot", "of this test"
	var l [2]net.Listener
	for i := range l {
		var err error
		if l[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			s.t.Fatal(err)
		}
	}
	g := gateway.New(gateway.Options{Network: s.client.node, SOCKS5: l[0], HTTP: l[1], User: user, Password: password})
	ctx, cancel := context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	var err error
	if s.socks, err = proxy.SOCKS5("tcp", l[0].Addr().String(), &proxy.Auth{User: user, Password: password}, nil); err != nil {
		s.t.Fatal(err)
	}
	s.connect = l[1].Addr().String()
	s.http = &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: s.connect, User: url.UserPassword(user, password)}), DisableKeepAlives: true,
	}}
}

// serve lets the server echo on port 7, and answer HTTP on port 80.
func (s *soak) serve() {
	echo, err := s.server.Listen("tcp", ":7")
	if err != nil {
		s.t.Fatal(err)
	}
	web, err := s.server.Listen("tcp", ":80")
	if err != nil {
		s.t.Fatal(err)
	}
	site := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, "ping")
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = site.Serve(web) })
	wg.Go(func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	s.t.Cleanup(func() { site.Close(); echo.Close(); wg.Wait() })
}

// one makes one connection.
func (s *soak) one(kind int) {
	switch kind {
	case 0:
		c, err := s.client.Dial("tcp", "planner:7")
		s.echoed("an embedded node", c, err)
	case 1:
		c, err := s.socks.Dial("tcp", "planner:7")
		s.echoed("SOCKS5", c, err)
	case 2:
		c, err := s.tunnel()
		s.echoed("CONNECT", c, err)
	case 3:
		r, err := s.http.Get("http://planner/")
		if err != nil {
			s.t.Error(err)
			return
		}
		defer r.Body.Close()
		if text, err := io.ReadAll(r.Body); string(text) != "ping" || err != nil {
			s.t.Errorf("HTTP: %q %v", text, err)
		}
	case 4:
		if _, err := s.client.Dial("tcp", "planner:81"); !errors.Is(err, syscall.ECONNREFUSED) {
			s.t.Errorf("a closed port: %v", err)
		}
	case 5:
		if _, err := s.socks.Dial("tcp", "127.0.0.1:7"); err == nil {
			s.t.Error("this host is reached")
		}
	}
}

// tunnel asks the HTTP proxy for a connection.
func (s *soak) tunnel() (net.Conn, error) {
	c, err := net.Dial("tcp", s.connect)
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(c, "CONNECT planner:7 HTTP/1.1\r\nHost: planner:7\r\nProxy-Authorization: Basic cGlsb3Q6b2YgdGhpcyB0ZXN0\r\n\r\n")
	if err == nil {
		var r *http.Response
		if r, err = http.ReadResponse(bufio.NewReaderSize(io.LimitReader(c, int64(len("HTTP/1.1 200 Connection established\r\n\r\n"))), 16), nil); err == nil && r.StatusCode != http.StatusOK {
			err = fmt.Errorf("CONNECT: %s", r.Status)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// echoed sends something there and back, each side closing its half.
func (s *soak) echoed(by string, c net.Conn, err error) {
	if err != nil {
		s.t.Errorf("%s: %v", by, err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "ping"); err != nil {
		s.t.Errorf("%s: %v", by, err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		s.t.Errorf("%s: %v", by, err)
	}
	if text, err := io.ReadAll(c); string(text) != "ping" || err != nil {
		s.t.Errorf("%s: %q %v", by, text, err)
	}
}
