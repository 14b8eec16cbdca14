// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

var (
	epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	addrA = netip.MustParseAddrPort("192.0.2.1:7745")
	addrB = netip.MustParseAddrPort("[2001:db8::2]:7745")
)

const bothSuites = identity.SuiteChaCha | identity.SuiteAES

// world is a network of a test: its authority, and agents made on demand.
type world struct {
	tb        testing.TB
	authority identity.AuthorityKey
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	authority, err := identity.NewAuthorityKey(rand.Reader)
	check(tb, err)
	return &world{tb, authority}
}

// agent is a member with one tunnel key.
type agent struct {
	w      *world
	key    identity.AgentKey
	tunnel identity.TunnelKey
	suites identity.Suites
	Local
}

func (w *world) agent(name string, suites identity.Suites) *agent {
	w.tb.Helper()
	key, err := identity.NewAgentKey(rand.Reader)
	check(w.tb, err)
	a := &agent{w: w, key: key, suites: suites}
	a.Agent = key.Public()
	a.Certificate = w.certify(a.Agent, name, nil)
	a.rotate()
	return a
}

func (w *world) certify(agent identity.AgentPublic, name string, tags []string) []byte {
	w.tb.Helper()
	c, err := identity.Certificate{
		Network: w.authority.Public(), Agent: agent, Name: name, Tags: tags,
		NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(23 * time.Hour), Serial: 1,
	}.Sign(w.authority)
	check(w.tb, err)
	return c.Raw()
}

// rotate makes a new tunnel key; the older ones still answer.
func (a *agent) rotate() {
	a.w.tb.Helper()
	var err error
	a.tunnel, err = identity.NewTunnelKey(rand.Reader)
	check(a.w.tb, err)
	a.Keys = slices.Insert(slices.Clone(a.Keys), 0, TunnelIdentity{a.tunnel, a.state(a.tunnel.Public())})
}

// state signs a tunnel key.
func (a *agent) state(tunnel identity.TunnelPublic) []byte {
	a.w.tb.Helper()
	s, err := identity.TunnelStatement{
		Network: a.w.authority.Public(), Tunnel: tunnel, Suites: a.suites,
		NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(23 * time.Hour),
	}.Sign(a.key)
	check(a.w.tb, err)
	return s.Raw()
}

func (a *agent) target() Target {
	return Target{Agent: a.Agent, Tunnel: a.tunnel.Public(), Suites: a.suites}
}

// machine makes a machine with AES for the agents.
func (w *world) machine(agents ...*agent) *Machine {
	w.tb.Helper()
	return w.machineWith(Options{AES: true}, agents...)
}

func (w *world) machineWith(o Options, agents ...*agent) *Machine {
	w.tb.Helper()
	o.Network = w.authority.Public()
	m, err := NewMachine(o)
	check(w.tb, err)
	var locals []Local
	for _, a := range agents {
		locals = append(locals, a.Local)
	}
	check(w.tb, m.SetLocals(locals))
	return m
}

// duo is two agents on two machines.
type duo struct {
	*world
	a, b   *agent
	ma, mb *Machine
}

func newDuo(tb testing.TB, suites identity.Suites) *duo {
	tb.Helper()
	w := newWorld(tb)
	d := &duo{world: w, a: w.agent("alpha", suites), b: w.agent("beta", suites)}
	d.ma, d.mb = w.machine(d.a), w.machine(d.b)
	return d
}

func (d *duo) initiate(now time.Time) Initiation {
	d.tb.Helper()
	in, err := d.ma.Initiate(now, d.a.Agent, d.b.target())
	check(d.tb, err)
	return in
}

// deliver hands datagrams to a machine in order and returns the last result; all but the last must be incomplete.
func deliver(m *Machine, now time.Time, from netip.AddrPort, datagrams [][]byte) (r Result, err error) {
	for _, d := range datagrams {
		if r, err = m.Handle(now, d, from); err != nil && !errors.Is(err, ErrIncomplete) {
			return r, err
		}
	}
	return r, err
}

// connect makes a session; the responder's end is not confirmed yet.
func (d *duo) connect(now time.Time) (initiator, responder *Session) {
	d.tb.Helper()
	in := d.initiate(now)
	r, err := deliver(d.mb, now, addrA, in.Datagrams)
	check(d.tb, err)
	if r.Session == nil || len(r.Reply) == 0 || r.Initiator || r.ID != 0 {
		d.tb.Fatalf("the responder's result: %+v", r)
	}
	responder = r.Session
	r, err = deliver(d.ma, now, addrB, r.Reply)
	check(d.tb, err)
	if r.Session == nil || len(r.Reply) != 0 || !r.Initiator || r.ID != in.ID || r.Session.LocalIndex() != in.ID {
		d.tb.Fatalf("the initiator's result: %+v", r)
	}
	return r.Session, responder
}

// confirmed is connect with the first record delivered.
func (d *duo) confirmed(now time.Time) (initiator, responder *Session) {
	d.tb.Helper()
	initiator, responder = d.connect(now)
	send(d.tb, initiator, responder, nil)
	return initiator, responder
}

func send(tb testing.TB, from, to *Session, plaintext []byte) {
	tb.Helper()
	record, err := from.Seal(nil, 0, plaintext)
	check(tb, err)
	got, _, err := to.Open(nil, record)
	check(tb, err)
	if !bytes.Equal(got, plaintext) {
		tb.Fatalf("opened %x, sealed %x", got, plaintext)
	}
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func wantError(tb testing.TB, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Fatalf("error %v, want %v", err, want)
	}
}

func bothSuiteTests(t *testing.T, f func(t *testing.T, d *duo)) {
	t.Run("AESGCM", func(t *testing.T) { f(t, newDuo(t, bothSuites)) })
	t.Run("ChaChaPoly", func(t *testing.T) { f(t, newDuo(t, identity.SuiteChaCha)) })
}
