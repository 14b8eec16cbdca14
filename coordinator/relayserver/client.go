// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

// client is a member that is connected. What the loops read doesn't change, or is atomic.
type client struct {
	server *Server
	conn   *tls.Conn
	in     *bufio.Reader

	agent       identity.AgentPublic
	addr        netip.Addr  // overlay address
	slot        uint32      // that it writes
	token       relay.Token // likewise
	secret      relay.Secret
	theirs      relay.Header             // slot and token that we write; the address is the source's
	udp         atomic.Pointer[endpoint] // nil: no proved way
	queue       *relay.Queue
	meter       meter
	goneAt      atomic.Int64 // when it was told of one that is gone, in nanoseconds since 1970
	unboundAt   atomic.Int64 // when it was told that its address is not bound
	member      atomic.Pointer[identity.RelayPass]
	endOnce     sync.Once
	expiry      *time.Timer
	burst       burst // from TLS on its way to UDP
	burstBuffer []byte
}

// greet reads the client's first frame and admits it, or says why not.
func (s *Server) greet(conn *tls.Conn) (*client, error) {
	select {
	case s.greeted <- struct{}{}:
		defer func() { <-s.greeted }()
	default:
		return nil, errFull
	}
	ctx, cancel := context.WithTimeout(context.Background(), helloLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })
	defer stop()
	go func() { // a relay that ends does not wait for those who say nothing
		select {
		case <-s.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c := &client{server: s, conn: conn, in: bufio.NewReaderSize(conn, relay.FrameBuffer), queue: relay.NewQueue(queueLimit, 2)}
	reason, err := c.admit(ctx)
	if err != nil {
		s.counts.refused.Add(1)
		if reason != 0 {
			_, werr := conn.Write(relay.AppendFrame(nil, relay.FrameBye, []byte{byte(reason)}))
			err = errors.Join(err, werr)
		}
		return nil, err
	}
	if !stop() {
		c.expiry.Stop()
		s.table.remove(c)
		return nil, ctx.Err()
	}
	return c, nil
}

// admit checks who the client is, gives it a slot, and welcomes it.
func (c *client) admit(ctx context.Context) (relay.Reason, error) {
	s := c.server
	cs := c.conn.ConnectionState()
	agent, err := relay.PeerKey(&cs)
	if err != nil {
		return relay.ReasonMember, err
	}
	t, body, err := relay.ReadFrame(c.in)
	if err != nil {
		return 0, err
	}
	if t != relay.FrameHello {
		return relay.ReasonMalformed, relay.ErrFrame
	}
	hello, err := relay.ParseHello(body)
	if err != nil {
		return relay.ReasonMalformed, err
	}
	pass, reason, err := s.member(ctx, agent, hello.Pass)
	if err != nil {
		return reason, err
	}
	c.agent, c.addr = agent, identity.Address(s.options.Network, agent)
	c.member.Store(&pass)
	c.theirs = relay.Header{Slot: hello.Slot, Token: hello.Token}
	c.meter.set(s.options.Rate, s.options.Burst)
	for _, b := range [][]byte{c.token[:], c.secret[:]} {
		if _, err := io.ReadFull(rand.Reader, b); err != nil {
			return relay.ReasonBusy, err
		}
	}
	c.expiry = time.AfterFunc(pass.NotAfter.Sub(s.options.Now())+clockSkew, func() { c.end(relay.ReasonExpired) })
	old, err := s.table.add(c)
	if err != nil {
		c.expiry.Stop()
		return relay.ReasonBusy, err
	}
	if old != nil {
		old.end(relay.ReasonReplaced)
	}
	welcome := relay.Welcome{
		UDP: s.UDPPort(), Slot: c.slot, Token: c.token, Secret: c.secret, Observed: addrPort(c.conn.RemoteAddr()),
		Rate: uint32(max(0, s.options.Rate) / 1000), MaxDatagram: relay.MaxDatagram,
	}
	if _, err := c.conn.Write(welcome.Append(nil)); err != nil {
		c.expiry.Stop()
		s.table.remove(c)
		return 0, err
	}
	if s.isRevoked(agent, pass.Serial) { // meanwhile
		c.end(relay.ReasonRevoked)
	}
	return 0, nil
}

// run serves the client until the connection ends.
func (c *client) run() error {
	s := c.server
	defer s.table.remove(c)
	defer c.expiry.Stop()
	s.counts.connections.Add(1)
	g, ctx := errgroup.WithContext(context.Background())
	g.Go(func() error {
		c.wait(ctx)
		return c.conn.NetConn().Close() // wakes the reader
	})
	g.Go(func() error { return c.queue.Drain(ctx, c.conn) })
	g.Go(c.read)
	return g.Wait()
}

// wait returns when ctx ends. Until then it ends the client when the relay ends, or when the client is no member any more.
func (c *client) wait(ctx context.Context) {
	s := c.server
	look := time.NewTicker(checkInterval)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.ended:
			c.end(relay.ReasonClosing)
			<-ctx.Done()
			return
		case <-look.C:
			if err := s.check(ctx, *c.member.Load()); err != nil && ctx.Err() == nil {
				c.end(relay.ReasonRevoked)
			}
		}
	}
}

// end tells the client why, and ends the connection.
func (c *client) end(reason relay.Reason) {
	c.endOnce.Do(func() {
		c.udp.Store(nil)
		c.queue.Frame(relay.FrameBye, []byte{byte(reason)})
		c.queue.Close()
	})
}

// read takes the client's frames until there are no more.
func (c *client) read() error {
	if err := c.conn.SetReadDeadline(time.Now().Add(idleLimit)); err != nil {
		return err
	}
	for {
		t, body, err := relay.ReadFrame(c.in)
		if err != nil {
			return err
		}
		switch t {
		case relay.FrameData:
			to, d, ok := relay.ParseData(body)
			if !ok {
				c.end(relay.ReasonMalformed)
				return nil // the queue ends the connection when it has said why
			}
			c.forward(to, d)
		case relay.FramePing:
			if len(body) == 8 {
				c.queue.Frame(relay.FramePong, body)
			}
			if err := c.conn.SetReadDeadline(time.Now().Add(idleLimit)); err != nil {
				return err
			}
		case relay.FramePass:
			if !c.renew(body) {
				return nil
			}
		}
		if !relay.FrameWaits(c.in) {
			c.flush() // nothing more has come: what waits for company goes
		}
	}
}

// renew takes a new pass in place of the one that will expire.
func (c *client) renew(raw []byte) bool {
	ctx, cancel := context.WithTimeout(context.Background(), helloLimit)
	defer cancel()
	pass, reason, err := c.server.member(ctx, c.agent, raw)
	if err != nil {
		c.server.log.Debug("a relay client's new pass", "error", err)
		c.end(reason)
		return false
	}
	if pass.Serial > c.member.Load().Serial {
		c.member.Store(&pass)
		c.expiry.Reset(pass.NotAfter.Sub(c.server.options.Now()) + clockSkew)
	}
	return true
}

// forward sends on a datagram that came over TLS.
func (c *client) forward(to netip.Addr, d []byte) {
	s, now := c.server, time.Now()
	if c.meter.take(now.UnixNano(), len(d), len(d)) == 0 {
		s.counts.limited.Add(1)
		return
	}
	dst := s.table.find(to)
	if dst == nil || dst == c {
		c.gone(to, now)
		return
	}
	s.counts.datagrams.Add(1)
	s.counts.bytes.Add(uint64(len(d)))
	if ep := dst.udp.Load(); ep != nil {
		c.append(dst, ep, d)
		return
	}
	if dst.queue.Data(c.slot, c.addr, d, len(d), 0) == 0 {
		s.counts.full.Add(1)
	}
}

// append adds a datagram to the burst that is on its way to UDP, and sends the burst before if it doesn't go with it.
func (c *client) append(dst *client, ep *endpoint, d []byte) {
	size := relay.HeaderSize + len(d)
	if !c.burst.fits(ep, size, 0) {
		c.flush()
	}
	if c.burstBuffer == nil {
		c.burstBuffer = make([]byte, 0, maxBurst)
	}
	start := len(c.burstBuffer)
	h := dst.theirs
	h.Address = c.addr
	c.burstBuffer = append(h.Append(c.burstBuffer), d...)
	c.burst.add(ep, c.burstBuffer[start:], size, 0)
}

func (c *client) flush() {
	c.server.udp.send(&c.burst)
	c.burstBuffer = c.burstBuffer[:0]
}

// gone tells the client that an agent is not connected here.
func (c *client) gone(to netip.Addr, now time.Time) {
	c.server.counts.gone.Add(1)
	last, n := c.goneAt.Load(), now.UnixNano()
	if n-last < int64(gonePause) || !c.goneAt.CompareAndSwap(last, n) {
		return
	}
	a := to.As16()
	c.queue.Frame(relay.FrameGone, a[:])
}
