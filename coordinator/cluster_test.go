// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// natsServer starts a NATS like one that is there already, on a port of its own.
func natsServer(t testing.TB, dir string, port int, jetStream bool) *natsd.Server {
	t.Helper()
	srv, err := natsd.NewServer(&natsd.Options{
		Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, JetStream: jetStream, StoreDir: dir,
	})
	noError(t, err)
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server didn't start")
	}
	return srv
}

func TestTwoCoordinatorsOneRegistry(t *testing.T) {
	nats := natsServer(t, t.TempDir(), -1, true)
	key := must(identity.NewAuthorityKey(rand.Reader))
	one := start(t, Options{NATS: nats.ClientURL(), Authority: &key, Network: "acme", Advertise: []string{"one.example:7745"}})
	two := start(t, Options{NATS: nats.ClientURL(), Authority: &key, Network: "ignored", Advertise: []string{"two.example:7745"}})
	if two.registry.network.Name != "acme" {
		t.Errorf("the network is %q", two.registry.network.Name)
	}

	// A watcher here, changes there.
	a, b := one.enter(t, "a1"), two.enter(t, "b1")
	la := a.listen(t)
	la.synced()
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, nil)))
	la.until("b", isPeer(b.public(), one.Authority(), reachable))
	lb := b.listen(t)
	lb.synced()
	la.until("b is online at the other", isPeer(b.public(), one.Authority(), func(p api.Peer) bool { return p.Online }))

	// A call passes from one to the other.
	noError(t, a.PutConsent(t.Context(), a.consentTo(b.public(), 1, nil)))
	raw := a.signal(b.public(), 0)
	noError(t, a.Signal(t.Context(), raw))
	if e := lb.untilType(api.EventSignal); !bytes.Equal(e.Signal, raw) {
		t.Errorf("%x", e.Signal)
	}
	lb.stop()
	la.until("b is offline at the other", isPeer(b.public(), one.Authority(), func(p api.Peer) bool { return !p.Online }))

	// Both name both.
	deadline := time.Now().Add(20 * time.Second)
	for {
		m, err := b.Renew(t.Context())
		noError(t, err)
		if len(m.Coordinators) == 2 && m.Coordinators[0] == "two.example:7745" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("coordinators %v", m.Coordinators)
		}
	}

	// A one-shot key, used through both at once.
	join := one.invite(t, nil)
	var wg sync.WaitGroup
	errs := make([]error, 40)
	for i := range errs {
		at := one
		if i%2 == 1 {
			at = two
		}
		x := at.newAgent(t)
		wg.Go(func() { _, errs[i] = x.Join(t.Context(), x.request("worker", join)) })
	}
	wg.Wait()
	in := 0
	for _, err := range errs {
		if err == nil {
			in++
		}
	}
	if in != 1 {
		t.Errorf("%d are in", in)
	}

	// A revocation there closes the stream here, and the agent's calls fail at both.
	admin := two.enter(t, "admin", api.TagAdmin)
	noError(t, admin.Revoke(t.Context(), api.RevokeRequest{Name: "a1"}))
	_, err := la.ends()
	wantCode(t, err, api.CodeRevoked)
	_, err = a.Renew(t.Context())
	wantCode(t, err, api.CodeRevoked)
}

func TestFailover(t *testing.T) {
	nats := natsServer(t, t.TempDir(), -1, true)
	key := must(identity.NewAuthorityKey(rand.Reader))
	one := start(t, Options{NATS: nats.ClientURL(), Authority: &key})
	two := start(t, Options{NATS: nats.ClientURL(), Authority: &key})
	a := one.enter(t, "a1")
	c, err := api.NewClient(api.ClientOptions{Addresses: []string{one.Addr().String(), two.Addr().String()}, Authority: one.Authority(), Key: a.key})
	noError(t, err)
	t.Cleanup(c.CloseIdleConnections)
	_, err = c.Renew(t.Context())
	noError(t, err)
	one.stop()
	_, err = c.Renew(t.Context())
	noError(t, err)
	two.stop()
	_, err = c.Renew(t.Context())
	wantCode(t, err, api.CodeUnavailable)
}

func TestNATSGoesAndComesBack(t *testing.T) {
	dir := t.TempDir()
	nats := natsServer(t, dir, -1, true)
	port := nats.Addr().(*net.TCPAddr).Port
	p := start(t, Options{NATS: nats.ClientURL()})
	a, b := p.enter(t, "a1"), p.enter(t, "b1")
	la := a.listen(t)
	la.synced()
	nats.Shutdown()
	nats.WaitForShutdown()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := b.PutConsent(ctx, b.consentTo(a.public(), 1, nil)); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("%v", err)
	}
	natsServer(t, dir, port, true)
	for b.PutConsent(t.Context(), b.consentTo(a.public(), 2, nil)) != nil {
		if t.Context().Err() != nil {
			t.Fatal("the registry didn't come back")
		}
		<-time.After(20 * time.Millisecond) // the requests of one address are counted
	}
	// A stream that met the gap may have ended: its agent opens another one, which begins with everything.
	a.listen(t).until("b", isPeer(b.public(), p.Authority(), reachable))
}

func TestNATSWithoutJetStream(t *testing.T) {
	nats := natsServer(t, "", -1, false)
	c, err := New(Options{Listen: "127.0.0.1:0", StateDir: t.TempDir(), NATS: nats.ClientURL()})
	noError(t, err)
	if err := c.Run(t.Context()); !errors.Is(err, store.ErrJetStream) {
		t.Errorf("%v", err)
	}
	if err := c.CreateInvite(t.Context(), api.InviteRequest{}); !errors.Is(err, ErrStopped) {
		t.Errorf("%v", err)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	p := start(t, Options{StateDir: dir, Network: "acme"})
	authority := p.Authority()
	a, b := p.enter(t, "a1", api.TagAdmin), p.enter(t, "b1")
	noError(t, b.PutConsent(t.Context(), b.consentTo(a.public(), 1, nil)))
	join := p.invite(t, nil)
	gone := p.enter(t, "gone")
	noError(t, a.Revoke(t.Context(), api.RevokeRequest{Name: "gone"}))
	p.stop()

	p = start(t, Options{StateDir: dir, Network: "other"})
	if p.Authority() != authority || p.registry.network.Name != "acme" {
		t.Fatal("another network")
	}
	a, b, gone = p.agentWith(t, a.key), p.agentWith(t, b.key), p.agentWith(t, gone.key)
	events := a.listen(t).synced()
	if len(events) != 4 || !isPeer(b.public(), authority, reachable)(events[0]) {
		t.Errorf("%+v", events)
	}
	_, err := a.Invites(t.Context())
	noError(t, err)
	c := p.newAgent(t)
	_, err = c.Join(t.Context(), c.request("a1", join))
	wantCode(t, err, api.CodeNameTaken)
	_, err = c.Join(t.Context(), c.request("c1", join))
	noError(t, err)
	_, err = gone.Renew(t.Context())
	wantCode(t, err, api.CodeRevoked)
}

func TestStateIsNeverReset(t *testing.T) {
	dir := t.TempDir()
	start(t, Options{StateDir: dir}).stop()
	open := func() error {
		c, err := New(Options{Listen: "127.0.0.1:0", StateDir: dir})
		if err == nil {
			c.Close()
		}
		return err
	}
	noError(t, open())
	swap := func(name string, content []byte) (restore func()) {
		path := filepath.Join(dir, name)
		before := must(os.ReadFile(path))
		if content == nil {
			noError(t, os.Remove(path))
		} else {
			noError(t, os.WriteFile(path, content, 0o600))
		}
		return func() { noError(t, os.WriteFile(path, before, 0o600)) }
	}
	for _, c := range []struct {
		file    string
		content []byte
		want    error
	}{
		{KeyFile, nil, ca.ErrMissing},
		{KeyFile, []byte("{}"), ca.ErrDamaged},
		{KeyFile, []byte{}, ca.ErrDamaged},
		{networkFile, []byte("{"), ErrStateDamaged},
		{networkFile, []byte(`{"version":9,"name":"x","authority":"` + identity.AuthorityPublic{1}.String() + `"}`), ErrStateDamaged},
		{networkFile, []byte(`{"version":1,"name":"x","authority":"` + identity.AuthorityPublic{1}.String() + `"}`), ErrStateDamaged},
	} {
		restore := swap(c.file, c.content)
		before, _ := os.ReadFile(filepath.Join(dir, c.file))
		if err := open(); !errors.Is(err, c.want) {
			t.Errorf("%s with %q: %v, want %v", c.file, c.content, err, c.want)
		}
		if after, _ := os.ReadFile(filepath.Join(dir, c.file)); !bytes.Equal(before, after) {
			t.Errorf("%s was written", c.file)
		}
		restore()
	}
	noError(t, open())

	// A registry that has forgotten the network isn't filled anew.
	noError(t, os.RemoveAll(filepath.Join(dir, natsFolder)))
	c, err := New(Options{Listen: "127.0.0.1:0", StateDir: dir})
	noError(t, err)
	if err := c.Run(context.Background()); !errors.Is(err, ErrRegistryLost) {
		t.Errorf("%v", err)
	}
}
