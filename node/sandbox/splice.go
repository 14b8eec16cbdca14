// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// A buffer begins small, and grows while it is filled: most connections have little to say.
const (
	firstBuffer = 16 << 10
	lastBuffer  = 256 << 10
)

// stream is a TCP connection of either side.
type stream interface {
	net.Conn
	CloseWrite() error
	SetLinger(seconds int) error
}

// spliceStreams moves bytes both ways until both directions have ended, or one is broken. An end in one direction is passed
// on while the other goes on; what breaks on one side breaks on the other.
func spliceStreams(near, far net.Conn) {
	a, okA := near.(stream)
	b, okB := far.(stream)
	if !okA || !okB {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { move(a, b) })
	move(b, a)
	both.Wait()
}

// move copies until from ends.
func move(to, from stream) {
	buf := make([]byte, firstBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, failed := to.Write(buf[:n]); failed != nil {
				err = failed
			}
		}
		if errors.Is(err, io.EOF) {
			err = to.CloseWrite()
			if err == nil {
				return
			}
		}
		if err != nil {
			for _, c := range []stream{to, from} {
				_ = c.SetLinger(0) // it may be closed already
				_ = c.Close()
			}
			return
		}
		if n == len(buf) && n < lastBuffer {
			buf = make([]byte, 2*n)
		}
	}
}

// spliceDatagrams moves datagrams both ways until one side is closed: the gateway closes near when nothing moves any more.
func spliceDatagrams(near, far net.Conn) {
	refuse := func(error) {}
	if r, ok := near.(interface{ Refuse(error) }); ok {
		refuse = r.Refuse
	}
	var both sync.WaitGroup
	both.Go(func() { datagrams(near, far, refuse) })
	datagrams(far, near, refuse)
	both.Wait()
}

// maxDatagram is the longest that UDP can carry.
const maxDatagram = 65535

// datagrams copies until from ends, or the far end is found not to be there: that shows in either direction.
func datagrams(to, from net.Conn, refuse func(error)) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, maxDatagram)
	for {
		n, err := from.Read(buf)
		if err == nil {
			_, err = to.Write(buf[:n])
			if err != nil && !gone(err) {
				continue // lost, as on any network
			}
		}
		if err != nil {
			if gone(err) {
				refuse(err)
			}
			return
		}
	}
}

// gone tells the errors by which a network says that nobody is there.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
