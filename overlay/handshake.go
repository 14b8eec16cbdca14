// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/underlay"
)

const (
	// firstRetry is when a first message is sent again; each wait is twice the one before, up to maxRetry, and up to a
	// fifth longer so that nodes that fell together do not call together. A new first message makes the answer to the one
	// before worthless, so maxRetry is also the longest round trip over which a session can be made.
	firstRetry = 250 * time.Millisecond
	maxRetry   = 2 * time.Second
	// unreachableAfter is when programs get their error, after three tries at least.
	unreachableAfter = 3 * time.Second
	// giveUpAfter ends an attempt.
	giveUpAfter = 5 * time.Second
	// smallAfter: when so many first messages had no answer the next are cut into small datagrams. That is at once: few
	// paths are narrow, but on those a session waits for it.
	smallAfter = 1
	// renewTries is how many first messages of a renewal go along the session's own path alone, while it answers.
	renewTries = 2
	// pauseBetween is how long after an attempt the next one may begin at the earliest.
	pauseBetween = time.Second
)

// arrival is a handshake datagram on its way to the worker.
type arrival struct {
	datagram []byte
	path     underlay.Path
}

// offerHandshake gives a datagram to the worker, so that the records behind it need not wait for its arithmetic. Under a
// flood it is dropped; the peer will try again.
func (o *Overlay) offerHandshake(d []byte, path underlay.Path) {
	if len(o.handshakes) == cap(o.handshakes) {
		o.counters.drop(DropHandshakeFlood)
		return
	}
	select {
	case o.handshakes <- arrival{bytes.Clone(d), path}:
	default:
		o.counters.drop(DropHandshakeFlood)
	}
}

func (o *Overlay) handshakeLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-o.handshakes:
			o.handleHandshake(a)
		}
	}
}

func (o *Overlay) handleHandshake(a arrival) {
	now := o.now()
	r, err := o.noise.Handle(now.wall, a.datagram, a.path.Remote)
	o.untidy()
	if r.Session != nil {
		// Before the answer leaves: the record that follows it must find the session.
		o.install(r.Session, a.path, now)
	}
	if len(r.Reply) > 0 {
		if err := o.under.Send(a.path, r.Reply); err != nil {
			o.counters.drop(DropSend)
		}
	}
	if r.Retry {
		o.retryNow(r.ID, now)
	}
	if err != nil && !errors.Is(err, noise.ErrIncomplete) {
		o.counters.drop(DropHandshake)
		if r.ID != 0 {
			o.answerFailed(r.ID, reasonOf(err))
		}
	}
}

// reasonOf makes a reason of an error of package noise.
func reasonOf(err error) Reason {
	for _, c := range []struct {
		err    error
		reason Reason
	}{
		{errRevoked, ReasonRevoked}, {noise.ErrRefused, ReasonNotTrusted}, {noise.ErrKeyMismatch, ReasonKeyMismatch},
		{noise.ErrCertificate, ReasonCredentials}, {noise.ErrStatement, ReasonCredentials}, {noise.ErrSuite, ReasonSuite},
		{noise.ErrUnknownKey, ReasonLocal},
	} {
		if errors.Is(err, c.err) {
			return c.reason
		}
	}
	return ReasonProtocol
}

// Refusals of admit.
var (
	errUnknownPeer = errors.New("unknown peer")
	errNotTrusted  = errors.New("no consent")
	errRevoked     = errors.New("certificate revoked")
)

// admit decides whether a member of the network may have a session with a local agent. It runs without Overlay.mu.
func (o *Overlay) admit(local identity.AgentPublic, remote identity.Certificate, _ identity.TunnelStatement) error {
	now := o.now()
	snap := o.snap.Load()
	if upTo, ok := snap.revoked[remote.Agent]; ok && remote.Serial <= upTo {
		return errRevoked
	}
	r, ok := snap.find(o.network, local, remote.Agent)
	if !ok {
		o.events.emitUnknown(UnknownPeer{Local: local, Agent: remote.Agent}, now.at)
		return errUnknownPeer
	}
	switch snap.admitted(r, remote.Serial, now) {
	case "":
		return nil
	case ReasonRevoked:
		return errRevoked
	default:
		// Perhaps the node has not heard of a consent yet.
		o.events.emitUnknown(UnknownPeer{Local: local, Agent: remote.Agent}, now.at)
		return errNotTrusted
	}
}

func (s *snapshot) find(network identity.AuthorityPublic, local, remote identity.AgentPublic) (route, bool) {
	r, ok := s.routes[s.between(network, local, remote)]
	return r, ok
}

func (s *snapshot) between(network identity.AuthorityPublic, local, remote identity.AgentPublic) packet.Addresses {
	return addresses(identity.Address(network, local), identity.Address(network, remote))
}

// install takes over a session that package noise made.
func (o *Overlay) install(ns *noise.Session, path underlay.Path, now moment) {
	o.mu.Lock()
	defer o.unlock()
	snap := o.snap.Load()
	r, ok := snap.find(o.network, ns.Local(), ns.Remote().Agent)
	// Asked once more under the lock: the State may have changed since admit.
	if !ok || o.control.ended || snap.admitted(r, ns.Remote().Serial, now) != "" {
		o.noise.Release(ns.LocalIndex())
		ns.Wipe()
		return
	}
	l := r.link
	s := &session{noise: ns, link: l, at: now.at}
	s.path.Store(&path)
	if l.attempt.active {
		s.attempt = l.attempt.serial
	}
	o.sessions.set(ns.LocalIndex(), s)
	if ns.Initiator() {
		s.rtt = max(now.at-l.attempt.sent, 1)
		l.attempt.active = false
		l.attempt.next = 0
		o.adoptLocked(s, now)
		return
	}
	if l.pending != nil {
		o.discard(l.pending)
	}
	l.pending = s
	l.unconfirmed.Store(true)
	o.scheduleLocked(l, now.at+lookEvery)
}

// beginLocked begins an attempt to make a session.
func (o *Overlay) beginLocked(l *link, now moment) {
	o.control.attempts++
	l.attempt = attempt{active: true, serial: o.control.attempts, started: now.at, reason: ReasonTimeout}
	if l.current.Load() == nil || l.unanswered.Load() != 0 {
		o.events.emit(Calling{Local: l.local, Agent: l.remote, Addr: l.addr})
	}
	o.tryLocked(l, now)
}

// tryLocked sends a first message to where the peer may be, everywhere at once: the first answer has the best path.
func (o *Overlay) tryLocked(l *link, now moment) {
	a := &l.attempt
	peer := o.snap.Load().peers[l.remote]
	ways := o.waysLocked(l)
	tunnel := l.last.tunnel
	if peer != nil && !peer.Tunnel.Tunnel.IsZero() && !tunnel.NotBefore.After(peer.Tunnel.NotBefore) {
		tunnel = peer.Tunnel
	}
	if len(ways) == 0 || tunnel.Tunnel.IsZero() {
		o.failLocked(l, ReasonNoAddress, now)
		return
	}
	target := noise.Target{Agent: l.remote, Tunnel: tunnel.Tunnel, Suites: tunnel.Suites}
	// What is not answered may be too large for the path; a peer that is said to be offline gets but one.
	target.Small = a.small || a.tries >= smallAfter || o.offlineLocked(l) || l.narrowLocked()
	init, err := o.noise.Initiate(now.wall, l.local, target)
	o.untidy()
	if err != nil {
		o.log.Error("cannot begin a handshake", "agent", l.remote, "error", err)
		o.failLocked(l, reasonOf(err), now)
		return
	}
	a.id = init.ID
	wait := min(firstRetry<<min(a.tries, 4), maxRetry)
	a.tries++
	a.sent, a.next = now.at, now.at+wait+rand.N(wait/5)
	for _, p := range ways {
		if err := o.under.Send(p, init.Datagrams); err != nil {
			o.counters.drop(DropSend)
			if errors.Is(err, underlay.ErrTooBig) && !target.Small {
				a.small, a.next = true, now.at // the host's own interface is narrow: no need to wait
			}
		}
	}
	o.scheduleLocked(l, a.next)
}

// retransmitLocked tries again, or gives up.
func (o *Overlay) retransmitLocked(l *link, now moment) {
	a := &l.attempt
	switch {
	case !a.active:
	case now.at-a.started >= giveUpAfter, a.single && now.at >= a.next:
		reason := a.reason
		if a.single {
			reason = ReasonOffline
		}
		o.failLocked(l, reason, now)
	case now.at >= a.next:
		o.tryLocked(l, now)
	}
}

// failLocked ends an attempt without success. A session that was silent all the time ends with it.
func (o *Overlay) failLocked(l *link, reason Reason, now moment) {
	o.abandonLocked(l)
	l.attempt.next = now.at + pauseBetween
	l.failed = now.at + failedFor
	l.failure.reason, l.failure.at = reason, now.at
	o.events.emit(HandshakeFailed{Local: l.local, Agent: l.remote, Addr: l.addr, Reason: reason})
	if since := time.Duration(l.unanswered.Load()); since != 0 && now.at-since >= silentAfter {
		o.downLocked(l, ReasonSilent)
	}
	if l.current.Load() == nil && l.pending == nil {
		o.answerQueueLocked(l, packet.AddressUnreachable, DropUnreachable, now)
		o.failPingsLocked(l, &PingError{Err: ErrOffline, Reason: string(reason)})
	}
}

func (o *Overlay) abandonLocked(l *link) {
	if l.attempt.active {
		l.attempt.active = false
		o.noise.Release(l.attempt.id)
	}
}

// retryNow sends the first message again at once, with the cookie that the peer under load sent.
func (o *Overlay) retryNow(id uint32, now moment) {
	o.mu.Lock()
	defer o.unlock()
	if l := o.attemptLocked(id); l != nil {
		l.attempt.tries-- // the peer had it: it was not too long, and went the right way
		o.tryLocked(l, now)
	}
}

// answerFailed notes what was wrong with an answer. The attempt goes on: the next first message may meet better luck.
func (o *Overlay) answerFailed(id uint32, reason Reason) {
	o.mu.Lock()
	defer o.unlock()
	if l := o.attemptLocked(id); l != nil {
		l.attempt.reason = reason
	}
}

// attemptLocked finds the link whose attempt sent the first message. Links are many but handshakes are few, and each
// of them looks once or twice.
func (o *Overlay) attemptLocked(id uint32) *link {
	for _, l := range o.control.timers {
		if l.attempt.active && l.attempt.id == id {
			return l
		}
	}
	return nil
}
