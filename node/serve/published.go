// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/splice"
)

// published is a port with all that goes over it.
type published struct {
	Port
	s *Server

	// Guarded by the server's lock.
	tcp     net.Listener   // nil: it is udp, or can't be listened on
	udp     net.PacketConn // likewise
	begun   bool           // run was called
	removed bool
	failed  error // why it can't be listened on

	gone    chan struct{} // closed by remove
	moved   splice.Counters
	flows   limiter
	targets struct {
		failures atomic.Uint64
		problem  atomic.Pointer[localapi.Problem] // nil: the last one answered
	}
}

func newPublished(s *Server, p Port) *published {
	q := &published{Port: p, s: s, gone: make(chan struct{})}
	q.flows.most, q.flows.mostOfPeer, q.flows.peers = maxFlows, maxPeerFlows, make(map[netip.Addr]int)
	if p.Protocol == localapi.ServeUDP {
		q.flows.most, q.flows.mostOfPeer = maxFlows/4, maxPeerFlows/4 // each has a buffer for the largest datagram
	}
	return q
}

// listen tries to. The server's lock is held.
func (p *published) listen(ctx context.Context) error {
	var err error
	if p.Protocol == localapi.ServeUDP {
		p.udp, err = p.s.o.Network.ListenUDP(ctx, p.Port.Port)
	} else {
		p.tcp, err = p.s.o.Network.ListenTCP(ctx, p.Port.Port)
	}
	p.failed = nil
	if err != nil {
		p.tcp, p.udp, p.failed = nil, nil, explainListen(p.Port, err)
	}
	return p.failed
}

// start reports whether run is to be called now. The server's lock is held.
func (p *published) start(ctx context.Context) bool {
	if p.begun || p.removed {
		return false
	}
	if p.failed != nil {
		if err := p.listen(ctx); err != nil {
			return false
		}
		p.s.log.Info("a published port can be listened on now", "port", p.Port.Port, "protocol", p.Protocol)
	}
	p.begun = true
	return true
}

// remove ends it. The server's lock is held.
func (p *published) remove() {
	if p.removed {
		return
	}
	p.removed = true
	close(p.gone)
	if p.tcp != nil {
		p.tcp.Close()
	}
	if p.udp != nil {
		p.udp.Close()
	}
}

var errRemoved = errors.New("the port is published no more")

// run serves until the port is removed, and returns when all its connections have ended.
func (p *published) run(ctx context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errRemoved)
	removed := make(chan struct{})
	go func() {
		defer close(removed)
		select {
		case <-p.gone:
			cancel(errRemoved)
		case <-ctx.Done():
		}
	}()
	switch p.Protocol {
	case localapi.ServeUDP:
		p.serveUDP(ctx)
	case localapi.ServeHTTP:
		p.serveHTTP(ctx)
	default:
		p.serveTCP(ctx)
	}
	cancel(errRemoved)
	<-removed
}

// reached notes how it went with the target.
func (p *published) reached(err error) {
	if err == nil {
		if p.targets.problem.Load() != nil {
			p.targets.problem.Store(nil)
		}
		return
	}
	p.targets.failures.Add(1)
	problem := &localapi.Problem{Code: localapi.CodeUnavailable, Message: "the last connection to " + p.Target.String() + " failed: " + plain(err).Error(),
		Hint: "does the program listen there?"}
	var own *localapi.Error
	if errors.As(err, &own) {
		problem.Code, problem.Message, problem.Hint = own.Code, own.Message, own.Hint
	}
	p.targets.problem.Store(problem)
}

// plain is an error without the addresses that net puts around it.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// status counts. The server's lock is held.
func (p *published) status() localapi.Served {
	s := localapi.Served{
		Protocol: p.Protocol, Port: p.Port.Port, Target: p.Target.String(), Failed: p.targets.failures.Load(),
		RxBytes: p.moved.Forth.Load(), TxBytes: p.moved.Back.Load(), Problem: p.targets.problem.Load(),
	}
	s.Active, s.Connections, s.Refused = p.flows.counts()
	var own *localapi.Error
	if errors.As(p.failed, &own) {
		s.Problem = &localapi.Problem{Code: own.Code, Message: own.Message, Hint: own.Hint}
	}
	return s
}

// limiter counts flows, all and by peer.
type limiter struct {
	most, mostOfPeer int

	mu             sync.Mutex // guards all below
	active         int
	peers          map[netip.Addr]int
	total, refused uint64
}

// add reports whether there is room for one more; if so, done is to be called at its end.
func (l *limiter) add(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active >= l.most || l.peers[peer] >= l.mostOfPeer {
		l.refused++
		return false
	}
	l.active++
	l.peers[peer]++
	l.total++
	return true
}

func (l *limiter) done(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
	if l.peers[peer]--; l.peers[peer] == 0 {
		delete(l.peers, peer)
	}
}

func (l *limiter) refuse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused++
}

func (l *limiter) counts() (active int, total, refused uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.active, l.total, l.refused
}

// acceptPause is how long a listener waits that can't accept: descriptors may be short.
const acceptPause = 50 * time.Millisecond

// pause waits, and reports whether ctx has not ended.
func pause(ctx context.Context) bool {
	t := time.NewTimer(acceptPause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
