// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"io"
	"net"
	"sync"
)

// limited is a listener that accepts so many connections at once. It passes their CloseWrite and SetLinger on, which the
// listener of golang.org/x/net/netutil does not.
type limited struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimited(l net.Listener, n int) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

// Accept implements [net.Listener].
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, l: l}, nil
}

// Close implements [net.Listener].
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	l    *limited
	once sync.Once
}

// Close implements [net.Conn].
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.l.slots })
	return err
}

// CloseWrite says that no more will be sent.
func (c *limitedConn) CloseWrite() error { return closeWrite(c.Conn) }

// SetLinger(0) lets Close reset the connection.
func (c *limitedConn) SetLinger(seconds int) error { return setLinger(c.Conn, seconds) }

// ahead is a connection of which something was read already.
type ahead struct {
	net.Conn
	r io.Reader
}

func (c *ahead) Read(b []byte) (int, error)  { return c.r.Read(b) }
func (c *ahead) CloseWrite() error           { return closeWrite(c.Conn) }
func (c *ahead) SetLinger(seconds int) error { return setLinger(c.Conn, seconds) }

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

func setLinger(c net.Conn, seconds int) error {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		return l.SetLinger(seconds)
	}
	return errors.ErrUnsupported
}
