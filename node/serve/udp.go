// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// udpIdle is how long a flow lives on which nothing moves (RFC 4787, REQ-5).
	udpIdle = 2 * time.Minute
	// maxDatagram is how many bytes one may have.
	maxDatagram = 65535
)

// packetConn is what the sockets of both the kernel and the userspace stack have.
type packetConn interface {
	net.PacketConn
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
}

// udpServer passes the datagrams of each peer's port on by a socket of its own, so that answers find their way back.
type udpServer struct {
	p       *published
	conn    packetConn
	buffers sync.Pool

	mu    sync.Mutex // guards flows
	flows map[netip.AddrPort]*udpFlow
}

// udpFlow is what one port of a peer's sends, and gets.
type udpFlow struct {
	peer  netip.AddrPort
	far   net.Conn
	moved atomic.Int64 // when something moved last, in nanoseconds since 1970
}

func (p *published) serveUDP(ctx context.Context) {
	conn, ok := p.udp.(packetConn)
	if !ok {
		p.s.log.Error("a UDP socket of a kind that can't be served", "port", p.Port.Port)
		return
	}
	u := &udpServer{p: p, conn: conn, flows: make(map[netip.AddrPort]*udpFlow)}
	u.buffers.New = func() any { return new([maxDatagram]byte) }
	var running sync.WaitGroup
	defer running.Wait()
	defer u.close()
	buf := u.buffers.Get().(*[maxDatagram]byte)
	defer u.buffers.Put(buf)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if !pause(ctx) { // others are about a single datagram
				return
			}
			continue
		}
		f := u.flow(ctx, from, &running)
		if f == nil {
			continue
		}
		f.moved.Store(time.Now().UnixNano())
		if _, err := f.far.Write(buf[:n]); err != nil {
			p.reached(err) // and lost
			continue
		}
		p.moved.Forth.Add(uint64(n))
	}
}

// flow returns the one of a peer's port, a new one where there is none. nil: there are too many, or the target is none.
func (u *udpServer) flow(ctx context.Context, peer netip.AddrPort, running *sync.WaitGroup) *udpFlow {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flows[peer]; f != nil {
		return f
	}
	host := peer.Addr().WithZone("")
	if !u.p.flows.add(host) {
		return nil
	}
	var d net.Dialer
	far, err := d.DialContext(ctx, "udp", u.p.Target.Addr.String())
	if err != nil {
		u.p.reached(err)
		u.p.flows.done(host)
		return nil
	}
	f := &udpFlow{peer: peer, far: far}
	u.flows[peer] = f
	running.Go(func() {
		defer u.p.flows.done(host)
		u.answer(f)
	})
	return f
}

// answer passes on what the target sends, until nothing has moved for some time or the server ends.
func (u *udpServer) answer(f *udpFlow) {
	defer func() {
		u.mu.Lock()
		delete(u.flows, f.peer)
		u.mu.Unlock()
		f.far.Close()
	}()
	buf := u.buffers.Get().(*[maxDatagram]byte)
	defer u.buffers.Put(buf)
	wait := udpIdle
	for {
		if err := f.far.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return
		}
		n, err := f.far.Read(buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if wait = udpIdle - time.Since(time.Unix(0, f.moved.Load())); wait <= 0 {
				return
			}
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // nobody listens there now
			u.p.reached(err)
			continue
		}
		wait = udpIdle
		f.moved.Store(time.Now().UnixNano())
		u.p.reached(nil)
		if _, err := u.conn.WriteToUDPAddrPort(buf[:n], f.peer); err == nil {
			u.p.moved.Back.Add(uint64(n))
		}
	}
}

// close ends all flows. None begins any more.
func (u *udpServer) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range u.flows {
		f.far.Close()
	}
}
