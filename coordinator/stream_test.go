// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
)

func anything(api.Peer) bool      { return true }
func reachable(p api.Peer) bool   { return len(p.Tunnel) > 0 && len(p.Record) > 0 }
func unreachable(p api.Peer) bool { return len(p.Tunnel) == 0 && len(p.Record) == 0 && !p.Online }

func TestVisibility(t *testing.T) {
	p := start(t, Options{})
	a, b, c := p.enter(t, "a1"), p.enter(t, "b1"), p.enter(t, "c1")
	address := identity.Address(p.Authority(), b.public())
	for _, q := range []string{"b1", address.String(), address.StringExpanded(), b.public().String()} {
		got, err := a.Agent(t.Context(), q)
		noError(t, err)
		if !bytes.Equal(got.Certificate, b.cert.Raw()) || !unreachable(got) || !got.LastSeen.IsZero() || got.Observed != nil {
			t.Errorf("%s: without a consent only the certificate is shown: %+v", q, got)
		}
	}
	for _, q := range []string{"b", "b11", "zz", "::1", "fe80::1%eth0", "agent:AAAA", "..", "a/b"} {
		_, err := a.Agent(t.Context(), q)
		wantCode(t, err, api.CodeNotFound)
	}
	list, err := a.Agents(t.Context())
	noError(t, err)
	if len(list) != 0 {
		t.Errorf("related to nobody, and yet %+v", list)
	}

	// b consents to a: a may reach b, and b sees of a that it is there.
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, nil)))
	got, err := a.Agent(t.Context(), "b1")
	noError(t, err)
	if !reachable(got) {
		t.Errorf("with b's consent a sees where it is: %+v", got)
	}
	got, err = b.Agent(t.Context(), "a1")
	noError(t, err)
	if !unreachable(got) {
		t.Errorf("a hasn't consented: %+v", got)
	}
	for _, who := range []*agent{a, b} {
		list, err = who.Agents(t.Context())
		noError(t, err)
		if len(list) != 1 {
			t.Errorf("both see each other: %+v", list)
		}
	}
	list, err = c.Agents(t.Context())
	noError(t, err)
	if len(list) != 0 {
		t.Errorf("c has nothing to do with it: %+v", list)
	}

	// An expired consent shows no more than none; a withdrawn one neither.
	expiry := p.clock.now().Add(time.Hour)
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 2, func(c *identity.Consent) { c.Expiry = expiry })))
	p.clock.advance(2 * time.Hour)
	got, err = a.Agent(t.Context(), "b1")
	noError(t, err)
	if !unreachable(got) {
		t.Errorf("the consent has expired: %+v", got)
	}
	list, err = a.Agents(t.Context())
	noError(t, err)
	if len(list) != 0 {
		t.Errorf("the consent has expired: %+v", list)
	}
}

func TestConsents(t *testing.T) {
	p := start(t, Options{})
	a, b := p.enter(t, "a1"), p.enter(t, "b1")
	put := func(who *agent, raw []byte) error { return who.PutConsent(t.Context(), raw) }
	noError(t, put(a, a.consentTo(b.public(), 5, nil)))
	noError(t, put(a, a.consentTo(b.public(), 5, nil))) // the very same bytes
	wantCode(t, put(a, a.consentTo(b.public(), 5, func(c *identity.Consent) { c.Reason = "other" })), api.CodeConflict)
	wantCode(t, put(a, a.consentTo(b.public(), 4, nil)), api.CodeConflict)
	noError(t, put(a, a.consentTo(b.public(), 6, func(c *identity.Consent) { c.Withdrawn = true })))
	wantCode(t, put(a, a.consentTo(b.public(), 5, nil)), api.CodeConflict) // no way back by an old one
	wantCode(t, put(b, a.consentTo(b.public(), 7, nil)), api.CodeForbidden)
	wantCode(t, put(a, a.consentTo(identity.AgentPublic{9}, 7, nil)), api.CodeNotFound)
	forged := bytes.Clone(a.consentTo(b.public(), 8, nil))
	forged[len(forged)-1] ^= 1
	wantCode(t, put(a, forged), api.CodeBadRequest)
	wantCode(t, put(a, nil), api.CodeBadRequest)
	other := identity.Consent{Network: identity.AuthorityPublic{1}, To: b.public(), Serial: 9}
	wantCode(t, put(a, must(other.Sign(a.key)).Raw()), api.CodeBadRequest)
	wantCode(t, put(a, a.consentToJoin(identity.JoinPublic{3}, 1)), api.CodeNotFound)
	stranger := p.newAgent(t)
	wantCode(t, put(stranger, stranger.consentTo(b.public(), 1, nil)), api.CodeNotMember)
}

func TestConsentToJoinKeyIsReplacedForAll(t *testing.T) {
	p := start(t, Options{})
	admin := p.enter(t, "admin", api.TagAdmin)
	join := must(identity.NewJoinKey(zeroReader{}))
	noError(t, admin.CreateInvite(t.Context(), api.InviteRequest{
		Join: join.Public(), Uses: 3, Expires: p.clock.now().Add(time.Hour), Consent: admin.consentToJoin(join.Public(), 10),
	}))
	var joiners []*agent
	for _, name := range []string{"one", "two"} {
		a := p.newAgent(t)
		m, err := a.Join(t.Context(), a.request(name, join))
		noError(t, err)
		if len(m.Consents) != 1 || m.Inviter == nil || !reachable(*m.Inviter) {
			t.Fatalf("%+v", m)
		}
		joiners = append(joiners, a)
	}
	// To one of them the inviter has given a newer consent of its own, which stays.
	noError(t, admin.PutConsent(t.Context(), admin.consentTo(joiners[1].public(), 30, nil)))
	withdrawn := identity.Consent{Network: p.Authority(), To: join.Public(), ToJoin: true, Serial: 20, Withdrawn: true}
	raw := must(withdrawn.Sign(admin.key)).Raw()
	stranger := p.enter(t, "stranger")
	foreign := withdrawn
	wantCode(t, stranger.PutConsent(t.Context(), must(foreign.Sign(stranger.key)).Raw()), api.CodeNotFound)
	noError(t, admin.PutConsent(t.Context(), raw))
	noError(t, admin.PutConsent(t.Context(), raw))
	for i, visible := range []bool{false, true} {
		got, err := joiners[i].Agent(t.Context(), "admin")
		noError(t, err)
		if reachable(got) != visible {
			t.Errorf("joiner %d: reachable %v, want %v", i, reachable(got), visible)
		}
	}
	late := p.newAgent(t)
	m, err := late.Join(t.Context(), late.request("three", join))
	noError(t, err)
	if len(m.Consents) != 1 || !bytes.Equal(m.Consents[0].Consent, raw) || !unreachable(*m.Inviter) {
		t.Errorf("who joins later gets the withdrawal: %+v", m)
	}
}

// zeroReader gives the same key in each run.
type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestStream(t *testing.T) {
	p := start(t, Options{})
	a, b, c := p.enter(t, "a1"), p.enter(t, "b1"), p.enter(t, "c1")
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, nil)))

	la := a.listen(t)
	events := la.synced()
	if len(events) != 4 || events[0].Type != api.EventPeer || events[1].Type != api.EventConsent || !reachable(*events[0].Peer) || events[0].Peer.Online {
		t.Fatalf("the snapshot has one peer with its consent, and the relays: %+v", events)
	}
	if got := events[3].Observed; got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("observed as %s", got)
	}
	if !bytes.Equal(events[1].Consent.Other, b.cert.Raw()) {
		t.Error("the consent comes with b's certificate")
	}

	// Presence.
	lb := b.listen(t)
	lb.synced()
	la.until("b is online", isPeer(b.public(), p.Authority(), func(p api.Peer) bool { return p.Online && !p.LastSeen.IsZero() }))
	// A new record of b's.
	record := b.record(2)
	noError(t, b.PutRecord(t.Context(), api.RecordRequest{Record: record}))
	la.until("b has moved", isPeer(b.public(), p.Authority(), func(p api.Peer) bool { return bytes.Equal(p.Record, record) }))
	// A renewed certificate.
	m, err := b.Renew(t.Context())
	noError(t, err)
	la.until("b has renewed", isPeer(b.public(), p.Authority(), func(p api.Peer) bool { return bytes.Equal(p.Certificate, m.Certificate) }))
	// A consent from somebody new, delivered to both.
	lc := c.listen(t)
	lc.synced()
	noError(t, c.PutConsent(t.Context(), c.consentTo(a.public(), 1, nil)))
	la.until("c is there", isPeer(c.public(), p.Authority(), reachable))
	got := la.untilType(api.EventConsent)
	if cert := a.opened(t, got.Consent.Other); cert.Name != "c1" {
		t.Errorf("a consent of %s", cert.Name)
	}
	lc.until("c sees a", isPeer(a.public(), p.Authority(), unreachable))
	lc.untilType(api.EventConsent)
	// And its later changes.
	noError(t, c.PutRecord(t.Context(), api.RecordRequest{Record: c.record(3)}))
	la.until("c has moved", isPeer(c.public(), p.Authority(), func(p api.Peer) bool { return bytes.Equal(p.Record, c.record(3)) }))
	// A withdrawal.
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 2, func(c *identity.Consent) { c.Withdrawn = true })))
	got = la.untilType(api.EventConsent)
	if consent := must(identity.OpenConsent(got.Consent.Consent, p.Authority())); !consent.Withdrawn || consent.From != b.public() {
		t.Errorf("%+v", consent)
	}
	// b goes: c, to whom b never consented, isn't told, and neither is a any more.
	lb.stop()
	noError(t, c.PutConsent(t.Context(), c.consentTo(a.public(), 2, nil)))
	for _, e := range la.until("c's consent", func(e api.Event) bool { return e.Type == api.EventConsent }) {
		if isPeer(b.public(), p.Authority(), anything)(e) {
			t.Errorf("b's consent is withdrawn, and yet: %+v", e.Peer)
		}
	}
}

func TestPresenceOfTwoStreams(t *testing.T) {
	p := start(t, Options{})
	a, b := p.enter(t, "a1"), p.enter(t, "b1")
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, nil)))
	la := a.listen(t)
	la.synced()
	first := b.listen(t)
	first.synced()
	second := b.listen(t)
	second.synced()
	first.stop() // the older stream's end doesn't make b offline
	noError(t, b.PutRecord(t.Context(), api.RecordRequest{Record: b.record(9)}))
	la.until("b's record", isPeer(b.public(), p.Authority(), func(p api.Peer) bool { return bytes.Equal(p.Record, b.record(9)) && p.Online }))
	second.stop()
	la.until("b is gone", isPeer(b.public(), p.Authority(), func(p api.Peer) bool { return !p.Online }))
}

// A member ends its own membership: others are told as of any revocation, and the name is free at once.
func TestLeave(t *testing.T) {
	p := start(t, Options{})
	a, b := p.enter(t, "a1"), p.enter(t, "b1")
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, nil)))
	la := a.listen(t)
	la.synced()
	noError(t, b.Leave(t.Context()))
	rev := must(identity.OpenRevocation(la.untilType(api.EventRevocation).Revocation, p.Authority()))
	if rev.Agent != b.public() || rev.Reason != reasonLeft {
		t.Errorf("%+v", rev)
	}
	_, err := b.Renew(t.Context())
	wantCode(t, err, api.CodeRevoked)
	wantCode(t, b.Leave(t.Context()), api.CodeRevoked)
	if again := p.enter(t, "b1"); again.public() == b.public() {
		t.Error("the name went to the same agent")
	}
	_, err = a.Agents(t.Context())
	noError(t, err) // nobody else is out
}

func TestRevoke(t *testing.T) {
	p := start(t, Options{})
	admin := p.enter(t, "admin", api.TagAdmin)
	a, b := p.enter(t, "a1"), p.enter(t, "b1")
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, nil)))
	la, lb := a.listen(t), b.listen(t)
	la.synced()
	lb.synced()
	wantCode(t, admin.Revoke(t.Context(), api.RevokeRequest{}), api.CodeBadRequest)
	wantCode(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "nobody"}), api.CodeNotFound)
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "b1", Reason: "lost laptop"}))
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Agent: b.public(), Reason: "again"}))

	check := func(raw []byte) {
		t.Helper()
		rev := must(identity.OpenRevocation(raw, p.Authority()))
		if rev.Agent != b.public() || rev.Serial < b.cert.Serial || rev.Reason != "lost laptop" {
			t.Errorf("%+v", rev)
		}
	}
	check(la.untilType(api.EventRevocation).Revocation)
	seen, err := lb.ends() // b's stream is closed at once
	wantCode(t, err, api.CodeRevoked)
	if n := len(seen); n == 0 || seen[n-1].Type != api.EventRevocation {
		t.Errorf("b is told: %+v", seen)
	} else {
		check(seen[n-1].Revocation)
	}
	_, err = b.Renew(t.Context())
	wantCode(t, err, api.CodeRevoked)
	wantCode(t, b.PutRecord(t.Context(), api.RecordRequest{Record: b.record(7)}), api.CodeRevoked)
	wantCode(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 9, nil)), api.CodeRevoked)
	_, err = b.Agents(t.Context())
	wantCode(t, err, api.CodeRevoked)
	for _, err := range b.Watch(t.Context()) {
		wantCode(t, err, api.CodeRevoked)
	}
	_, err = b.Join(t.Context(), b.request("b1", p.invite(t, nil)))
	wantCode(t, err, api.CodeRevoked)
	for _, q := range []string{"b1", b.public().String(), identity.Address(p.Authority(), b.public()).String()} {
		_, err = a.Agent(t.Context(), q)
		wantCode(t, err, api.CodeNotFound)
	}
	wantCode(t, a.PutConsent(t.Context(), a.consentTo(b.public(), 1, nil)), api.CodeNotFound)
	list, err := a.Agents(t.Context())
	noError(t, err)
	if len(list) != 0 {
		t.Errorf("b is still listed: %+v", list)
	}
	// Who comes back later is told by the snapshot, and the name is free for another key.
	again := a.listen(t)
	check(again.until("revocation", func(e api.Event) bool { return e.Type == api.EventRevocation })[0].Revocation)
	again.synced()
	p.enter(t, "b1")
	wantAudit(t, p, audited{Action: "revoke", Outcome: outcomeDone, Agent: admin.public(), Subject: b.public().String()})
}

func TestRecords(t *testing.T) {
	p := start(t, Options{})
	a, b := p.enter(t, "a1"), p.enter(t, "b1")
	put := func(tunnel, record []byte) error {
		return a.PutRecord(t.Context(), api.RecordRequest{Tunnel: tunnel, Record: record})
	}
	noError(t, put(nil, a.record(5)))
	noError(t, put(nil, a.record(5)))
	wantCode(t, put(nil, a.record(4)), api.CodeConflict)
	later := a.tunnel(5 * time.Minute)
	noError(t, put(later, nil))
	wantCode(t, put(a.tunnel(0), nil), api.CodeConflict)
	wantCode(t, put(nil, b.record(9)), api.CodeForbidden)
	wantCode(t, put(b.tunnel(time.Hour), nil), api.CodeForbidden)
	wantCode(t, put(a.tunnel(-48*time.Hour), nil), api.CodeBadRequest)
	// From a host whose clock is ahead: they would keep out what it says when its clock is right again.
	wantCode(t, put(a.tunnel(12*time.Hour), nil), api.CodeBadRequest)
	wantCode(t, put(nil, a.record(uint64(p.clock.now().Add(12*time.Hour).UnixMilli()))), api.CodeBadRequest)
	wantCode(t, put([]byte("junk"), nil), api.CodeBadRequest)
	noError(t, put(nil, nil))
	noError(t, a.PutConsent(t.Context(), a.consentTo(b.public(), 1, nil)))
	got, err := b.Agent(t.Context(), "a1")
	noError(t, err)
	if !bytes.Equal(got.Record, a.record(5)) || !bytes.Equal(got.Tunnel, later) {
		t.Errorf("%+v", got)
	}
}

func TestInvites(t *testing.T) {
	p := start(t, Options{})
	admin := p.enter(t, "admin", api.TagAdmin)
	join := must(identity.NewJoinKey(zeroReader{})).Public()
	good := api.InviteRequest{Join: join, Uses: 1, Expires: p.clock.now().Add(time.Hour)}
	bad := map[string]func(*api.InviteRequest){
		"no key":            func(r *api.InviteRequest) { r.Join = identity.JoinPublic{} },
		"no use":            func(r *api.InviteRequest) { r.Uses = 0 },
		"many uses":         func(r *api.InviteRequest) { r.Uses = api.MaxUses + 1 },
		"past":              func(r *api.InviteRequest) { r.Expires = p.clock.now() },
		"no end":            func(r *api.InviteRequest) { r.Expires = p.clock.now().Add(api.MaxInviteLife + time.Hour) },
		"bad tag":           func(r *api.InviteRequest) { r.Tags = []string{"a b"} },
		"bad jurisdiction":  func(r *api.InviteRequest) { r.Jurisdiction = "\n" },
		"too many tags":     func(r *api.InviteRequest) { r.Tags = manyTags() },
		"junk consent":      func(r *api.InviteRequest) { r.Consent = []byte{1} },
		"consent elsewhere": func(r *api.InviteRequest) { r.Consent = admin.consentToJoin(identity.JoinPublic{1}, 1) },
		"consent to agent":  func(r *api.InviteRequest) { r.Consent = admin.consentTo(identity.AgentPublic(join), 1, nil) },
	}
	for name, change := range bad {
		req := good
		change(&req)
		if err := admin.CreateInvite(t.Context(), req); !api.HasCode(err, api.CodeBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := p.enter(t, "other")
	foreign := good
	foreign.Consent = other.consentToJoin(join, 1)
	wantCode(t, admin.CreateInvite(t.Context(), foreign), api.CodeForbidden)
	noError(t, admin.CreateInvite(t.Context(), good))
	noError(t, admin.CreateInvite(t.Context(), good))
	changed := good
	changed.Uses = 2
	wantCode(t, admin.CreateInvite(t.Context(), changed), api.CodeConflict)
	noError(t, admin.DeleteInvite(t.Context(), join))
	noError(t, admin.DeleteInvite(t.Context(), join))
	wantCode(t, admin.DeleteInvite(t.Context(), identity.JoinPublic{5}), api.CodeNotFound)
	wantCode(t, admin.CreateInvite(t.Context(), good), api.CodeConflict) // no way back
	// The operator may invite on behalf of an agent that has signed.
	second := identity.JoinPublic{7}
	noError(t, p.CreateInvite(t.Context(), api.InviteRequest{
		Join: second, Uses: 1, Expires: p.clock.now().Add(time.Hour), Consent: other.consentToJoin(second, 1),
	}))
	list, err := admin.Invites(t.Context())
	noError(t, err)
	if list[0].Join != second || list[0].Inviter != other.public() {
		t.Errorf("%+v", list[0])
	}
}

func manyTags() []string {
	var tags []string
	for c := 'a'; c <= 'z'; c++ {
		tags = append(tags, string(c))
	}
	return tags
}

func TestObserved(t *testing.T) {
	p := start(t, Options{})
	addr := netip.MustParseAddr
	inside := identity.NetworkPrefix(p.Authority()).Addr().Next()
	for _, c := range []struct {
		from   netip.Addr
		before []netip.Addr
		want   []netip.Addr
	}{
		{addr("127.0.0.1"), nil, nil},
		{addr("fe80::1"), nil, nil},
		{netip.Addr{}, nil, nil},
		{inside, nil, nil},
		{addr("198.51.100.1"), nil, []netip.Addr{addr("198.51.100.1")}},
		{addr("10.1.2.3"), []netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")}, []netip.Addr{addr("10.1.2.3"), addr("198.51.100.1")}},
		{addr("198.51.100.2"), []netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")}, []netip.Addr{addr("198.51.100.2"), addr("198.51.100.1")}},
	} {
		s := &stream{registry: p.registry, caller: caller{addr: c.from}}
		if got := s.observed(c.before); !slices.Equal(got, c.want) {
			t.Errorf("%s after %v: %v, want %v", c.from, c.before, got, c.want)
		}
	}
}

func TestStreamEndsWithTheCoordinator(t *testing.T) {
	p := start(t, Options{})
	l := p.enter(t, "a1").listen(t)
	l.synced()
	p.stop()
	if _, err := l.ends(); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("%v", err)
	}
	if err := p.Ready(context.Background()); err != nil && err != ErrStopped {
		t.Error(err)
	}
}
