// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	pingInterval = 25 * time.Second // where all goes over TLS
	// restInterval is where UDP has a way, and TLS only has to stay: below the four minutes after which some translators forget a
	// connection, and the five after which a relay does.
	restInterval = 210 * time.Second
	pongLimit    = 10 * time.Second
	hurryLimit   = 5 * time.Second // the host moved, or nothing comes back
	maxQueue     = 256 << 10       // bytes that wait for the connection
	maxControls  = 8
)

// session is one connection to the relay.
type session struct {
	client   *Client
	conn     *tls.Conn
	in       *bufio.Reader
	proxied  bool
	slot     uint32 // ours, that the relay writes
	token    Token
	welcome  Welcome
	pass     []byte // the one that the relay has
	bind     *binder
	controls chan Control
	pongs    chan uint64
	wake     chan struct{} // one slot: data was sent
	out      *Queue

	udp   atomic.Pointer[netip.AddrPort] // nil: no way
	used  atomic.Bool                    // something was sent since the last look
	heard atomic.Bool                    // something came since then
}

func newSession(c *Client, conn *tls.Conn) *session {
	s := &session{
		client: c, conn: conn, in: bufio.NewReaderSize(conn, FrameBuffer), pass: bytes.Clone(c.options.Pass()),
		controls: make(chan Control, maxControls), pongs: make(chan uint64, 1), wake: make(chan struct{}, 1), out: NewQueue(maxQueue, 1),
	}
	p, ok := conn.NetConn().(interface{ Proxied() bool })
	s.proxied = ok && p.Proxied()
	return s
}

// use notes that data is sent, and tells the one who watches if it is the first since it looked.
func (s *session) use() {
	if !s.used.Load() && s.used.CompareAndSwap(false, true) {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// run serves the connection until it or ctx ends.
func (s *session) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		return s.conn.NetConn().Close()
	})
	g.Go(func() error { return s.read() })
	g.Go(func() error { return s.out.Drain(ctx, s.conn) })
	g.Go(func() error { return s.watch(ctx) })
	return g.Wait()
}

func (s *session) read() error {
	for {
		t, body, err := ReadFrame(s.in)
		if err != nil {
			return err
		}
		switch t {
		case FrameData:
			if from, d, ok := ParseData(body); ok {
				s.heard.Store(true)
				s.client.options.Deliver(from, d)
			}
		case FramePong:
			if len(body) == 8 {
				select {
				case s.pongs <- binary.BigEndian.Uint64(body):
				default:
				}
			}
		case FrameGone:
			if to, ok := ParseAddress(body); ok {
				s.client.options.Gone(to)
			}
		case FrameBye:
			if len(body) > 0 {
				return &ByeError{Reason: Reason(body[0])}
			}
		}
	}
}

// watcher is what the goroutine that looks after the paths knows.
type watcher struct {
	*session
	since    time.Time
	rtt      time.Duration // over TLS
	pingID   uint64        // that is not answered; 0: none
	pingAt   time.Time
	pingNext time.Time
	pingEnd  time.Time // when the answer is overdue
	look     time.Time // whether anything came back for what was sent; zero: nothing was sent
}

// watch keeps the UDP path and the connection alive, and finds out when one of them is dead.
func (s *session) watch(ctx context.Context) error {
	w := &watcher{session: s, since: time.Now()}
	w.ping(w.since, pongLimit)
	s.bind.start(w.since, false)
	s.client.live.Store(s)
	w.publish()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-s.wake:
			if w.look.IsZero() {
				s.heard.Store(false)
				w.look = time.Now().Add(silencePeriod)
			}
		case <-s.client.refresh:
			now := time.Now()
			s.bind.target = 0
			s.bind.start(now, true)
			w.ping(now, hurryLimit)
		case m := <-s.controls:
			s.send(s.bind.answer(time.Now(), m))
			w.publish()
		case id := <-s.pongs:
			w.pong(time.Now(), id)
		}
		now := time.Now()
		if w.pingID != 0 && !now.Before(w.pingEnd) {
			return errSilent
		}
		w.tick(now)
		timer.Reset(w.due().Sub(now))
	}
}

// tick does what is due.
func (w *watcher) tick(now time.Time) {
	if !w.look.IsZero() && !now.Before(w.look) {
		w.look = time.Time{}
		w.used.Store(false)
		if !w.heard.Load() {
			w.doubt(now)
		}
	}
	if !now.Before(w.pingNext) && w.pingID == 0 {
		w.ping(now, pongLimit)
	}
	w.send(w.bind.tick(now))
	w.publish()
}

// doubt asks the path in use whether it works, as nothing came back for what was sent.
func (w *watcher) doubt(now time.Time) {
	switch {
	case w.udp.Load() == nil:
		if w.pingID == 0 {
			w.ping(now, hurryLimit)
		}
	case w.bind.tries == 0:
		w.bind.start(now, true)
	}
}

// due is when tick has to look again.
func (w *watcher) due() time.Time {
	at := w.pingNext
	if w.pingID != 0 {
		at = w.pingEnd
	}
	for _, t := range []time.Time{w.look, w.bind.next} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	return at
}

func (w *watcher) ping(now time.Time, limit time.Duration) {
	if now := w.client.options.Pass(); !bytes.Equal(now, w.pass) && len(now) > 0 {
		w.pass = bytes.Clone(now)
		w.out.Frame(FramePass, w.pass)
	}
	w.pingID = uint64(now.UnixNano())
	w.pingAt, w.pingEnd = now, now.Add(limit)
	w.pingNext = now.Add(pingInterval)
	var id [8]byte
	binary.BigEndian.PutUint64(id[:], w.pingID)
	w.out.Frame(FramePing, id[:])
}

func (w *watcher) pong(now time.Time, id uint64) {
	if id != w.pingID {
		return
	}
	w.rtt, w.pingID = smooth(w.rtt, now.Sub(w.pingAt)), 0
	w.pingNext = now.Add(pingInterval)
	if w.udp.Load() != nil {
		w.pingNext = now.Add(restInterval)
	}
	w.publish()
}

// send sends a control.
func (s *session) send(d []byte) {
	if d == nil {
		return
	}
	if err := s.client.options.SendUDP(s.bind.to(), d); err != nil {
		s.client.log.Debug("sending to the relay by UDP", "error", err)
	}
}

// publish makes known what has changed.
func (w *watcher) publish() {
	b, old := w.bind, w.client.Status()
	status := Status{State: StateConnected, Since: w.since, Transport: TransportTLS, RTT: w.rtt}
	if w.proxied {
		status.Transport = TransportProxy
	}
	if b.bound {
		status.Transport, status.RTT, status.Observed = TransportUDP, b.rtt, b.seen
		if way := w.udp.Load(); way == nil || *way != b.way {
			w.udp.Store(new(b.way))
		}
	} else if w.udp.Swap(nil) != nil && w.pingID == 0 {
		w.pingNext = time.Now() // from now on the connection is all there is
	}
	if old.Err == nil && old == status {
		return
	}
	w.client.setStatus(status)
}
