// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/underlay"
)

// Errors of Ping, wrapped in a *PingError.
var (
	// ErrUnknown: no agent that we know has this address.
	ErrUnknown = errors.New("unknown address")
	// ErrNotTrusted: one of the two consents is missing, or the peer says so.
	ErrNotTrusted = errors.New("not trusted")
	// ErrOffline: the peer does not answer, or nobody knows where it is.
	ErrOffline = errors.New("peer is not reachable")
)

// PingError says why a ping failed. It unwraps to one of the errors above.
type PingError struct {
	Err    error
	Reason string // a stable code: a Reason or a policy.Verdict
}

func (e *PingError) Error() string {
	if e.Reason == "" {
		return "ping: " + e.Err.Error()
	}
	return "ping: " + e.Err.Error() + " (" + e.Reason + ")"
}

func (e *PingError) Unwrap() error { return e.Err }

// PingResult is an answered ping.
type PingResult struct {
	RTT  time.Duration
	Path underlay.Path
}

const (
	pingRetry = time.Second
	pingTries = 10
)

// ping waits for a pong.
type ping struct {
	link *link
	sent time.Duration // 0: waits for a session
	done chan pong     // has room for one
}

type pong struct {
	result PingResult
	err    error
}

// Ping asks the peer with this address, in the name of a local agent, whether it is there: with a sealed message
// inside the session, which is made if there is none. It asks again each second, up to ten times.
// Errors: *PingError, or ctx's.
func (o *Overlay) Ping(ctx context.Context, local identity.AgentPublic, addr netip.Addr) (PingResult, error) {
	done := make(chan pong, 1)
	var ids []uint64
	defer func() {
		o.mu.Lock()
		defer o.unlock()
		for _, id := range ids {
			delete(o.control.pings, id)
		}
	}()
	retry := time.NewTimer(pingRetry)
	defer retry.Stop()
	for range pingTries {
		id, err := o.startPing(local, addr, done)
		if err != nil {
			return PingResult{}, err
		}
		ids = append(ids, id)
		retry.Reset(pingRetry)
		select {
		case <-ctx.Done():
			return PingResult{}, ctx.Err()
		case p := <-done:
			return p.result, p.err
		case <-retry.C:
		}
	}
	return PingResult{}, &PingError{Err: ErrOffline, Reason: string(ReasonTimeout)}
}

func (o *Overlay) startPing(local identity.AgentPublic, addr netip.Addr, done chan pong) (uint64, error) {
	now := o.now()
	o.mu.Lock()
	defer o.unlock()
	snap := o.snap.Load()
	r, ok := snap.routes[addresses(identity.Address(o.network, local), addr)]
	if !ok {
		if snap.prefix.Contains(addr) {
			o.events.emitUnknown(UnknownPeer{Local: local, Addr: addr}, now.at)
		}
		return 0, &PingError{Err: ErrUnknown}
	}
	if v := r.rules.Trust(addr, now.wall); v != policy.Allow {
		return 0, &PingError{Err: ErrNotTrusted, Reason: v.String()}
	}
	id := randomID()
	p := &ping{link: r.link, done: done}
	o.control.pings[id] = p
	if s := r.link.current.Load(); s != nil {
		o.sendPingLocked(s, id, p, now)
	} else {
		o.scheduleLocked(r.link, now.at)
	}
	return id, nil
}

func (o *Overlay) sendPingLocked(s *session, id uint64, p *ping, now moment) {
	p.sent = now.at
	o.writeLocked(s, s.path.Load(), pingMessage(id), true, now)
	l := s.link
	l.paths.Used(now.at) // who pings wants to know the way that a packet would take
	o.scheduleLocked(l, now.at)
}

// pingsWaitingLocked reports whether somebody waits for a session of the link to ping with.
func (o *Overlay) pingsWaitingLocked(l *link) bool {
	for _, p := range o.control.pings {
		if p.link == l && p.sent == 0 {
			return true
		}
	}
	return false
}

// sendPingsLocked sends the pings that wait for a session, and reports whether there were any.
func (o *Overlay) sendPingsLocked(l *link, s *session, now moment) (sent bool) {
	for id, p := range o.control.pings {
		if p.link == l && p.sent == 0 {
			o.sendPingLocked(s, id, p, now)
			sent = true
		}
	}
	return sent
}

func (o *Overlay) failPingsLocked(l *link, err *PingError) {
	for _, p := range o.control.pings {
		if p.link == l {
			p.finish(pong{err: err})
			p.sent = -1 // done
		}
	}
}

func (p *ping) finish(v pong) {
	select {
	case p.done <- v:
	default: // it was answered already
	}
}

// pongLocked takes a pong, and notes the address that the peer sees us at.
func (o *Overlay) pongLocked(l *link, m *message, now moment) {
	id := binary.BigEndian.Uint64(m.body[1:])
	o.sizeAnsweredLocked(l, id, m.at)
	if rtt, ok := l.paths.Pong(m.at, id, m.path); ok {
		if sameWay(m.session.path.Load(), &m.path) && rtt != 0 {
			l.rtt = rtt
			o.aliveLocked(l, now)
		}
		if len(m.body) >= pongSize && m.path.Relay == 0 {
			l.observed = addrPortOf(m.body[9:])
		}
		o.actLocked(l, now)
		return
	}
	p := o.control.pings[id]
	if p == nil || p.link != l || p.sent <= 0 {
		return
	}
	l.rtt = m.at - p.sent
	p.finish(pong{result: PingResult{RTT: l.rtt, Path: m.path}})
}
