// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/policy"
)

// world makes keys and signed statements of one network.
type world struct {
	t         *testing.T
	authority identity.AuthorityKey
	now       time.Time
	serial    uint64
}

func newWorld(t *testing.T) *world {
	return &world{t: t, authority: identity.AuthorityKeyFromSeed([32]byte{1}), now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func (w *world) agent(n byte) identity.AgentKey { return identity.AgentKeyFromSeed([32]byte{0xa, n}) }

func (w *world) certificate(key identity.AgentKey, name string) identity.Certificate {
	w.t.Helper()
	w.serial++
	c, err := identity.Certificate{
		Agent: key.Public(), Name: name, NotBefore: w.now, NotAfter: w.now.Add(24 * time.Hour), Serial: w.serial,
	}.Sign(w.authority)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) pass(agent identity.AgentPublic, serial uint64) []byte {
	w.t.Helper()
	p, err := identity.RelayPass{Agent: agent, NotBefore: w.now, NotAfter: w.now.Add(24 * time.Hour), Serial: serial}.Sign(w.authority)
	if err != nil {
		w.t.Fatal(err)
	}
	return p.Raw()
}

func (w *world) peer(key identity.AgentKey, name string) api.Peer {
	w.t.Helper()
	tunnel, err := newTunnelKey(w.authority.Public(), key, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	record, err := identity.Record{
		Network: w.authority.Public(), Serial: 1, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:7745")},
	}.Sign(key)
	if err != nil {
		w.t.Fatal(err)
	}
	return api.Peer{Certificate: w.certificate(key, name).Raw(), Tunnel: tunnel.statement.Raw(), Record: record.Raw(), Online: true}
}

func (w *world) consent(from identity.AgentKey, c identity.Consent) api.ConsentEntry {
	w.t.Helper()
	c.Network = w.authority.Public()
	signed, err := c.Sign(from)
	if err != nil {
		w.t.Fatal(err)
	}
	return api.ConsentEntry{Consent: signed.Raw()}
}

func (w *world) book(key identity.AgentKey, name string) *book {
	b := newBook(w.authority.Public(), key.Public())
	b.certificate = w.certificate(key, name)
	return b
}

func take[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestTrustStates(t *testing.T) {
	w := newWorld(t)
	us, them := w.agent(1), w.agent(2)
	peer := them.Public()
	b := w.book(us, "planner")
	take(t, false, second(b.addPeer(w.peer(them, "warehouse"))))
	expect := func(want string) {
		t.Helper()
		if got := b.trust(peer, w.now); got != want {
			t.Fatalf("trust is %s, not %s", got, want)
		}
		p := b.plan(planInput{now: w.now})
		if got := p.overlay.Policy[us.Public()].Trusted(identity.Address(b.network, peer), w.now); got != (want == localapi.TrustMutual) {
			t.Fatalf("with trust %s the policy says %v", want, got)
		}
		if (len(p.overlay.Peers) == 1) != (want == localapi.TrustMutual) || (len(p.hosts) == 1) != (want == localapi.TrustMutual) {
			t.Fatalf("with trust %s the plan has peers %v and names %v", want, p.overlay.Peers, p.hosts)
		}
	}
	serial := uint64(w.now.UnixMilli())
	receive := func(c identity.Consent) {
		t.Helper()
		serial++
		c.To, c.Serial = us.Public(), serial
		take(t, false, second(b.addConsent(w.consent(them, c))))
	}
	do := func(action string) {
		t.Helper()
		c, err := b.decide(localapi.TrustRequest{Action: action}, peer, w.now)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.sign(us, c, w.now); err != nil {
			t.Fatal(err)
		}
	}
	expect(localapi.TrustNone)
	receive(identity.Consent{Reason: "please"})
	expect(localapi.TrustPending)
	do(localapi.ActionReject)
	expect(localapi.TrustRejected)
	receive(identity.Consent{Reason: "please, once more"})
	expect(localapi.TrustPending)
	do(localapi.ActionApprove)
	expect(localapi.TrustMutual)
	do(localapi.ActionRevoke)
	expect(localapi.TrustRevoked)
	do(localapi.ActionRequest)
	expect(localapi.TrustMutual) // theirs still holds
	receive(identity.Consent{Withdrawn: true})
	expect(localapi.TrustRevoked)
	receive(identity.Consent{Expiry: w.now.Add(time.Minute)})
	expect(localapi.TrustMutual)
	w.now = w.now.Add(time.Minute)
	expect(localapi.TrustRevoked)
	w.now = w.now.Add(time.Second)
	do(localapi.ActionRequest) // to ask again is more news than what ended before
	expect(localapi.TrustRequested)
	serial = uint64(w.now.UnixMilli()) + 1
	receive(identity.Consent{Withdrawn: true, Reason: rejection})
	expect(localapi.TrustRejected)
	w.now = w.now.Add(time.Second)
	do(localapi.ActionRequest)
	expect(localapi.TrustRequested)
}

func second[A any](_ A, err error) error { return err }

// TestOldConsentStaysOut: a coordinator that serves a consent again which was taken back since changes nothing.
func TestOldConsentStaysOut(t *testing.T) {
	w := newWorld(t)
	us, them := w.agent(1), w.agent(2)
	b := w.book(us, "planner")
	take(t, false, second(b.addPeer(w.peer(them, "warehouse"))))
	old := w.consent(them, identity.Consent{To: us.Public(), Serial: 10})
	take(t, false, second(b.addConsent(old)))
	take(t, false, second(b.addConsent(w.consent(them, identity.Consent{To: us.Public(), Serial: 11, Withdrawn: true}))))
	if changed, err := b.addConsent(old); changed || err != nil {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if theirs := b.theirs(them.Public()); !theirs.Withdrawn {
		t.Error("the withdrawal is gone")
	}
}

// TestConsentByInvite: the consent in an invite counts for who was accepted with its join key, and for nobody else.
func TestConsentByInvite(t *testing.T) {
	w := newWorld(t)
	us, them, other := w.agent(1), w.agent(2), w.agent(3)
	join := identity.JoinKeyFromSeed([32]byte{7})
	b := w.book(us, "warehouse")
	entry := w.consent(them, identity.Consent{To: join.Public(), ToJoin: true, Serial: 1})
	if _, err := b.addConsent(entry); err == nil {
		t.Error("taken without an acceptance")
	}
	a, err := identity.Acceptance{Network: w.authority.Public(), Agent: other.Public()}.Sign(join)
	entry.Acceptance = take(t, a, err).Raw()
	if _, err := b.addConsent(entry); !errors.Is(err, errForeign) {
		t.Errorf("another agent's acceptance: %v", err)
	}
	forged, err := identity.Acceptance{Network: w.authority.Public(), Agent: us.Public()}.Sign(identity.JoinKeyFromSeed([32]byte{8}))
	entry.Acceptance = take(t, forged, err).Raw()
	if _, err := b.addConsent(entry); !errors.Is(err, identity.ErrWrongKey) {
		t.Errorf("an acceptance by another join key: %v", err)
	}
	a, err = identity.Acceptance{Network: w.authority.Public(), Agent: us.Public()}.Sign(join)
	entry.Acceptance = take(t, a, err).Raw()
	take(t, false, second(b.addConsent(entry)))
	if b.trust(them.Public(), w.now) != localapi.TrustPending {
		t.Error("the consent does not count")
	}
}

// TestAbuse09SwappedKey: the coordinator shows another key, validly certified, under a name that is known. The name is
// refused loudly, the other key never reaches the data path or the names, and a person can accept it.
func TestAbuse09SwappedKey(t *testing.T) {
	w := newWorld(t)
	us, them, evil := w.agent(1), w.agent(2), w.agent(66)
	b := w.book(us, "planner")
	for _, key := range []identity.AgentKey{them, evil} { // the worst case: consents exist with both
		take(t, false, second(b.addConsent(w.consent(key, identity.Consent{To: us.Public(), Serial: 1}))))
		if err := b.sign(us, identity.Consent{To: key.Public()}, w.now); err != nil {
			t.Fatal(err)
		}
	}
	take(t, false, second(b.addPeer(w.peer(them, "warehouse"))))
	if _, err := b.addPeer(w.peer(evil, "warehouse")); !errors.Is(err, errKeyMismatch) {
		t.Fatalf("got %v", err)
	}
	if _, err := b.addPeer(w.peer(evil, "planner")); !errors.Is(err, errKeyMismatch) {
		t.Fatalf("our own name: %v", err)
	}
	check := func(b *book) {
		t.Helper()
		p := b.plan(planInput{now: w.now})
		for _, peer := range p.overlay.Peers {
			if peer.Agent == evil.Public() {
				t.Error("the data path knows the other key")
			}
		}
		if p.overlay.Policy[us.Public()].Trust(identity.Address(b.network, evil.Public()), w.now) != policy.DenyUnknown {
			t.Error("the policy knows the other key")
		}
		if len(p.hosts) != 0 {
			t.Errorf("the name is still answered: %v", p.hosts)
		}
	}
	check(b)
	// It survives a restart.
	var s savedNode
	b.save(&s)
	again := newBook(b.network, b.self)
	if err := again.load(s); err != nil {
		t.Fatal(err)
	}
	check(again)
	if err := again.acceptKey("warehouse", us.Public()); err == nil {
		t.Error("a key that nobody showed was accepted")
	}
	if err := again.acceptKey("warehouse", evil.Public()); err != nil {
		t.Fatal(err)
	}
	if p := again.plan(planInput{now: w.now}); len(p.hosts) != 1 || p.hosts[0].Addr != identity.Address(b.network, evil.Public()) {
		t.Errorf("after a person accepted it: %v", p.hosts)
	}
}

// TestRevocation: a revoked agent leaves the plan at once and can't come back under an older certificate.
func TestRevocation(t *testing.T) {
	w := newWorld(t)
	us, them := w.agent(1), w.agent(2)
	b := w.book(us, "planner")
	in := w.peer(them, "warehouse")
	take(t, false, second(b.addPeer(in)))
	take(t, false, second(b.addConsent(w.consent(them, identity.Consent{To: us.Public(), Serial: 1}))))
	if err := b.sign(us, identity.Consent{To: them.Public()}, w.now); err != nil {
		t.Fatal(err)
	}
	if len(b.plan(planInput{now: w.now}).overlay.Peers) != 1 {
		t.Fatal("no peer")
	}
	r, err := identity.Revocation{Agent: them.Public(), Serial: w.serial, Time: w.now}.Sign(w.authority)
	take(t, false, second(b.addRevocation(take(t, r, err).Raw())))
	if p := b.plan(planInput{now: w.now}); len(p.overlay.Peers) != 0 || len(p.hosts) != 0 || p.overlay.Revoked[them.Public()] != w.serial {
		t.Errorf("after the revocation: %+v", p)
	}
	if _, err := b.addPeer(in); !errors.Is(err, errRevoked) {
		t.Errorf("the old certificate again: %v", err)
	}
}

// TestForgedEvents: nothing without the right signature enters the book.
func TestForgedEvents(t *testing.T) {
	w := newWorld(t)
	us, them, evil := w.agent(1), w.agent(2), w.agent(66)
	b := w.book(us, "planner")
	good, bad := w.peer(them, "warehouse"), w.peer(evil, "other")
	for name, p := range map[string]api.Peer{
		"no certificate":       {Tunnel: good.Tunnel},
		"changed certificate":  {Certificate: append([]byte{0}, good.Certificate...)},
		"another's tunnel key": {Certificate: good.Certificate, Tunnel: bad.Tunnel},
		"another's record":     {Certificate: good.Certificate, Record: bad.Record},
	} {
		if _, err := b.addPeer(p); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if p := b.peers[them.Public()]; p != nil && (p.tunnel.Agent == evil.Public() || p.record.Agent == evil.Public()) {
		t.Error("another's statement is in the book")
	}
	other := newWorld(t)
	other.authority = identity.AuthorityKeyFromSeed([32]byte{2})
	if _, err := b.addPeer(other.peer(them, "warehouse")); !errors.Is(err, identity.ErrNetwork) {
		t.Errorf("another network's certificate: %v", err)
	}
	if _, err := b.addConsent(w.consent(them, identity.Consent{To: evil.Public(), Serial: 1})); !errors.Is(err, errForeign) {
		t.Errorf("a consent among others: %v", err)
	}
}

// FuzzEvents feeds whatever a coordinator may send.
func FuzzEvents(f *testing.F) {
	w := newWorld(&testing.T{})
	us, them := w.agent(1), w.agent(2)
	p := w.peer(them, "warehouse")
	f.Add(p.Certificate, p.Tunnel, p.Record)
	f.Fuzz(func(t *testing.T, certificate, tunnel, record []byte) {
		b := newBook(w.authority.Public(), us.Public())
		b.certificate = w.certificate(us, "planner")
		_, _ = b.takeEvent(api.Event{Type: api.EventPeer, Peer: &api.Peer{Certificate: certificate, Tunnel: tunnel, Record: record}})
		_, _ = b.takeEvent(api.Event{Consent: &api.ConsentEntry{Consent: tunnel, Acceptance: record, Other: certificate}, Revocation: record})
		b.plan(planInput{now: w.now})
		var s savedNode
		b.save(&s)
		if err := newBook(b.network, b.self).load(s); err != nil {
			t.Fatalf("what was taken can't be read again: %v", err)
		}
	})
}

func TestCandidates(t *testing.T) {
	w := newWorld(t)
	prefix := identity.NetworkPrefix(w.authority.Public())
	p := &peer{observed: []netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("192.0.2.7")}}
	p.record.Endpoints = []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.7:7745"), netip.AddrPortFrom(identity.ServiceAddress(prefix), 7745),
		netip.MustParseAddrPort("[ff02::1]:7745"), netip.MustParseAddrPort("[::ffff:192.0.2.7]:7745"),
	}
	got := candidates(prefix, p)
	if len(got) != 2 || got[0] != netip.MustParseAddrPort("192.0.2.7:7745") || got[1] != netip.MustParseAddrPort("198.51.100.9:7745") {
		t.Errorf("candidates are %v", got)
	}
	for i := range 100 {
		p.record.Endpoints = append(p.record.Endpoints, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.8"), uint16(i+1)))
	}
	if got := candidates(prefix, p); len(got) != maxCandidates {
		t.Errorf("%d candidates", len(got))
	}
}

func TestFind(t *testing.T) {
	w := newWorld(t)
	us, them := w.agent(1), w.agent(2)
	b := w.book(us, "planner")
	take(t, false, second(b.addPeer(w.peer(them, "warehouse"))))
	for q, want := range map[string]identity.AgentPublic{
		"warehouse": them.Public(), "Warehouse.pilot.internal.": them.Public(), "planner": us.Public(),
		them.Public().String(): them.Public(), identity.Address(b.network, them.Public()).String(): them.Public(),
		identity.Address(b.network, us.Public()).String(): us.Public(),
	} {
		if got, ok := b.find(q, "pilot.internal"); !ok || got != want {
			t.Errorf("%s: %v %v", q, got, ok)
		}
	}
	for _, q := range []string{"", "nobody", "warehouse.example.org", "fd00::1", w.agent(9).Public().String()} {
		if _, ok := b.find(q, "pilot.internal"); ok {
			t.Errorf("%q was found", q)
		}
	}
}
