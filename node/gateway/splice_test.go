// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// halfPipe is an end of a connection in memory that can be closed by half.
type halfPipe struct {
	net.Conn // for what is not used
	r        *io.PipeReader
	w        *io.PipeWriter
}

func halfPipes() (a, b *halfPipe) {
	ra, wb := io.Pipe()
	rb, wa := io.Pipe()
	return &halfPipe{r: ra, w: wa}, &halfPipe{r: rb, w: wb}
}

func (p *halfPipe) Read(b []byte) (int, error)  { return p.r.Read(b) }
func (p *halfPipe) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p *halfPipe) CloseWrite() error           { return p.w.Close() }
func (p *halfPipe) Close() error {
	return errors.Join(p.r.CloseWithError(net.ErrClosed), p.w.CloseWithError(io.ErrUnexpectedEOF))
}

// Connections on which nothing moves end, later where both sides may still speak.
func TestIdleConnectionsEnd(t *testing.T) {
	for _, c := range []struct {
		name        string
		half        bool
		least, most time.Duration
	}{
		{"both may speak", false, idleLimit, idleLimit + halfLimit},
		{"one has said all", true, halfLimit, 2 * halfLimit},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := New(Options{})
				near, a := halfPipes()
				b, far := halfPipes()
				ended := make(chan struct{})
				go func() { g.splice(t.Context(), a, b); close(ended) }()
				if _, err := near.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(far, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
				if c.half {
					if err := near.CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				began := time.Now()
				<-ended
				if took := time.Since(began); took < c.least || took > c.most {
					t.Errorf("it ended after %v", took)
				}
			})
		})
	}
}

// One that moves now and then stays, until the gateway ends.
func TestSlowConnectionsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		near, a := halfPipes()
		b, far := halfPipes()
		ended := make(chan struct{})
		go func() { g.splice(ctx, a, b); close(ended) }()
		for range 24 {
			if _, err := far.Write([]byte(".")); err != nil {
				t.Fatal(err)
			}
			if _, err := near.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Hour)
		}
		cancel()
		<-ended
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("it goes on after the gateway's end")
		}
	})
}
