// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// forge makes a machine for an agent whose credentials are not what SetLocals would take.
func (d *duo) forge(a *agent, c credentials) *Machine {
	d.tb.Helper()
	m := d.machine(a)
	key := *m.locals.Load().newest[a.Agent]
	key.credentials = c
	m.locals.Store(&localSet{keys: []*localKey{&key}, newest: map[identity.AgentPublic]*localKey{a.Agent: &key}})
	return m
}

// TestCredentials lets either side show what it may not: the other side refuses it, and a responder says nothing.
func TestCredentials(t *testing.T) {
	d := newDuo(t, bothSuites)
	other, mallory := newWorld(t), d.agent("mallory", bothSuites)
	spoiled := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		return b
	}
	for _, a := range []*agent{d.a, d.b} {
		good := credentials{a.Keys[0].Statement, a.Certificate}
		foreign := &agent{w: other, key: a.key, suites: bothSuites}
		narrow := &agent{w: d.world, key: a.key, suites: identity.SuiteChaCha}
		for name, c := range map[string]struct {
			credentials
			now  time.Time
			want error
		}{
			"good":                     {good, epoch, nil},
			"clock behind":             {good, epoch.Add(-time.Hour - ClockSkew + time.Second), nil},
			"clock ahead":              {good, epoch.Add(23*time.Hour + ClockSkew - time.Second), nil},
			"not yet valid":            {good, epoch.Add(-time.Hour - ClockSkew - time.Second), ErrStatement},
			"expired":                  {good, epoch.Add(23*time.Hour + ClockSkew + time.Second), ErrStatement},
			"statement on another key": {credentials{a.state(mallory.tunnel.Public()), a.Certificate}, epoch, ErrKeyMismatch},
			"statement of another":     {credentials{mallory.Keys[0].Statement, a.Certificate}, epoch, ErrKeyMismatch},
			"another signs this key":   {credentials{mallory.state(a.tunnel.Public()), a.Certificate}, epoch, ErrKeyMismatch},
			"another's certificate":    {credentials{good.statement, mallory.Certificate}, epoch, ErrKeyMismatch},
			"other network":            {credentials{good.statement, other.certify(a.Agent, "alpha", nil)}, epoch, ErrCertificate},
			"statement, other network": {credentials{foreign.state(a.tunnel.Public()), a.Certificate}, epoch, ErrStatement},
			"spoiled certificate":      {credentials{good.statement, spoiled(a.Certificate)}, epoch, ErrCertificate},
			"spoiled statement":        {credentials{spoiled(good.statement), a.Certificate}, epoch, ErrStatement},
			"none":                     {credentials{}, epoch, ErrStatement},
			"without AES":              {credentials{narrow.state(a.tunnel.Public()), a.Certificate}, epoch, ErrSuite},
		} {
			t.Run(name, func(t *testing.T) {
				ma, mb := d.machine(d.a), d.machine(d.b)
				if a == d.a {
					ma = d.forge(a, c.credentials)
				} else {
					mb = d.forge(a, c.credentials)
				}
				// The forger's own clock and checks don't matter: it is the other side that must refuse.
				in, err := ma.Initiate(c.now, d.a.Agent, d.b.target())
				check(t, err)
				r, err := deliver(mb, c.now, addrA, in.Datagrams)
				if a == d.b && name != "not yet valid" && name != "expired" {
					check(t, err)
					r, err = deliver(ma, c.now, addrB, r.Reply)
				}
				if !errors.Is(err, c.want) || (err == nil) != (r.Session != nil) || err != nil && r.Reply != nil {
					t.Fatalf("%+v, %v", r, err)
				}
			})
		}
	}
}

func TestCertificateExpiresBeforeStatement(t *testing.T) {
	d := newDuo(t, bothSuites)
	c, err := identity.Certificate{
		Network: d.authority.Public(), Agent: d.a.Agent, Name: "alpha", NotBefore: epoch, NotAfter: epoch.Add(time.Hour), Serial: 2,
	}.Sign(d.authority)
	check(t, err)
	d.a.Certificate = c.Raw()
	check(t, d.ma.SetLocals([]Local{d.a.Local}))
	now := epoch.Add(time.Hour + ClockSkew + time.Second)
	_, err = deliver(d.mb, now, addrA, d.initiate(now).Datagrams)
	wantError(t, err, ErrCertificate)
	wantError(t, err, identity.ErrExpired)
}

func TestAdmit(t *testing.T) {
	d := newDuo(t, bothSuites)
	reason := errors.New("no consent")
	var refuse bool
	var asked []identity.AgentPublic
	admit := func(local identity.AgentPublic, remote identity.Certificate, tunnel identity.TunnelStatement) error {
		asked = append(asked, local, remote.Agent, tunnel.Agent)
		if refuse {
			return reason
		}
		return nil
	}
	d.mb = d.machineWith(Options{Admit: admit}, d.b)
	d.connect(epoch)
	if !slices.Equal(asked, []identity.AgentPublic{d.b.Agent, d.a.Agent, d.a.Agent}) {
		t.Fatalf("asked about %v", asked)
	}
	refuse = true
	in := d.initiate(epoch)
	r, err := deliver(d.mb, epoch, addrA, in.Datagrams)
	wantError(t, err, ErrRefused)
	wantError(t, err, reason)
	if r.Session != nil || r.Reply != nil {
		t.Fatalf("%+v", r)
	}
	// A refusal is not remembered as a message: what was refused may be tried again.
	refuse = false
	_, err = deliver(d.mb, epoch, addrA, in.Datagrams)
	check(t, err)

	d.ma = d.machineWith(Options{Admit: func(identity.AgentPublic, identity.Certificate, identity.TunnelStatement) error { return reason }}, d.a)
	in = d.initiate(epoch.Add(time.Second))
	r, err = deliver(d.mb, epoch, addrA, in.Datagrams)
	check(t, err)
	r, err = deliver(d.ma, epoch, addrB, r.Reply)
	wantError(t, err, ErrRefused)
	if r.Session != nil || r.ID != in.ID || len(d.ma.indexes) != 0 {
		t.Fatalf("%+v", r)
	}
}
