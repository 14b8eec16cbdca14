// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

// TestForward sends both ways between members with each transport, and back.
func TestForward(t *testing.T) {
	for _, aUDP := range []bool{true, false} {
		for _, bUDP := range []bool{true, false} {
			t.Run(fmt.Sprintf("udp=%v,%v", aUDP, bUDP), func(t *testing.T) {
				p := newPlace(t, nil)
				a, b := p.join(t, aUDP), p.join(t, bUDP)
				for i, size := range []int{1, 100, 1452, relay.MaxDatagram} {
					want := filled(size, byte(i))
					a.send(t, b.addr, want)
					if got := b.next(t); got != (packet{a.addr, want, bUDP}) {
						t.Errorf("%d bytes came from %v, over UDP: %v", len(got.data), got.from, got.udp)
					}
					b.send(t, a.addr, want)
					if got := a.next(t); got != (packet{b.addr, want, aUDP}) {
						t.Errorf("%d bytes came back from %v, over UDP: %v", len(got.data), got.from, got.udp)
					}
				}
				if s := p.Stats(); s.Clients != 2 || s.Connections != 2 || s.Datagrams != 8 {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// TestStatus: a member over UDP knows where the relay sees it, and how long the way is.
func TestStatus(t *testing.T) {
	p := newPlace(t, nil)
	a := p.join(t, true)
	s := a.Status()
	if s.State != relay.StateConnected || s.RTT <= 0 || s.Err != nil || s.Observed.String() != a.conn.LocalAddr().String() {
		t.Errorf("%+v", s)
	}
	if way, ok := a.UDP(); !ok || way.Port() != p.UDPPort() {
		t.Errorf("way %v", way)
	}
}

func TestGone(t *testing.T) {
	p := newPlace(t, nil)
	for _, udp := range []bool{true, false} {
		a, b := p.join(t, udp), p.join(t, udp)
		b.end()
		for p.table.find(b.addr) != nil {
			time.Sleep(time.Millisecond)
		}
		a.send(t, b.addr, "hello")
		select {
		case who := <-a.gone:
			if who != b.addr {
				t.Errorf("%v is gone", who)
			}
		case <-time.After(5 * time.Second):
			t.Error("nobody said so")
		}
	}
}

// TestUDPDies: when UDP is lost, datagrams go over TLS, and come over it; when it comes back, they do over UDP again.
func TestUDPDies(t *testing.T) {
	p := newPlace(t, nil)
	a, b := p.join(t, true), p.join(t, true)
	a.mute.Store(true)
	began := time.Now()
	for _, ok := a.UDP(); ok; _, ok = a.UDP() {
		_ = a.AppendHeader(nil, b.addr) // it tries to send
		time.Sleep(10 * time.Millisecond)
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("it took %v to notice", d)
	}
	a.send(t, b.addr, "over TLS")
	if got := b.next(t); got.data != "over TLS" || got.from != a.addr {
		t.Errorf("%+v", got)
	}
	a.mute.Store(false)
	a.Refresh()
	a.until(t, "UDP", func(s relay.Status) bool { return s.Transport == relay.TransportUDP })
}

// TestNATForgets: a client whose address changed is bound again as soon as it sends.
func TestNATForgets(t *testing.T) {
	p := newPlace(t, nil)
	a, b := p.join(t, true), p.join(t, true)
	c := p.table.find(a.addr)
	c.udp.Store(&endpoint{remote: b.conn.LocalAddr().(*net.UDPAddr).AddrPort()})
	want := filled(200, 'x')
	for end := time.Now().Add(5 * time.Second); ; {
		a.send(t, b.addr, want)
		select {
		case got := <-b.got:
			if got.data != want {
				t.Errorf("%q", got.data)
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatal("it was never bound again")
		}
	}
}

// TestMembersOnly: who has no valid pass of its own gets no slot, and is told why.
func TestMembersOnly(t *testing.T) {
	p := newPlace(t, func(o *Options) {
		o.Check = func(_ context.Context, pass identity.RelayPass) error {
			if pass.Serial == 13 {
				return errors.New("no")
			}
			return nil
		}
	})
	key, other := must(identity.NewAgentKey(rand.Reader)), must(identity.NewAgentKey(rand.Reader))
	foreign := &place{authority: must(identity.NewAuthorityKey(rand.Reader))}
	certificate := must(identity.Certificate{
		Agent: key.Public(), Name: "someone", NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), Serial: 9,
	}.Sign(p.authority)).Raw()
	p.Revoke(key.Public(), 7)
	for name, tt := range map[string]struct {
		pass []byte
		want relay.Reason
	}{
		"another network's": {foreign.pass(key, 9, time.Hour), relay.ReasonMember},
		"another agent's":   {p.pass(other, 9, time.Hour), relay.ReasonMember},
		"none":              {[]byte("x"), relay.ReasonMember},
		"a certificate":     {certificate, relay.ReasonMember},
		"expired":           {p.pass(key, 9, -time.Hour), relay.ReasonExpired},
		"revoked":           {p.pass(key, 7, time.Hour), relay.ReasonRevoked},
		"refused":           {p.pass(key, 13, time.Hour), relay.ReasonRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			m := p.start(t, key, tt.pass, true)
			m.until(t, "the refusal", func(s relay.Status) bool { return s.State == relay.StateFailed })
			var bye *relay.ByeError
			if err := m.Status().Err; !errors.As(err, &bye) || bye.Reason != tt.want {
				t.Errorf("got %v", err)
			}
		})
	}
	if s := p.Stats(); s.Clients != 0 || s.Refused < 7 {
		t.Errorf("%+v", s)
	}
}

// TestRevoke: a revoked member's connection ends at once, and its datagrams with it; a later pass is welcome.
func TestRevoke(t *testing.T) {
	p := newPlace(t, nil)
	a, b := p.join(t, true), p.join(t, true)
	way, _ := a.UDP()
	late := append(a.AppendHeader(nil, b.addr), "late"...)
	p.Revoke(a.key.Public(), 1)
	a.until(t, "the end", func(s relay.Status) bool {
		var bye *relay.ByeError
		return errors.As(s.Err, &bye) && bye.Reason == relay.ReasonRevoked
	})
	if _, err := a.conn.WriteToUDPAddrPort(late, way); err != nil {
		t.Fatal(err)
	}
	b.nothing(t, p.join(t, true))
	a.end()
	m := p.start(t, a.key, p.pass(a.key, 2, time.Hour), true)
	m.until(t, "the new one", func(s relay.Status) bool { return s.State == relay.StateConnected })
}

// TestReplaced: the same agent from elsewhere takes the place of the first.
func TestReplaced(t *testing.T) {
	p := newPlace(t, nil)
	a, b := p.join(t, true), p.join(t, true)
	again := p.joinAs(t, a.key, true)
	a.until(t, "the end", func(s relay.Status) bool {
		var bye *relay.ByeError
		return errors.As(s.Err, &bye) && bye.Reason == relay.ReasonReplaced
	})
	b.send(t, a.addr, "for the second")
	if got := again.next(t); got.data != "for the second" {
		t.Errorf("%+v", got)
	}
}

// TestExpiry: a pass that ends takes the connection with it.
func TestExpiry(t *testing.T) {
	p := newPlace(t, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(clockSkew) } })
	key := must(identity.NewAgentKey(rand.Reader))
	m := p.start(t, key, p.pass(key, 1, 2*time.Second), false)
	m.until(t, "the welcome", func(s relay.Status) bool { return s.State == relay.StateConnected })
	m.until(t, "the end", func(s relay.Status) bool {
		var bye *relay.ByeError
		return errors.As(s.Err, &bye) && bye.Reason == relay.ReasonExpired
	})
}

// TestFull: a relay takes no more clients than it may, and those that it has stay.
func TestFull(t *testing.T) {
	p := newPlace(t, func(o *Options) { o.Clients = 2 })
	a, b := p.join(t, true), p.join(t, false)
	key := must(identity.NewAgentKey(rand.Reader))
	m := p.start(t, key, p.pass(key, 1, time.Hour), true)
	m.until(t, "the refusal", func(s relay.Status) bool {
		var bye *relay.ByeError
		return errors.As(s.Err, &bye) && bye.Reason == relay.ReasonBusy
	})
	a.send(t, b.addr, "still here")
	if got := b.next(t); got.data != "still here" {
		t.Errorf("%+v", got)
	}
}
