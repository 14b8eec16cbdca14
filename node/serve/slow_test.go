// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// pipeNetwork is a network, and a host with a program, in memory.
type pipeNetwork struct{ peers, program chan net.Conn }

// pipeConn is a connection in memory with a peer's address.
type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("fd5c:1d2:93a0::a"), 1234))
}

// pipeListener accepts what is sent to a channel.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (n pipeNetwork) ListenTCP(context.Context, uint16) (net.Listener, error) {
	return pipeListener{n.peers, make(chan struct{})}, nil
}
func (n pipeNetwork) ListenUDP(context.Context, uint16) (net.PacketConn, error) {
	return nil, net.ErrClosed
}
func (n pipeNetwork) Caller(netip.Addr) (localapi.Agent, error) { return caller, nil }

// slowly runs a server in a bubble of time, with one connection of a peer's.
func slowly(t *testing.T, protocol string, f func(peer net.Conn, program chan net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		n := pipeNetwork{make(chan net.Conn), make(chan net.Conn, 1)}
		s := New(Options{Network: n, Prefix: testNetwork, Dial: func(context.Context, string, string) (net.Conn, error) {
			a, b := net.Pipe()
			n.program <- b
			return a, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		if err := s.Set(ctx, []Port{port(t, protocol, 80, "8080")}); err != nil {
			t.Fatal(err)
		}
		a, b := net.Pipe()
		n.peers <- pipeConn{b}
		f(a, n.program)
		a.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// took is how long it takes until a connection ends, and what came until then.
func took(c net.Conn) (time.Duration, string) {
	began := time.Now()
	text, _ := io.ReadAll(c) // however it ends
	return time.Since(began), string(text)
}

func TestSlowHead(t *testing.T) {
	slowly(t, "http", func(peer net.Conn, _ chan net.Conn) {
		if _, err := io.WriteString(peer, "GET / HTTP/1.1\r\nHost: x\r\nX: "); err != nil {
			t.Fatal(err)
		}
		if d, _ := took(peer); d != headerLimit {
			t.Errorf("it ended after %v", d)
		}
	})
}

func TestSlowBody(t *testing.T) {
	slowly(t, "http", func(peer net.Conn, program chan net.Conn) {
		if _, err := io.WriteString(peer, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		b := <-program
		go func() { _, _ = io.Copy(io.Discard, b) }()
		defer b.Close()
		for range 3 { // slow is not stalled
			time.Sleep(stallLimit - time.Second)
			if _, err := io.WriteString(peer, "x"); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		resp, err := http.ReadResponse(bufio.NewReader(peer), nil)
		if err != nil || resp.StatusCode != http.StatusRequestTimeout || time.Since(began) != stallLimit {
			t.Errorf("%v %v after %v", resp, err, time.Since(began))
		}
	})
}

// A caller that takes nothing of its answer; one that takes a little now and then is waited for.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		c := &peerConn{Conn: b, p: newPublished(New(Options{}), Port{})}
		for range 3 {
			go func() {
				time.Sleep(stallLimit - time.Second)
				_, _ = a.Read(make([]byte, 1)) // the writer sees what is missing
			}()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		if _, err := c.Write([]byte("x")); err == nil || time.Since(began) != stallLimit {
			t.Errorf("it ended after %v: %v", time.Since(began), err)
		}
	})
}

// A program that takes its time is waited for; a kept connection isn't, for ever.
func TestSlowProgramAndIdleCaller(t *testing.T) {
	slowly(t, "http", func(peer net.Conn, program chan net.Conn) {
		if _, err := io.WriteString(peer, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"); err != nil {
			t.Fatal(err)
		}
		b := <-program
		defer b.Close()
		r, err := http.ReadRequest(bufio.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r.Body); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := io.WriteString(b, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(peer), nil)
		if err != nil {
			t.Fatal(err)
		}
		if text := bodyOf(t, resp); text != "done" {
			t.Errorf("%q", text)
		}
		if d, _ := took(peer); d != keepLimit {
			t.Errorf("it ended after %v", d)
		}
	})
}

func TestIdleTCP(t *testing.T) {
	slowly(t, "tcp", func(peer net.Conn, program chan net.Conn) {
		b := <-program
		go func() { _, _ = io.Copy(b, b) }()
		exchange(t, peer, "x")
		if d, _ := took(peer); d != idleLimit {
			t.Errorf("it ended after %v", d)
		}
	})
}
