// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
)

func TestJoin(t *testing.T) {
	p := start(t, Options{Network: "acme", Advertise: []string{"coordinator.example:7745"}})
	founder := p.enter(t, "planner", api.TagAdmin)
	if founder.cert.Name != "planner" || !founder.cert.HasTag(api.TagAdmin) || founder.cert.Agent != founder.public() {
		t.Errorf("certificate %+v", founder.cert)
	}
	noError(t, founder.cert.ValidAt(time.Now()))

	info, err := founder.Network(t.Context())
	noError(t, err)
	if info.Name != "acme" || info.Zone != "acme.internal" || info.Authority != p.Authority() || info.Version != api.Version {
		t.Errorf("network %+v", info)
	}

	// The founder invites with its consent; the joiner answers with its own.
	stream := founder.listen(t)
	stream.synced()
	join := must(identity.NewJoinKey(rand.Reader))
	given := founder.consentToJoin(join.Public(), 100)
	noError(t, founder.CreateInvite(t.Context(), api.InviteRequest{
		Join: join.Public(), Uses: 1, Expires: time.Now().Add(time.Hour), Tags: []string{"db"}, Jurisdiction: "eu-de", Consent: given,
	}))
	joiner := p.newAgent(t)
	req := joiner.request("warehouse", join)
	req.Consent = joiner.consentTo(founder.public(), 100, nil)
	m, err := joiner.Join(t.Context(), req)
	noError(t, err)
	cert := joiner.opened(t, m.Certificate)
	if cert.Name != "warehouse" || !cert.HasTag("db") || cert.HasTag(api.TagAdmin) || cert.Jurisdiction != "eu-de" {
		t.Errorf("certificate %+v", cert)
	}
	if m.Network != "acme" || len(m.Coordinators) != 1 || m.Coordinators[0] != "coordinator.example:7745" {
		t.Errorf("membership %+v", m)
	}
	if m.Inviter == nil || len(m.Inviter.Tunnel) == 0 || len(m.Inviter.Record) == 0 || !m.Inviter.Online {
		t.Fatalf("the inviter has consented, so the joiner sees it: %+v", m.Inviter)
	}
	if len(m.Consents) != 2 || !bytes.Equal(m.Consents[0].Consent, given) || !bytes.Equal(m.Consents[0].Acceptance, req.Acceptance) ||
		!bytes.Equal(m.Consents[1].Consent, req.Consent) {
		t.Errorf("consents %+v", m.Consents)
	}

	// The inviter is told.
	used, consents := false, 0
	stream.until("both consents and the use", func(e api.Event) bool {
		if e.Type == api.EventConsent {
			consents++
			if other := founder.opened(t, e.Consent.Other); other.Name != "warehouse" {
				t.Errorf("the consent is with %q", other.Name)
			}
		}
		used = used || e.Type == api.EventInviteUsed
		return used && consents == 2
	})
	list, err := founder.Invites(t.Context())
	noError(t, err)
	if i := list[0]; len(list) != 2 || i.Join != join.Public() || i.Used != 1 || i.Inviter != founder.public() || !i.Consent {
		t.Errorf("invites %+v", list)
	}
}

func TestJoinAgain(t *testing.T) {
	p := start(t, Options{})
	join := p.invite(t, nil)
	a := p.newAgent(t)
	first, err := a.Join(t.Context(), a.request("planner", join))
	noError(t, err)
	second, err := a.Join(t.Context(), a.request("planner", join))
	noError(t, err)
	if one, two := a.opened(t, first.Certificate), a.opened(t, second.Certificate); two.Serial <= one.Serial {
		t.Errorf("serial %d after %d", two.Serial, one.Serial)
	}
	p.clock.advance(2 * time.Hour) // the key has expired, and its one use is this agent's
	_, err = a.Join(t.Context(), a.request("", join))
	noError(t, err)
	_, err = a.Join(t.Context(), a.request("other", join))
	wantCode(t, err, api.CodeConflict)

	// Another invite adds its tags.
	m, err := a.Join(t.Context(), a.request("planner", p.invite(t, func(r *api.InviteRequest) { r.Tags = []string{"x"} })))
	noError(t, err)
	if !a.opened(t, m.Certificate).HasTag("x") {
		t.Error("the tag of the second invite is missing")
	}
}

func TestNameTaken(t *testing.T) {
	p := start(t, Options{})
	p.enter(t, "planner")
	p.enter(t, "planner-2")
	join := p.invite(t, nil)
	a := p.newAgent(t)
	_, err := a.Join(t.Context(), a.request("planner", join))
	if e := wantCode(t, err, api.CodeNameTaken); e.Suggestion != "planner-3" || e.Hint == "" {
		t.Errorf("%+v", e)
	}
	// The key wasn't used up by that.
	_, err = a.Join(t.Context(), a.request("planner-3", join))
	noError(t, err)

	long := strings.Repeat("a", maxName)
	p.enter(t, long)
	b := p.newAgent(t)
	_, err = b.Join(t.Context(), b.request(long, p.invite(t, nil)))
	if e := wantCode(t, err, api.CodeNameTaken); e.Suggestion != long[:maxName-2]+"-2" {
		t.Errorf("%+v", e)
	}
}

func TestFailedJoinReleasesName(t *testing.T) {
	p := start(t, Options{})
	join := p.invite(t, nil)
	first := p.newAgent(t)
	r := p.registry
	checked, err := r.checkJoin(caller{agent: first.public()}, first.request("first", join))
	noError(t, err)
	// Somebody else takes the key between the first look at it and its use.
	second := p.newAgent(t)
	fresh, err := r.reserve(t.Context(), nameKey("first"), first.public())
	noError(t, err)
	if !fresh {
		t.Fatal("the name wasn't free")
	}
	_, err = second.Join(t.Context(), second.request("second", join))
	noError(t, err)
	_, err = r.admit(t.Context(), checked)
	wantCode(t, err, api.CodeJoinKeyUsed)
	// What began and never finished blocks the name for a while only.
	third := p.newAgent(t)
	key := p.invite(t, nil)
	_, err = third.Join(t.Context(), third.request("first", key))
	wantCode(t, err, api.CodeNameTaken)
	p.clock.advance(reservation)
	_, err = third.Join(t.Context(), third.request("first", key))
	noError(t, err)
}

func TestAbuse07OneShotKeyUsedByManyAtOnce(t *testing.T) {
	const joiners = 200
	for _, names := range []string{"same", "own"} {
		t.Run(names+" name", func(t *testing.T) {
			p := start(t, Options{})
			join := p.invite(t, nil)
			agents := make([]*agent, joiners)
			for i := range agents {
				agents[i] = p.newAgent(t)
			}
			errs := make([]error, joiners)
			var wg sync.WaitGroup
			for i, a := range agents {
				wg.Go(func() {
					name := "planner"
					if names == "own" {
						name = fmt.Sprintf("planner-%d", i)
					}
					_, errs[i] = a.Join(t.Context(), a.request(name, join))
				})
			}
			wg.Wait()
			in := 0
			for i, err := range errs {
				if err == nil {
					in++
					_, err := agents[i].Renew(t.Context())
					noError(t, err)
				} else if !api.HasCode(err, api.CodeJoinKeyUsed) && !api.HasCode(err, api.CodeNameTaken) {
					t.Errorf("joiner %d: %v", i, err)
				}
			}
			if in != 1 {
				t.Fatalf("%d joiners are in", in)
			}
			members, err := p.registry.store.Agents.List(t.Context(), "*")
			noError(t, err)
			if len(members) != 1 {
				t.Errorf("%d members", len(members))
			}
		})
	}
}

func TestCountedKeyAdmitsAsManyAsItSays(t *testing.T) {
	p := start(t, Options{})
	join := p.invite(t, func(r *api.InviteRequest) { r.Uses = 20 })
	var wg sync.WaitGroup
	errs := make([]error, 30)
	for i := range errs {
		a := p.newAgent(t)
		wg.Go(func() { _, errs[i] = a.Join(t.Context(), a.request(fmt.Sprintf("worker-%d", i), join)) })
	}
	wg.Wait()
	in := 0
	for _, err := range errs {
		if err == nil {
			in++
		} else {
			wantCode(t, err, api.CodeJoinKeyUsed)
		}
	}
	if in != 20 {
		t.Errorf("%d of 20 are in", in)
	}
}

func TestAbuse08JoinKeysThatDoNotCount(t *testing.T) {
	p := start(t, Options{})
	admin := p.enter(t, "admin", api.TagAdmin)
	cases := []struct {
		name string
		code string
		key  func() identity.JoinKey
	}{
		{"unknown", api.CodeJoinKeyUnknown, func() identity.JoinKey { return must(identity.NewJoinKey(rand.Reader)) }},
		{"expired", api.CodeJoinKeyExpired, func() identity.JoinKey {
			key := p.invite(t, func(r *api.InviteRequest) { r.Expires = p.clock.now().Add(time.Minute) })
			p.clock.advance(2 * time.Minute)
			return key
		}},
		{"revoked", api.CodeJoinKeyRevoked, func() identity.JoinKey {
			key := p.invite(t, nil)
			noError(t, admin.DeleteInvite(t.Context(), key.Public()))
			return key
		}},
		{"used", api.CodeJoinKeyUsed, func() identity.JoinKey {
			key := p.invite(t, nil)
			other := p.newAgent(t)
			_, err := other.Join(t.Context(), other.request("early", key))
			noError(t, err)
			return key
		}},
		{"of a revoked inviter", api.CodeJoinKeyRevoked, func() identity.JoinKey {
			inviter := p.enter(t, "inviter", api.TagAdmin)
			key := must(identity.NewJoinKey(rand.Reader))
			noError(t, inviter.CreateInvite(t.Context(), api.InviteRequest{Join: key.Public(), Uses: 1, Expires: p.clock.now().Add(time.Hour)}))
			noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "inviter"}))
			return key
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			key := c.key()
			a := p.newAgent(t)
			_, err := a.Join(t.Context(), a.request("late", key))
			if e := wantCode(t, err, c.code); e.Hint == "" {
				t.Error("no hint")
			}
			_, err = a.Renew(t.Context())
			wantCode(t, err, api.CodeNotMember)
			wantAudit(t, p, audited{Action: "join", Outcome: c.code, Agent: a.public(), Subject: key.Public().String()})
		})
	}

	t.Run("for another agent", func(t *testing.T) {
		a, b := p.newAgent(t), p.newAgent(t)
		_, err := b.Join(t.Context(), a.request("late", p.invite(t, nil)))
		wantCode(t, err, api.CodeForbidden)
	})
	t.Run("a tag that the key doesn't have", func(t *testing.T) {
		// A joiner has no say in its tags: what it signs and asks for holds none, and the certificate has the key's.
		a := p.enter(t, "plain", "db")
		if len(a.cert.Tags) != 1 || a.cert.Tags[0] != "db" {
			t.Errorf("tags %v", a.cert.Tags)
		}
		err := a.CreateInvite(t.Context(), api.InviteRequest{
			Join: must(identity.NewJoinKey(rand.Reader)).Public(), Uses: 1, Expires: p.clock.now().Add(time.Hour), Tags: []string{api.TagAdmin},
		})
		wantCode(t, err, api.CodeForbidden)
		wantAudit(t, p, audited{Action: "admin", Outcome: api.CodeForbidden, Agent: a.public(), Subject: "POST /v1/invites"})
		wantCode(t, a.Revoke(t.Context(), api.RevokeRequest{Name: "admin"}), api.CodeForbidden)
		wantCode(t, a.DeleteInvite(t.Context(), must(identity.NewJoinKey(rand.Reader)).Public()), api.CodeForbidden)
		_, err = a.Invites(t.Context())
		wantCode(t, err, api.CodeForbidden)
	})
}

func wantAudit(t *testing.T, p *place, want audited) {
	t.Helper()
	trail, err := p.registry.store.AuditTrail(t.Context(), 1000)
	noError(t, err)
	for _, raw := range trail {
		var got audited
		noError(t, json.Unmarshal(raw, &got))
		if got.Action == want.Action && got.Outcome == want.Outcome && got.Agent == want.Agent && got.Subject == want.Subject {
			if got.Time.IsZero() || !got.Addr.IsLoopback() || got.Reason == "" {
				t.Errorf("the entry lacks when, where from or why: %s", raw)
			}
			return
		}
	}
	t.Errorf("not in the audit trail: %+v", want)
}

func TestAbuse18NamesThatAreNotNames(t *testing.T) {
	p := start(t, Options{})
	join := p.invite(t, nil)
	a := p.newAgent(t)
	for _, name := range []string{
		"", "Planner", "pl anner", "planner\n", "planner\x1b[31m", `pl"anner`, "pl'anner", "-planner", "planner-", "xn--planner-abc",
		"plаnner" /* Cyrillic a */, "planner.evil", "../planner", "localhost", "coordinator", "*", ">", strings.Repeat("a", 64), "1234",
	} {
		_, err := a.Join(t.Context(), a.request(name, join))
		e := wantCode(t, err, api.CodeNameInvalid)
		for _, c := range e.Message {
			if c < 0x20 || c > 0x7e {
				t.Errorf("the message about %q holds %q raw", name, c)
			}
		}
		_, err = p.enterIfMissing(t).Agent(t.Context(), name)
		if name != "" {
			wantCode(t, err, api.CodeNotFound)
		}
	}
	_, err := a.Join(t.Context(), a.request("planner", join))
	noError(t, err)
}

// enterIfMissing returns a member that may look up.
func (p *place) enterIfMissing(t testing.TB) *agent {
	t.Helper()
	if p.looker == nil {
		p.looker = p.enter(t, "looker")
	}
	return p.looker
}

func TestAbuse19AddressOfAnotherKey(t *testing.T) {
	p := start(t, Options{})
	a := p.newAgent(t)
	// No two keys with one address can be made for a test, so the address is bound to another key directly.
	addr := identity.Address(p.Authority(), a.public())
	other := p.enter(t, "other")
	noError(t, put(t.Context(), p.registry.store.Bindings, addressKey(addr), binding{Agent: other.public(), Since: p.clock.now()}))
	_, err := a.Join(t.Context(), a.request("planner", p.invite(t, nil)))
	wantCode(t, err, api.CodeConflict)
	_, err = a.Renew(t.Context())
	wantCode(t, err, api.CodeNotMember)
}
