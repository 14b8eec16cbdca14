// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/relayserver"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

// opened opens a list of relays, by their names.
func (p *place) opened(t testing.TB, list [][]byte) map[string]identity.RelayStatement {
	t.Helper()
	all := map[string]identity.RelayStatement{}
	for _, raw := range list {
		s, err := identity.OpenRelayStatement(raw, p.Authority())
		if err != nil {
			t.Fatal(err)
		}
		all[s.Name] = s
	}
	return all
}

func (p *place) relays(t testing.TB, a *agent) map[string]identity.RelayStatement {
	t.Helper()
	list, err := a.Relays(t.Context())
	noError(t, err)
	return p.opened(t, list)
}

// client connects an agent to a relay over TLS, with a channel of what comes.
func (a *agent) connect(t testing.TB, s identity.RelayStatement) (*relay.Client, chan string) {
	t.Helper()
	got := make(chan string, 10)
	c, err := relay.New(relay.Options{
		Statement: s, Network: a.at.Authority(), Key: a.key, Pass: func() []byte { return a.pass },
		Deliver: func(_ netip.Addr, d []byte) { got <- string(d) },
	})
	noError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		noError(t, <-ended)
	})
	return c, got
}

func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waiting for ", what)
		}
	}
}

// TestCoordinatorIsARelay: by default, on its own port, with a key that lasts; and members are told.
func TestCoordinatorIsARelay(t *testing.T) {
	dir := t.TempDir()
	p := start(t, Options{StateDir: dir, Relay: RelayOptions{Name: "eu-1", Region: "eu", Jurisdiction: "eu-de"}})
	a, b := p.enter(t, "a1"), p.enter(t, "b1")
	s := p.relays(t, a)["eu-1"]
	if s.Region != "eu" || s.Jurisdiction != "eu-de" || !slices.Equal(s.Addresses, []string{p.Addr().String()}) || s.UDP == 0 || s.ValidAt(time.Now()) != nil {
		t.Fatalf("%+v", s)
	}
	first := a.listen(t).synced()
	if i := slices.IndexFunc(first, func(e api.Event) bool { return e.Type == api.EventRelays }); i < 0 || p.opened(t, first[i].Relays)["eu-1"].Key != s.Key {
		t.Errorf("the snapshot has no relays: %+v", first)
	}
	one, _ := a.connect(t, s)
	two, got := b.connect(t, s)
	for _, c := range []*relay.Client{one, two} {
		until(t, "the connection", func() bool { return c.Status().State == relay.StateConnected })
	}
	noError(t, one.SendTLS(b.cert.Address(), []byte("hello")))
	if d := <-got; d != "hello" {
		t.Errorf("got %q", d)
	}
	if stats, ok := p.Relay(); !ok || stats.Clients != 2 {
		t.Errorf("%+v", stats)
	}
	if info, err := os.Stat(filepath.Join(dir, relayKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	p.stop()
	again := start(t, Options{StateDir: dir, Relay: RelayOptions{Name: "eu-1"}})
	if again.relayKey != s.Key {
		t.Error("the key changed")
	}
}

func TestCoordinatorWithoutRelay(t *testing.T) {
	p := start(t, Options{Relay: RelayOptions{Off: true}})
	a := p.enter(t, "a1")
	if got := p.relays(t, a); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	if _, ok := p.Relay(); ok {
		t.Error("it is a relay")
	}
}

// TestAbuse21RevokedOnRelay: a revoked agent's relay connection ends, and it gets no other.
func TestAbuse21RevokedOnRelay(t *testing.T) {
	p := start(t, Options{Relay: RelayOptions{Name: "r1"}})
	admin, a := p.enter(t, "admin", api.TagAdmin), p.enter(t, "a1")
	var s identity.RelayStatement
	for _, s = range p.relays(t, a) {
	}
	c, _ := a.connect(t, s)
	until(t, "the connection", func() bool { return c.Status().State == relay.StateConnected })
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "a1"}))
	until(t, "the end", func() bool {
		var bye *relay.ByeError
		return errors.As(c.Status().Err, &bye) && bye.Reason == relay.ReasonRevoked
	})
	until(t, "another refusal", func() bool { stats, _ := p.Relay(); return stats.Refused > 0 && stats.Clients == 0 })
}

// TestRelayAgents: agents with the tag may be relays, under names that differ; all members are told when one comes,
// moves and goes; and its jurisdiction is the one that it joined with.
func TestRelayAgents(t *testing.T) {
	p := start(t, Options{Relay: RelayOptions{Off: true}})
	admin, a, plain := p.enter(t, "admin", api.TagAdmin), p.newAgent(t), p.enter(t, "plain")
	join := p.invite(t, func(r *api.InviteRequest) { r.Tags, r.Jurisdiction = []string{api.TagRelay}, "eu-fr" })
	_, err := a.Join(t.Context(), a.request("r1", join))
	noError(t, err)
	b := p.enter(t, "r2", api.TagRelay)
	req := api.RelayRequest{Name: "paris", Region: "eu", Addresses: []string{"192.0.2.1:7745"}, UDPPort: 7745}
	events := plain.listen(t)
	events.synced()
	listing, err := a.PutRelay(t.Context(), req)
	noError(t, err)
	s := p.opened(t, [][]byte{listing.Statement})["paris"]
	if s.Key != a.public() || s.Jurisdiction != "eu-fr" || s.UDP != 7745 {
		t.Errorf("%+v", s)
	}
	if e := events.untilType(api.EventRelays); len(p.opened(t, e.Relays)) != 1 {
		t.Errorf("%+v", e)
	}
	again, err := a.PutRelay(t.Context(), req)
	noError(t, err)
	if !slices.Equal(again.Statement, listing.Statement) {
		t.Error("signed anew for nothing")
	}
	_, err = plain.PutRelay(t.Context(), req)
	wantCode(t, err, api.CodeForbidden)
	_, err = b.PutRelay(t.Context(), req)
	wantCode(t, err, api.CodeNameTaken)
	for name, change := range map[string]func(*api.RelayRequest){
		"no address": func(r *api.RelayRequest) { r.Addresses = nil }, "a name of two lines": func(r *api.RelayRequest) { r.Name = "a\nb" },
		"a region that is none": func(r *api.RelayRequest) { r.Region = "EU" }, "an address that is none": func(r *api.RelayRequest) { r.Addresses = []string{"x"} },
	} {
		bad := req
		bad.Name = "other"
		change(&bad)
		if _, err := b.PutRelay(t.Context(), bad); !api.HasCode(err, api.CodeBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	req.UDPPort = 7746
	_, err = a.PutRelay(t.Context(), req)
	noError(t, err)
	if e := events.untilType(api.EventRelays); p.opened(t, e.Relays)["paris"].UDP != 7746 {
		t.Errorf("%+v", e)
	}
	// A statement is renewed when two thirds of its life are over.
	p.clock.advance(17 * time.Hour)
	renewed, err := a.PutRelay(t.Context(), req)
	noError(t, err)
	if s := p.opened(t, [][]byte{renewed.Statement})["paris"]; !s.NotAfter.After(p.clock.now().Add(23 * time.Hour)) {
		t.Errorf("valid until %v", s.NotAfter)
	}
	// Its revocation takes it off the list.
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "r1"}))
	if got := p.relays(t, plain); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestRelayHearsOfRevocations: a relay is told of every revocation, also of agents with which it has nothing to do, and
// also of those from before it came. Nobody else is.
func TestRelayHearsOfRevocations(t *testing.T) {
	p := start(t, Options{})
	admin, r, plain := p.enter(t, "admin", api.TagAdmin), p.enter(t, "r1", api.TagRelay), p.enter(t, "plain")
	one, two := p.enter(t, "one"), p.enter(t, "two")
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "one"}))
	is := func(who *agent) func(api.Event) bool {
		return func(e api.Event) bool {
			if e.Type != api.EventRevocation {
				return false
			}
			rev, err := identity.OpenRevocation(e.Revocation, p.Authority())
			return err == nil && rev.Agent == who.public()
		}
	}
	events, others := r.listen(t), plain.listen(t)
	if first := events.synced(); !slices.ContainsFunc(first, is(one)) {
		t.Errorf("the snapshot lacks the earlier one: %+v", first)
	}
	others.synced()
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "two"}))
	events.until("the later one", is(two))
	noError(t, admin.PutConsent(t.Context(), admin.consentTo(plain.public(), 1, nil)))
	for _, e := range others.until("a consent", func(e api.Event) bool { return e.Type == api.EventConsent }) {
		if e.Type == api.EventRevocation {
			t.Errorf("an agent heard of a stranger's revocation")
		}
	}
}

// TestRelayLearnsNoNames: a relay that joins as one, even by an invite with its maker's consent, is told of no other agent;
// and of a revocation it hears whose it is, not what people say of it. Others can't listen like that.
func TestRelayLearnsNoNames(t *testing.T) {
	p := start(t, Options{})
	admin, one, two, plain := p.enter(t, "zebrafinch", api.TagAdmin), p.enter(t, "quokkabird", "x"), p.enter(t, "okapifish"), p.enter(t, "plain")
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "quokkabird", Reason: "quokkabird left"}))
	join := must(identity.NewJoinKey(rand.Reader))
	noError(t, admin.CreateInvite(t.Context(), api.InviteRequest{
		Join: join.Public(), Uses: 2, Expires: p.clock.now().Add(time.Hour), Tags: []string{api.TagRelay},
		Consent: admin.consentToJoin(join.Public(), 1),
	}))
	r := p.newAgent(t)
	req := r.request("r1", join)
	req.Relay = true
	m, err := r.Join(t.Context(), req)
	noError(t, err)
	if pass, err := identity.OpenRelayPass(m.RelayPass, p.Authority()); err != nil || pass.Agent != r.public() {
		t.Errorf("%+v, %v", pass, err)
	}
	again, err := r.Renew(t.Context())
	noError(t, err)
	told := must(json.Marshal([]any{m, again}))
	events := r.hears(t, r.WatchRevocations)
	heard := events.until("synced", func(e api.Event) bool { return e.Type == api.EventSynced })
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "okapifish", Reason: "okapifish too"}))
	noError(t, admin.PutConsent(t.Context(), admin.consentTo(r.public(), 2, nil)))
	heard = append(heard, events.untilType(api.EventRevocation))
	var gone []identity.AgentPublic
	for _, e := range heard {
		if e.Type == api.EventRevocation {
			rev := must(identity.OpenRevocation(e.Revocation, p.Authority()))
			if gone = append(gone, rev.Agent); rev.Serial == 0 || rev.Reason != "" {
				t.Errorf("%+v", rev)
			}
		} else if e.Type != api.EventSynced && e.Type != api.EventPing {
			t.Errorf("it hears of %+v", e)
		}
	}
	if !slices.Equal(gone, []identity.AgentPublic{one.public(), two.public()}) {
		t.Errorf("it hears that these are out: %v", gone)
	}
	told = append(told, must(json.Marshal(heard))...)
	for _, a := range []string{"zebrafinch", "quokkabird", "okapifish"} {
		for shift := range 3 { // as it is in base64, wherever it begins
			name := append(make([]byte, shift), a...)
			text := base64.StdEncoding.EncodeToString(name[:len(name)/3*3])[4*((shift+2)/3):]
			if bytes.Contains(told, []byte(text)) || bytes.Contains(told, []byte(a)) {
				t.Errorf("a relay was told the name %s: %s", a, told)
			}
		}
	}
	_, err = plain.hears(t, plain.WatchRevocations).ends()
	wantCode(t, err, api.CodeForbidden)
}

// TestRelaysOfSeveralCoordinators: relays of several coordinators in front of one registry are one list, and one that goes is
// taken off it at once.
func TestRelaysOfSeveralCoordinators(t *testing.T) {
	r := start(t, Options{Relay: RelayOptions{Name: "first"}})
	a := r.enter(t, "a1")
	events := a.listen(t)
	events.synced()
	s := r.relays(t, a)["first"]
	other := identity.RelayStatement{
		Key: identity.AgentKeyFromSeed([identity.KeySize]byte{7}).Public(), Name: "second", Addresses: []string{"192.0.2.1:7745"},
	}
	_, fresh, err := r.registry.listRelay(t.Context(), other)
	if err != nil || !fresh {
		t.Fatal(fresh, err)
	}
	if e := events.untilType(api.EventRelays); len(e.Relays) != 2 {
		t.Errorf("%+v", e)
	}
	noError(t, r.registry.unlistRelay(t.Context(), s.Key))
	if e := events.untilType(api.EventRelays); len(r.opened(t, e.Relays)) != 1 {
		t.Errorf("%+v", e)
	}
	if _, _, err := read[relayRecord](t.Context(), r.registry.store.Presence, presenceRelay+agentKey(s.Key)); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
}

func TestBadRelayOptions(t *testing.T) {
	for _, o := range []RelayOptions{{Name: "a b"}, {Region: "E U"}, {Jurisdiction: "\n"}} {
		if c, err := New(Options{Listen: "127.0.0.1:0", StateDir: t.TempDir(), Relay: o}); err == nil {
			c.Close()
			t.Errorf("%+v was taken", o)
		}
	}
	dir := t.TempDir()
	noError(t, os.WriteFile(filepath.Join(dir, relayKeyFile), []byte(`{"version":1,"seed":"x"}`), 0o600))
	if _, err := New(Options{Listen: "127.0.0.1:0", StateDir: dir}); !errors.Is(err, relayserver.ErrKeyFile) {
		t.Errorf("got %v", err)
	}
}
