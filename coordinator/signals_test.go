// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// signal makes a call that is dated later than now.
func (a *agent) signal(to identity.AgentPublic, later time.Duration) []byte {
	s := identity.Signal{
		Network: a.at.Authority(), To: to, Serial: uint64(a.at.clock.now().Add(later).UnixMilli()),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:7745")},
	}
	return must(s.Sign(a.key)).Raw()
}

func (p *place) trusting(t testing.TB) (a, b *agent) {
	t.Helper()
	a, b = p.enter(t, "a1"), p.enter(t, "b1")
	noError(t, a.PutConsent(t.Context(), a.consentTo(b.public(), 1, nil)))
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, nil)))
	return a, b
}

func TestSignal(t *testing.T) {
	p := start(t, Options{})
	a, b := p.trusting(t)
	one, two, caller := b.listen(t), b.listen(t), a.listen(t)
	for _, l := range []*listener{one, two, caller} {
		l.synced()
	}
	raw := a.signal(b.public(), 0)
	noError(t, a.Signal(t.Context(), raw))
	for _, l := range []*listener{one, two} { // each stream of b's
		if e := l.untilType(api.EventSignal); !bytes.Equal(e.Signal, raw) {
			t.Errorf("%x", e.Signal)
		}
	}
	one.stop()
	two.stop()
	caller.until("b is gone", isPeer(b.public(), p.Authority(), func(p api.Peer) bool { return !p.Online }))
	noError(t, a.Signal(t.Context(), a.signal(b.public(), time.Second))) // whether b listens isn't told
	for _, e := range b.listen(t).synced() {
		if e.Type == api.EventSignal {
			t.Error("a signal was stored")
		}
	}
}

// TestAbuse11SignalReplay: what another agent signed, what came before, and what is of another time is not passed on.
func TestAbuse11SignalReplay(t *testing.T) {
	p := start(t, Options{})
	a, b := p.trusting(t)
	c := p.enter(t, "c1")
	send := func(who *agent, raw []byte) error { return who.Signal(t.Context(), raw) }
	first := a.signal(b.public(), 0)
	noError(t, send(a, first))
	wantCode(t, send(a, first), api.CodeConflict)
	wantCode(t, send(a, a.signal(b.public(), -time.Second)), api.CodeConflict)
	wantCode(t, send(c, first), api.CodeForbidden)
	wantCode(t, send(b, first), api.CodeForbidden)
	forged := bytes.Clone(first)
	forged[len(forged)-1] ^= 1
	wantCode(t, send(a, forged), api.CodeBadRequest)
	wantCode(t, send(a, nil), api.CodeBadRequest)
	wantCode(t, send(a, a.record(9)), api.CodeBadRequest)
	wantCode(t, send(a, a.signal(b.public(), 2*signalAge)), api.CodeBadRequest)
	wantCode(t, send(a, a.signal(b.public(), -2*signalAge)), api.CodeBadRequest)
	p.clock.advance(2 * signalAge)
	wantCode(t, send(a, first), api.CodeBadRequest)
	other := identity.Signal{Network: identity.AuthorityPublic{1}, To: b.public(), Serial: 9}
	wantCode(t, send(a, must(other.Sign(a.key)).Raw()), api.CodeBadRequest)
	stranger := p.newAgent(t)
	wantCode(t, send(stranger, stranger.signal(b.public(), 0)), api.CodeNotMember)
}

// A call needs both consents, and tells nothing to whom hasn't them.
func TestSignalNeedsBothConsents(t *testing.T) {
	p := start(t, Options{})
	a, b := p.enter(t, "a1"), p.enter(t, "b1")
	call := func(from, to *agent) error {
		p.clock.advance(10 * time.Second)
		return from.Signal(t.Context(), from.signal(to.public(), 0))
	}
	hidden := func(err error) {
		t.Helper()
		wantCode(t, err, api.CodeNotFound)
	}
	hidden(call(a, b))
	noError(t, a.PutConsent(t.Context(), a.consentTo(b.public(), 1, nil)))
	hidden(call(a, b))
	hidden(call(b, a))
	expiry := p.clock.now().Add(time.Hour)
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, func(c *identity.Consent) { c.Expiry = expiry })))
	noError(t, call(a, b))
	noError(t, call(b, a))
	p.clock.advance(time.Hour)
	hidden(call(a, b))
	hidden(call(b, a))
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 2, nil)))
	noError(t, call(a, b))
	noError(t, a.PutConsent(t.Context(), a.consentTo(b.public(), 2, func(c *identity.Consent) { c.Withdrawn = true })))
	hidden(call(a, b))
	hidden(call(b, a))
	noError(t, a.PutConsent(t.Context(), a.consentTo(b.public(), 3, nil)))
	noError(t, call(b, a))
	admin := p.enter(t, "admin", api.TagAdmin)
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "a1"}))
	hidden(call(b, a))
	wantCode(t, call(a, b), api.CodeRevoked)
	hidden(b.Signal(t.Context(), b.signal(identity.AgentPublic{7}, time.Second)))
}

// TestAbuse24SignalFlood: neither one agent nor many can be called all the time, and what waits for one that doesn't read
// is bounded.
func TestAbuse24SignalFlood(t *testing.T) {
	p := start(t, Options{})
	a, b := p.trusting(t)
	passed := 0
	var err error
	for i := range 3 * pairBurst {
		if err = a.Signal(t.Context(), a.signal(b.public(), time.Duration(i)*time.Millisecond)); err == nil {
			passed++
		}
	}
	wantCode(t, err, api.CodeRateLimited)
	if passed != pairBurst {
		t.Errorf("%d passed", passed)
	}
	noError(t, b.Signal(t.Context(), b.signal(a.public(), 0))) // the other direction is another's
	for i := range 2 * signalBurst {
		err = a.Signal(t.Context(), a.signal(identity.AgentPublic{byte(i), 1}, 0))
		if api.HasCode(err, api.CodeRateLimited) {
			break
		}
		wantCode(t, err, api.CodeNotFound)
	}
	wantCode(t, err, api.CodeRateLimited)

	h := newHub(func(identity.AgentPublic, uint64) {})
	s := h.subscribe(b.public())
	for i := range 10 * maxSignals {
		h.signal(signalSubject+pairKey(b.public(), identity.AgentPublic{byte(i), byte(i >> 8), 1}), []byte{byte(i)})
		h.signal(signalSubject+"nonsense", nil)
	}
	h.signal(signalSubject+pairKey(b.public(), identity.AgentPublic{0, 0, 1}), []byte("latest"))
	if _, signals := s.take(); len(signals) != maxSignals || string(signals[identity.AgentPublic{0, 0, 1}]) != "latest" {
		t.Errorf("%d wait", len(signals))
	}
}

func TestSignalSerialsAreForgotten(t *testing.T) {
	s, now := newSignals(), time.Now()
	serial := uint64(now.UnixMilli())
	for i := range 2 * maxKeys {
		s.fresh(pair{from: identity.AgentPublic{byte(i), byte(i >> 8), byte(i >> 16)}}, serial, now)
	}
	if len(s.last) != maxKeys {
		t.Errorf("%d are remembered", len(s.last))
	}
	p := pair{from: identity.AgentPublic{1}, to: identity.AgentPublic{1}}
	later := now.Add(2 * signalAge)
	if !s.fresh(p, uint64(later.UnixMilli()), later) || len(s.last) != 1 {
		t.Errorf("old ones aren't forgotten: %d", len(s.last))
	}
	if s.fresh(p, uint64(later.UnixMilli()), later) {
		t.Error("twice the same")
	}
}

// An agent is online while its stream's pings are due, also when one is late.
func TestPresenceOutlivesPings(t *testing.T) {
	if store.PresenceLife < 2*api.PingInterval+requestTimeout || api.SilenceLimit < 2*api.PingInterval+lineTimeout {
		t.Error("presence ends between two pings")
	}
}
