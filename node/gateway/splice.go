// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// bufferSize is that of one direction of a connection, in bytes.
const bufferSize = 64 << 10

// splice is two connections that are one for their far ends.
type splice struct {
	a, b  net.Conn
	moved atomic.Int64 // when something moved last, in nanoseconds since 1970
	half  atomic.Bool  // one side has said all
}

// splice copies both ways until both sides have said all, one of them fails, nothing moves for too long, or ctx ends; then it
// closes both.
func (g *Gateway) splice(ctx context.Context, a, b net.Conn) {
	s := &splice{a: a, b: b}
	defer s.close()
	s.moved.Store(time.Now().UnixNano())
	ends := make(chan struct{}, 2)
	for _, way := range [2][2]net.Conn{{a, b}, {b, a}} {
		go func() {
			g.copy(s, way[0], way[1])
			ends <- struct{}{}
		}()
	}
	look := time.NewTimer(halfLimit)
	defer look.Stop()
	over := ctx.Done()
	for left := 2; left > 0; {
		select {
		case <-ends:
			left--
		case <-over:
			s.close()
			over = nil
		case <-look.C:
			if s.idle() {
				s.close()
			}
			look.Reset(halfLimit)
		}
	}
}

func (s *splice) idle() bool {
	still := time.Since(time.Unix(0, s.moved.Load()))
	return still >= idleLimit || still >= halfLimit && s.half.Load()
}

func (s *splice) close() {
	s.a.Close()
	s.b.Close()
}

// copy moves one direction. The end of what is said is passed on, a failure ends both directions.
func (g *Gateway) copy(s *splice, to, from net.Conn) {
	buf := g.buffers.Get().(*[bufferSize]byte)
	defer g.buffers.Put(buf)
	for {
		n, err := from.Read(buf[:])
		if n > 0 {
			s.moved.Store(time.Now().UnixNano())
			if _, failed := to.Write(buf[:n]); failed != nil {
				err = failed
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			s.half.Store(true)
			if closeWrite(to) != nil {
				s.close()
			}
			return
		default:
			s.close()
			return
		}
	}
}

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
