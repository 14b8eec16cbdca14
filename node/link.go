// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/underlay"
)

// The pauses between tries to reach the coordinator: doubling, with jitter, so that a thousand nodes don't come back
// at the same moment.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 30 * time.Second
	// renewRetry is the pause after a renewal that failed.
	renewRetry = time.Minute
	// lookAgain bounds how long nothing is looked at: timers stand still while a host sleeps, and its clock may be set.
	lookAgain = 5 * time.Minute
	// askLimit bounds one question to the coordinator.
	askLimit = 10 * time.Second
)

func retries() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = firstRetry, lastRetry, 2, 0.5
	b.Reset()
	return b
}

// pause waits, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// follow keeps a stream open to the coordinator and takes in what it says.
func (n *Node) follow(ctx context.Context, m *membership) error {
	b := retries()
	for {
		err := n.followOnce(ctx, m, b.Reset)
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-m.hurry: // this host moved or slept
			b.Reset()
			continue
		default:
		}
		wait := b.NextBackOff()
		n.setLink(m, coordinatorLink{err: err, nextTry: n.now().Add(wait)})
		n.log.Warn("the coordinator is not reachable", "error", err, "next_try", wait.Round(time.Millisecond))
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-m.hurry:
			b.Reset()
		case <-t.C:
		}
		t.Stop()
	}
}

// setLink notes how things stand with the coordinator. Presence is believed only while it is connected.
func (n *Node) setLink(m *membership, l coordinatorLink) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l.since = m.link.since
	if l.connected != m.link.connected {
		l.since = n.now()
	}
	changed := l.connected != m.link.connected
	m.link = l
	if changed && n.member == m {
		if err := n.applyLocked(); err != nil {
			n.log.Error("the state can't be applied", "error", err)
		}
	}
}

// followOnce reads one stream to its end. The snapshot at its beginning is applied as a whole.
func (n *Node) followOnce(ctx context.Context, m *membership, connected func()) error {
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	n.mu.Lock()
	m.hangUp = hangUp
	n.mu.Unlock()
	var snapshot []api.Event
	synced := false
	for event, err := range m.client.Load().Watch(ctx) {
		if err != nil {
			return err
		}
		switch {
		case event.Type == api.EventSynced:
			n.take(m, snapshot)
			snapshot, synced = nil, true
			connected()
			n.setLink(m, coordinatorLink{connected: true})
			n.log.Info("connected to the coordinator", "seen_as", event.Observed)
			poke(m.republish)
			poke(m.renew)
			n.markSynced(m)
		case event.Type == api.EventPing:
		case event.Type == api.EventSignal:
			if err := n.called(m, event.Signal); err != nil {
				n.log.Debug("a signal is not taken", "error", err)
			}
		case synced:
			n.take(m, []api.Event{event})
		default:
			snapshot = append(snapshot, event)
		}
	}
	return errors.New("the stream ended")
}

func (n *Node) markSynced(m *membership) {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-m.synced:
	default:
		close(m.synced)
	}
}

// take puts events into the book. What doesn't verify is left out and told in the log.
func (n *Node) take(m *membership, events []api.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := false
	for _, e := range events {
		one, err := m.book.takeEvent(e)
		changed = changed || one
		if err != nil {
			n.log.Warn("the coordinator's word is not taken", "event", e.Type, "error", err)
			changed = changed || errors.Is(err, errKeyMismatch)
		}
	}
	if !changed || n.member != m {
		return
	}
	poke(m.renew)
	if err := errors.Join(n.applyLocked(), n.saveLocked()); err != nil {
		n.log.Error("a change can't be applied or saved", "error", err)
	}
}

// takeEvent puts one event into the book.
func (b *book) takeEvent(e api.Event) (changed bool, err error) {
	if e.Peer != nil {
		changed, err = b.addPeer(*e.Peer)
	}
	if e.Consent != nil {
		one, other := b.addConsent(*e.Consent)
		changed, err = changed || one, errors.Join(err, other)
	}
	if e.Type == api.EventRelays {
		one, other := b.setRelays(e.Relays)
		changed, err = changed || one, errors.Join(err, other)
	}
	if len(e.Revocation) > 0 {
		one, other := b.addRevocation(e.Revocation)
		changed, err = changed || one, errors.Join(err, other)
	}
	return changed, err
}

// publish tells the coordinator where this node is, and hands on the consents that it has not got yet.
func (n *Node) publish(ctx context.Context, m *membership) error {
	b := retries()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.republish:
		}
		for err := n.publishOnce(ctx, m); err != nil; err = n.publishOnce(ctx, m) {
			if ctx.Err() != nil {
				return nil
			}
			n.log.Debug("the coordinator has not got this node's record", "error", err)
			if !pause(ctx, b.NextBackOff()) {
				return nil
			}
		}
		b.Reset()
	}
}

func (n *Node) publishOnce(ctx context.Context, m *membership) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	here := m.engine.underlay.Status()
	n.mu.Lock()
	serial := max(uint64(n.now().UnixMilli()), m.told.Serial+1)
	n.mu.Unlock()
	record, err := identity.Record{
		Network: m.book.network, Serial: serial, Endpoints: selfAddrs(here), Relays: relayKeys(here, true), Carrier: m.seat.carrier(),
	}.Sign(n.key)
	if err != nil {
		return err
	}
	n.mu.Lock()
	tunnel := m.tunnels[0].statement
	outbox := append([]identity.Consent(nil), m.book.outbox...)
	n.mu.Unlock()
	failed := m.client.Load().PutRecord(ctx, api.RecordRequest{Tunnel: tunnel.Raw(), Record: record.Raw()})
	if api.HasCode(failed, api.CodeConflict) {
		failed = nil // the coordinator has newer ones
	}
	if failed == nil {
		n.mu.Lock()
		m.told = record
		n.mu.Unlock()
	}
	// What is wrong with one must not keep the others back: a withdrawal may be among them.
	for _, c := range outbox {
		if api.HasCode(failed, api.CodeUnavailable) {
			break
		}
		if err := n.deliver(ctx, m, c); err != nil && !api.HasCode(err, api.CodeNotFound) {
			failed = err
		}
	}
	return failed
}

// deliver gives the coordinator one consent and takes it out of the outbox: also one that will never be taken, since the
// coordinator has a newer one, or the agent that it is for is no member any more. The latter is an error all the same.
func (n *Node) deliver(ctx context.Context, m *membership, c identity.Consent) error {
	err := m.client.Load().PutConsent(ctx, c.Raw())
	gone := api.HasCode(err, api.CodeNotFound)
	if err != nil && !gone && !api.HasCode(err, api.CodeConflict) && !api.HasCode(err, api.CodeBadRequest) {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	m.book.delivered(c)
	if saved := n.saveLocked(); saved != nil || !gone {
		return saved
	}
	return err
}

// keepFresh renews the certificate, with the pass for relays, and the tunnel key at two thirds of their lives, and ends consents when they expire.
func (n *Node) keepFresh(ctx context.Context, m *membership) error {
	for {
		wait, err := n.refresh(ctx, m)
		if err != nil {
			n.log.Warn("a renewal failed", "error", err, "next_try", wait)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-m.renew:
		case <-t.C:
		}
		t.Stop()
	}
}

// refresh renews what is due and returns how long nothing will be.
func (n *Node) refresh(ctx context.Context, m *membership) (time.Duration, error) {
	n.mu.Lock()
	now := n.now()
	certificate, pass, tunnel := m.book.certificate, m.book.pass, m.tunnels[0].statement
	expiry := m.book.nextExpiry(now)
	var err error
	if !m.expiry.IsZero() && !now.Before(m.expiry) {
		err = n.applyLocked()
	}
	m.expiry = expiry
	n.mu.Unlock()
	if err != nil {
		return renewRetry, err
	}
	if !usable(tunnel, now) || !now.Before(renewAt(tunnel.NotBefore, tunnel.NotAfter)) {
		if err := n.change(func(m *membership) error {
			err := n.rotate(m)
			tunnel = m.tunnels[0].statement
			return err
		}); err != nil {
			return renewRetry, err
		}
		n.log.Info("the tunnel key was rotated")
		poke(m.republish)
	}
	// Where an earlier version left no pass the certificate is renewed too: they come together.
	if !now.Before(renewAt(certificate.NotBefore, certificate.NotAfter)) || !now.Before(renewAt(pass.NotBefore, pass.NotAfter)) {
		c, err := n.renewCertificate(ctx, m)
		if err != nil {
			return renewRetry, err
		}
		certificate = c
	}
	next := renewAt(tunnel.NotBefore, tunnel.NotAfter)
	if c := renewAt(certificate.NotBefore, certificate.NotAfter); c.Before(next) {
		next = c
	}
	if !expiry.IsZero() && expiry.Before(next) {
		next = expiry
	}
	return min(max(next.Sub(now), time.Second), lookAgain), nil
}

func (n *Node) renewCertificate(ctx context.Context, m *membership) (identity.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answer, err := m.client.Load().Renew(ctx)
	if err != nil {
		return identity.Certificate{}, err
	}
	c, pass, err := openMembership(answer, m.book.network, m.book.self)
	if err != nil {
		return c, err
	}
	return c, n.change(func(m *membership) error {
		m.book.certificate, m.book.pass = c, pass
		if list := coordinatorsOf(answer); len(list) > 0 {
			n.saved.Coordinators = list
		}
		n.log.Info("the certificate was renewed", "until", c.NotAfter)
		return nil
	})
}

// listen acts on what the data path reports.
func (n *Node) listen(ctx context.Context, m *membership) error {
	told := newEventLog(n.log, func(p underlay.Path) string { return n.pathText(m, p) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-m.seat.events:
			switch e := event.(type) {
			case overlay.Calling:
				select {
				case m.calls <- e.Agent:
				default: // so many are called that the coordinator would refuse more
				}
			case overlay.UnknownPeer:
				if e.Agent.IsZero() {
					n.askAbout(ctx, m, e.Addr.String())
				} else {
					n.askAbout(ctx, m, e.Agent.String())
				}
			default:
				told.tell(event)
			}
		}
	}
}

// answerMisses asks the coordinator about the names that programs ask for and nobody here knows.
func (n *Node) answerMisses(ctx context.Context, m *membership) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case name := <-m.engine.names.Misses():
			n.askAbout(ctx, m, name)
		}
	}
}

// pathText is a path as people read it.
func (n *Node) pathText(m *membership, p underlay.Path) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	text, _, _ := m.book.describePath(p)
	return text
}

// eventLog tells what happens to sessions. A peer, or whoever is on the path to one, can make it happen with each datagram,
// so only some of it is told.
type eventLog struct {
	log     *slog.Logger
	path    func(underlay.Path) string
	limiter *rate.Limiter
	missed  int
}

func newEventLog(log *slog.Logger, path func(underlay.Path) string) *eventLog {
	return &eventLog{log: log, path: path, limiter: rate.NewLimiter(1, 60)}
}

func (l *eventLog) tell(event overlay.Event) {
	if !l.limiter.Allow() {
		l.missed++
		return
	}
	if l.missed > 0 {
		l.log.Info("events of sessions that were too many to tell", "count", l.missed)
		l.missed = 0
	}
	switch e := event.(type) {
	case overlay.SessionUp:
		l.log.Info("session up", "agent", e.Agent, "path", l.path(e.Path))
	case overlay.SessionDown:
		l.log.Info("session down", "agent", e.Agent, "reason", e.Reason)
	case overlay.PathChanged:
		l.log.Info("path changed", "agent", e.Agent, "path", l.path(e.Path))
	case overlay.HandshakeFailed:
		l.log.Info("handshake failed", "agent", e.Agent, "reason", e.Reason)
	}
}

// askAbout asks the coordinator who somebody is: a name, an address or a key. Each is asked about at most every few seconds.
func (n *Node) askAbout(ctx context.Context, m *membership, q string) {
	n.mu.Lock()
	connected := m.link.connected
	n.mu.Unlock()
	if !connected {
		return // the events behind this one shall not wait for a coordinator that is gone
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	p, err := m.client.Load().Agent(ctx, q)
	if err != nil {
		n.log.Debug("the coordinator doesn't say who it is", "about", q, "error", err)
		return
	}
	n.take(m, []api.Event{{Type: api.EventPeer, Peer: &p}})
}
