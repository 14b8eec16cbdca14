// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// A connection on which nothing is heard is asked whether it is still there after keepaliveIdle, and given up when
	// keepaliveCount questions, keepaliveInterval apart, were not answered.
	keepaliveIdle     = 2 * time.Minute
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 5
)

// socket is what TCP and UDP have in common.
type socket struct {
	core *core
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	// The entries stay in wq as long as the socket lives; a token means that it is worth a look.
	readEntry, writeEntry waiter.Entry
	readable, writable    chan struct{}
	readBy, writeBy       deadline
	closed                chan struct{}
	closeOnce             sync.Once

	// moved is when something was read or written last, in nanoseconds since 1970; 0 where nobody wants to know.
	moved  atomic.Int64
	idleMu sync.Mutex // guards idle
	idle   *time.Timer
}

func (s *socket) init(c *core, ep tcpip.Endpoint, wq *waiter.Queue) {
	s.core, s.ep, s.wq, s.closed = c, ep, wq, make(chan struct{})
	s.readEntry, s.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	s.writeEntry, s.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&s.readEntry)
	wq.EventRegister(&s.writeEntry)
}

// wait returns nil when there may be something to do.
func (s *socket) wait(event chan struct{}, by *deadline) error {
	select {
	case <-event:
		return nil
	case <-by.passed():
		return os.ErrDeadlineExceeded
	case <-s.closed:
		return net.ErrClosed
	case <-s.core.closing:
		return net.ErrClosed
	}
}

// may returns why an operation can't begin.
func (s *socket) may(by *deadline) error {
	select {
	case <-s.closed:
		return net.ErrClosed
	case <-s.core.closing:
		return net.ErrClosed
	case <-by.passed():
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// fault is the error that an operation ended with.
func (s *socket) fault(e tcpip.Error) error {
	if s.may(&deadline{}) != nil {
		return net.ErrClosed
	}
	return stackError(e)
}

// watch closes the socket when nothing was read or written for that long.
func (s *socket) watch(limit time.Duration) {
	s.moved.Store(time.Now().UnixNano())
	s.look(limit, limit)
}

// look looks again after some time.
func (s *socket) look(after, limit time.Duration) {
	s.idleMu.Lock()
	defer s.idleMu.Unlock()
	if s.may(&deadline{}) != nil {
		return
	}
	s.idle = time.AfterFunc(after, func() {
		if left := limit - time.Since(time.Unix(0, s.moved.Load())); left > 0 {
			s.look(left, limit)
		} else {
			s.close()
		}
	})
}

// touch says that something moved.
func (s *socket) touch() {
	if s.moved.Load() != 0 {
		s.moved.Store(time.Now().UnixNano())
	}
}

// close reports whether it was open.
func (s *socket) close() bool {
	first := false
	s.closeOnce.Do(func() {
		first = true
		close(s.closed)
		s.idleMu.Lock()
		if s.idle != nil {
			s.idle.Stop()
		}
		s.idleMu.Unlock()
		s.readBy.set(time.Time{})
		s.writeBy.set(time.Time{})
		s.core.disuse(s.ep)
		s.ep.Close()
	})
	return first
}

func (s *socket) SetDeadline(t time.Time) error {
	s.readBy.set(t)
	s.writeBy.set(t)
	return nil
}

func (s *socket) SetReadDeadline(t time.Time) error {
	s.readBy.set(t)
	return nil
}

func (s *socket) SetWriteDeadline(t time.Time) error {
	s.writeBy.set(t)
	return nil
}

// signal lets somebody else have a look too.
func signal(event chan struct{}) {
	select {
	case event <- struct{}{}:
	default:
	}
}

// conn is a TCP connection, as [net.TCPConn] is.
type conn struct {
	socket
	local, remote net.Addr

	readMu sync.Mutex
	into   tcpip.SliceWriter

	writeMu sync.Mutex
	from    bytes.Reader
}

var _ net.Conn = (*conn)(nil)

func newConn(core *core, ep tcpip.Endpoint, wq *waiter.Queue) *conn {
	c := &conn{}
	c.init(core, ep, wq)
	core.use(ep)
	local, _ := ep.GetLocalAddress()
	remote, _ := ep.GetRemoteAddress()
	c.local, c.remote = net.TCPAddrFromAddrPort(addrPort(local)), net.TCPAddrFromAddrPort(addrPort(remote))
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
	return c
}

func (c *conn) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Read implements [net.Conn].
func (c *conn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if err := c.may(&c.readBy); err != nil {
		return 0, c.failed("read", err)
	}
	if len(b) == 0 {
		return 0, nil
	}
	defer func() { c.into = nil }()
	for {
		c.into = b
		r, e := c.ep.Read(&c.into, tcpip.ReadOptions{})
		switch e.(type) {
		case nil:
			c.touch()
			c.ep.ModerateRecvBuf(r.Count)
			return r.Count, nil
		case *tcpip.ErrWouldBlock:
			if err := c.wait(c.readable, &c.readBy); err != nil {
				return 0, c.failed("read", err)
			}
		case *tcpip.ErrClosedForReceive:
			if c.may(&deadline{}) != nil {
				return 0, c.failed("read", net.ErrClosed)
			}
			return 0, io.EOF
		default:
			return 0, c.failed("read", c.fault(e))
		}
	}
}

// Write implements [net.Conn].
func (c *conn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.may(&c.writeBy); err != nil {
		return 0, c.failed("write", err)
	}
	defer c.from.Reset(nil)
	n := 0
	for n < len(b) {
		c.from.Reset(b[n:])
		m, e := c.ep.Write(&c.from, tcpip.WriteOptions{})
		n += int(m)
		switch e.(type) {
		case nil:
			c.touch()
		case *tcpip.ErrWouldBlock:
			if err := c.wait(c.writable, &c.writeBy); err != nil {
				return n, c.failed("write", err)
			}
		default:
			return n, c.failed("write", c.fault(e))
		}
	}
	return n, nil
}

// CloseWrite ends the stream to the other end, which may go on sending.
func (c *conn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

// CloseRead lets reads end with io.EOF.
func (c *conn) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

func (c *conn) shutdown(what tcpip.ShutdownFlags) error {
	if err := c.may(&deadline{}); err != nil {
		return c.failed("close", err)
	}
	if e := c.ep.Shutdown(what); e != nil {
		return c.failed("close", c.fault(e))
	}
	return nil
}

// SetLinger(0) lets Close reset the connection, as with [net.TCPConn.SetLinger]. Other times change nothing.
func (c *conn) SetLinger(seconds int) error {
	if err := c.may(&deadline{}); err != nil {
		return c.failed("set", err)
	}
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: seconds == 0})
	return nil
}

// Close implements [net.Conn]. What was written is still sent, in the background.
func (c *conn) Close() error {
	if !c.close() {
		return c.failed("close", net.ErrClosed)
	}
	return nil
}

// listener accepts TCP connections.
type listener struct {
	socket
	addr net.Addr
}

func newListener(s *Stack, ep tcpip.Endpoint, wq *waiter.Queue) *listener {
	l := &listener{}
	l.init(s.core, ep, wq)
	local, _ := ep.GetLocalAddress()
	l.addr = net.TCPAddrFromAddrPort(addrPort(local))
	return l
}

func (l *listener) Addr() net.Addr { return l.addr }

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	for {
		err := l.may(&l.readBy)
		if err == nil {
			ep, wq, e := l.ep.Accept(nil)
			switch e.(type) {
			case nil:
				signal(l.readable) // another Accept may be waiting for the next one
				return newConn(l.core, ep, wq), nil
			case *tcpip.ErrWouldBlock:
				err = l.wait(l.readable, &l.readBy)
			default:
				err = l.fault(e)
			}
		}
		if err != nil {
			signal(l.readable)
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: err}
		}
	}
}

// Close implements [net.Listener]. Connections that nobody has accepted are reset.
func (l *listener) Close() error {
	if !l.close() {
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
	}
	return nil
}
