// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"crypto/rand"
	"io"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is the real time with an offset that tests change.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// place is a running coordinator.
type place struct {
	*Coordinator
	t     testing.TB
	clock *clock
	stop  func()
	// looker is a member for looking up, made when first needed.
	looker *agent
}

func testLog() *slog.Logger {
	if os.Getenv("PILOT_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

func start(t testing.TB, o Options) *place {
	t.Helper()
	p := &place{t: t, clock: &clock{}}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.StateDir == "" {
		o.StateDir = t.TempDir()
	}
	if o.Now == nil {
		o.Now = p.clock.now
	}
	if o.Relay == (RelayOptions{}) {
		o.Relay.Off = true // tests of relays name them
	}
	o.Log = testLog()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	p.Coordinator = c
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	var once atomic.Bool
	p.stop = func() {
		if once.Swap(true) {
			return
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(p.stop)
	if err := c.Ready(ctx); err != nil {
		t.Fatalf("Ready: %v; Run: %v", err, <-ended)
	}
	return p
}

// agent is a member, or somebody who wants to be one.
type agent struct {
	*api.Client
	key  identity.AgentKey
	at   *place
	cert identity.Certificate
	pass []byte
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (p *place) newAgent(t testing.TB) *agent {
	t.Helper()
	return p.agentWith(t, must(identity.NewAgentKey(rand.Reader)))
}

func (p *place) agentWith(t testing.TB, key identity.AgentKey) *agent {
	t.Helper()
	c, err := api.NewClient(api.ClientOptions{
		Addresses: []string{p.Addr().String()}, Authority: p.Authority(), Key: key, Now: p.clock.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return &agent{Client: c, key: key, at: p}
}

func (a *agent) public() identity.AgentPublic { return a.key.Public() }

func (p *place) invite(t testing.TB, change func(*api.InviteRequest)) identity.JoinKey {
	t.Helper()
	key := must(identity.NewJoinKey(rand.Reader))
	req := api.InviteRequest{Join: key.Public(), Uses: 1, Expires: p.clock.now().Add(time.Hour)}
	if change != nil {
		change(&req)
	}
	if err := p.CreateInvite(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *agent) request(name string, join identity.JoinKey) api.JoinRequest {
	acceptance := must(identity.Acceptance{Network: a.at.Authority(), Agent: a.public()}.Sign(join))
	return api.JoinRequest{Acceptance: acceptance.Raw(), Name: name, Tunnel: a.tunnel(0), Record: a.record(1)}
}

func (a *agent) tunnel(later time.Duration) []byte {
	now := a.at.clock.now().Add(later)
	t := identity.TunnelStatement{
		Network: a.at.Authority(), Tunnel: must(identity.NewTunnelKey(rand.Reader)).Public(), Suites: identity.SuiteChaCha,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
	return must(t.Sign(a.key)).Raw()
}

func (a *agent) record(serial uint64) []byte {
	r := identity.Record{
		Network: a.at.Authority(), Serial: serial, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:7745")},
	}
	return must(r.Sign(a.key)).Raw()
}

// enter joins with a fresh invite of the operator's.
func (p *place) enter(t testing.TB, name string, tags ...string) *agent {
	t.Helper()
	a := p.newAgent(t)
	join := p.invite(t, func(r *api.InviteRequest) { r.Tags = tags })
	m, err := a.Join(t.Context(), a.request(name, join))
	if err != nil {
		t.Fatalf("%s joins: %v", name, err)
	}
	a.cert, a.pass = a.opened(t, m.Certificate), m.RelayPass
	return a
}

func (a *agent) opened(t testing.TB, raw []byte) identity.Certificate {
	t.Helper()
	cert, err := identity.OpenCertificate(raw, a.at.Authority())
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *agent) consentTo(to identity.AgentPublic, serial uint64, change func(*identity.Consent)) []byte {
	c := identity.Consent{Network: a.at.Authority(), To: to, Serial: serial, Reason: "test"}
	if change != nil {
		change(&c)
	}
	return must(c.Sign(a.key)).Raw()
}

func (a *agent) consentToJoin(join identity.JoinPublic, serial uint64) []byte {
	c := identity.Consent{Network: a.at.Authority(), To: join, ToJoin: true, Serial: serial, Reason: "invite"}
	return must(c.Sign(a.key)).Raw()
}

func wantCode(t testing.TB, err error, code string) *api.Error {
	t.Helper()
	if !api.HasCode(err, code) {
		t.Fatalf("got %v, want the code %s", err, code)
	}
	return err.(*api.Error)
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listener reads a stream of events.
type listener struct {
	t    testing.TB
	next func() (api.Event, error, bool)
	stop func()
}

func (a *agent) listen(t testing.TB) *listener {
	t.Helper()
	return a.hears(t, a.Watch)
}

func (a *agent) hears(t testing.TB, watch func(context.Context) iter.Seq2[api.Event, error]) *listener {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	next, stop := iter.Pull2(watch(ctx))
	l := &listener{t: t, next: next, stop: func() { cancel(); stop() }}
	t.Cleanup(l.stop)
	return l
}

// until returns the events up to the first that fits, with it as the last.
func (l *listener) until(what string, fits func(api.Event) bool) []api.Event {
	l.t.Helper()
	var seen []api.Event
	for {
		e, err, ok := l.next()
		if err != nil || !ok {
			l.t.Fatalf("waiting for %s: %v", what, err)
		}
		if seen = append(seen, e); fits(e) {
			return seen
		}
	}
}

func (l *listener) synced() []api.Event {
	l.t.Helper()
	return l.until("synced", func(e api.Event) bool { return e.Type == api.EventSynced })
}

func (l *listener) untilType(kind string) api.Event {
	l.t.Helper()
	all := l.until(kind, func(e api.Event) bool { return e.Type == kind })
	return all[len(all)-1]
}

// ends reads on to the error that ends the stream.
func (l *listener) ends() (seen []api.Event, err error) {
	l.t.Helper()
	for {
		e, err, ok := l.next()
		if err != nil || !ok {
			return seen, err
		}
		seen = append(seen, e)
	}
}

func isPeer(agent identity.AgentPublic, network identity.AuthorityPublic, extra func(api.Peer) bool) func(api.Event) bool {
	return func(e api.Event) bool {
		if e.Type != api.EventPeer {
			return false
		}
		cert, err := identity.OpenCertificate(e.Peer.Certificate, network)
		return err == nil && cert.Agent == agent && extra(*e.Peer)
	}
}
