// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

func TestHandshake(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		a, b := d.confirmed(epoch)
		if a.Local() != d.a.Agent || b.Local() != d.b.Agent || a.Remote().Agent != d.b.Agent || b.Remote().Agent != d.a.Agent ||
			a.Remote().Name != "beta" || b.Remote().Name != "alpha" ||
			a.RemoteTunnel().Tunnel != d.b.tunnel.Public() || b.RemoteTunnel().Tunnel != d.a.tunnel.Public() ||
			!a.Initiator() || b.Initiator() || !a.Created().Equal(epoch) || !b.Created().Equal(epoch) {
			t.Fatal("the sessions do not know their ends")
		}
		send(t, a, b, []byte("there"))
		send(t, b, a, []byte("and back"))
	})
}

func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{nil}
	}
	var out [][]int
	for _, p := range permutations(n - 1) {
		for i := range n {
			out = append(out, slices.Insert(slices.Clone(p), i, n-1))
		}
	}
	return out
}

// TestFragments delivers the parts of both messages in each order, each twice, and needs every one of them.
func TestFragments(t *testing.T) {
	d := newDuo(t, bothSuites)
	now := epoch
	for name, certificate := range map[string][]byte{"small": d.a.Certificate, "large": d.largeCertificate(d.a.Agent)} {
		d.a.Certificate = certificate
		check(t, d.ma.SetLocals([]Local{d.a.Local}))
		for _, order := range permutations(len(d.initiate(now).Datagrams)) {
			now = now.Add(time.Minute)
			in := d.initiate(now)
			result := deliverInOrder(t, d.mb, now, addrA, in.Datagrams, order)
			for i, again := range result.Reply { // the answer backwards
				r, err := d.ma.Handle(now, result.Reply[len(result.Reply)-1-i], addrB)
				if last := i == len(result.Reply)-1; last != (r.Session != nil) || r.ID != in.ID {
					t.Fatalf("%s: answer part %d of %d bytes: %+v, %v", name, i, len(again), r, err)
				}
			}
		}
	}
}

// deliverInOrder delivers each datagram twice and returns the result of the one that made the session.
func deliverInOrder(t *testing.T, m *Machine, now time.Time, from netip.AddrPort, datagrams [][]byte, order []int) (result Result) {
	t.Helper()
	for i, part := range order {
		for range 2 {
			r, err := m.Handle(now, datagrams[part], from)
			if r.Session != nil {
				if i != len(order)-1 || result.Session != nil {
					t.Fatalf("order %v: session after part %d", order, i)
				}
				result = r
			} else {
				wantError(t, err, ErrIncomplete)
			}
		}
	}
	if result.Session == nil {
		t.Fatalf("order %v: no session", order)
	}
	return result
}

func (w *world) largeCertificate(agent identity.AgentPublic) []byte {
	w.tb.Helper()
	var tags []string
	for i := range 12 {
		tags = append(tags, string(rune('a'+i))+string(bytes.Repeat([]byte("x"), 31)))
	}
	raw := w.certify(agent, string(bytes.Repeat([]byte("n"), 63)), tags)
	if len(raw) < 600 {
		w.tb.Fatalf("%d bytes are not large", len(raw))
	}
	return raw
}

// TestThreeFragments has credentials of the largest length: only when all three parts are there are they looked at.
func TestThreeFragments(t *testing.T) {
	d := newDuo(t, bothSuites)
	d.ma = d.forge(d.a, credentials{make([]byte, identity.MaxTunnelStatement), make([]byte, identity.MaxCertificate)})
	for i, order := range permutations(maxFragments) {
		now := epoch.Add(time.Duration(i) * time.Minute)
		in := d.initiate(now)
		if len(in.Datagrams) != maxFragments || len(assemble(in.Datagrams)) != maxInitiation {
			t.Fatalf("%d datagrams", len(in.Datagrams))
		}
		for i, part := range order {
			r, err := d.mb.Handle(now, in.Datagrams[part], addrA)
			if want := []error{ErrIncomplete, ErrIncomplete, ErrStatement}[i]; !errors.Is(err, want) || r.Session != nil || r.Reply != nil {
				t.Fatalf("order %v, part %d: %+v, %v", order, i, r, err)
			}
		}
	}
}

// TestSmallFragments makes sessions over a path that lets nothing longer than MaxSmallDatagram pass, with the shortest
// credentials and with long ones.
func TestSmallFragments(t *testing.T) {
	for name, grow := range map[string]bool{"small": false, "large": true} {
		d := newDuo(t, bothSuites)
		if grow {
			d.a.Certificate, d.b.Certificate = d.largeCertificate(d.a.Agent), d.largeCertificate(d.b.Agent)
			check(t, d.ma.SetLocals([]Local{d.a.Local}))
			check(t, d.mb.SetLocals([]Local{d.b.Local}))
		}
		to := d.b.target()
		to.Small = true
		in, err := d.ma.Initiate(epoch, d.a.Agent, to)
		check(t, err)
		question, err := deliver(d.mb, epoch, addrA, in.Datagrams)
		check(t, err)
		answer, err := deliver(d.ma, epoch, addrB, question.Reply)
		check(t, err)
		sent, replied := 0, 0
		for i := range maxFragments {
			if len(in.Datagrams[i]) > MaxSmallDatagram || len(question.Reply[i]) > MaxSmallDatagram {
				t.Errorf("%s: part %d has %d and %d bytes", name, i, len(in.Datagrams[i]), len(question.Reply[i]))
			}
			sent, replied = sent+len(in.Datagrams[i]), replied+len(question.Reply[i])
		}
		if len(in.Datagrams) != maxFragments || len(question.Reply) != maxFragments || replied > sent {
			t.Errorf("%s: %d datagrams of %d bytes, %d of %d", name, len(in.Datagrams), sent, len(question.Reply), replied)
		}
		if a, b := answer.Session.Carried(), question.Session.Carried(); a != len(in.Datagrams[0]) || b != len(question.Reply[0]) {
			t.Errorf("%s: the sessions say that the path carried %d and %d bytes", name, a, b)
		}
		send(t, answer.Session, question.Session, []byte("first"))
	}
	d := newDuo(t, bothSuites)
	if a, b := d.connect(epoch); a.Carried() != MaxDatagram || b.Carried() < minAnswer/2+fragmentFrame || b.Carried() > MaxDatagram {
		t.Errorf("the sessions say that the path carried %d and %d bytes", a.Carried(), b.Carried())
	}
}

// TestFragmentsCutTwoWaysDoNotMix: the parts of one message, cut in two ways, are not one message.
func TestFragmentsCutTwoWaysDoNotMix(t *testing.T) {
	d := newDuo(t, bothSuites)
	in := d.initiate(epoch)
	message, key := assemble(in.Datagrams), labelKey(mac1Tag, d.b.tunnel.Public())
	part := func(i, count int) []byte {
		f := appendFragment(nil, typeInitiation, suiteAES, i, count, in.ID, 0, message)
		return appendMACs(f, 0, key[:], nil)
	}
	_, err := deliver(d.mb, epoch, addrA, [][]byte{part(0, 2), part(1, 3), part(2, 3)})
	wantError(t, err, ErrIncomplete)
	r, err := d.mb.Handle(epoch, part(0, 3), addrA)
	check(t, err)
	if r.Session == nil {
		t.Error("no session")
	}
}

func TestFragmentsOfTwoMessagesDoNotMix(t *testing.T) {
	d := newDuo(t, bothSuites)
	one, two := d.initiate(epoch), d.initiate(epoch)
	_, err := deliver(d.mb, epoch, addrA, [][]byte{one.Datagrams[0], two.Datagrams[1]})
	wantError(t, err, ErrIncomplete)
	// Nor do those of two sources, nor those that come too late.
	_, err = d.mb.Handle(epoch, one.Datagrams[1], addrB)
	wantError(t, err, ErrIncomplete)
	_, err = d.mb.Handle(epoch.Add(partialLifetime), two.Datagrams[0], addrA)
	wantError(t, err, ErrIncomplete)
	d.mb.Tick(epoch.Add(3 * partialLifetime))
	if n := len(d.mb.partials.list); n != 0 {
		t.Fatalf("%d partial messages left", n)
	}
}

// TestHandshakeDatagramsCorruptedAnywhere changes each byte of each datagram, and cuts it at each length, in both
// directions. mac2 is not looked at without load. None of it keeps the real ones from working.
func TestHandshakeDatagramsCorruptedAnywhere(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		in := d.initiate(epoch)
		spoil(t, d.mb, in.Datagrams, MaxDatagram-macSize)
		r, err := deliver(d.mb, epoch, addrA, in.Datagrams)
		check(t, err)
		spoil(t, d.ma, r.Reply, MaxDatagram)
		responder := r.Session
		r, err = deliver(d.ma, epoch, addrB, r.Reply)
		check(t, err)
		send(t, r.Session, responder, nil)
	})
}

func spoil(t *testing.T, m *Machine, datagrams [][]byte, upTo int) {
	t.Helper()
	try := func(bad []byte) {
		t.Helper()
		r, err := m.Handle(epoch, bad, addrA)
		if err == nil || errors.Is(err, ErrIncomplete) || r.Session != nil || r.Reply != nil {
			t.Fatalf("accepted: %+v, %v", r, err)
		}
	}
	for _, d := range datagrams {
		for i := range min(len(d), upTo) {
			bad := bytes.Clone(d)
			bad[i] ^= 1 << (i % 8)
			try(bad)
		}
		for n := range d {
			try(d[:n:n])
		}
		try(append(bytes.Clone(d), 0))
	}
}

// TestMessagesCorruptedAnywhere changes each byte of the messages inside, and makes the MACs right again, as somebody
// who knows the keys of the MACs could.
func TestMessagesCorruptedAnywhere(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		in := d.initiate(epoch)
		message := assemble(in.Datagrams)
		macKey := labelKey(mac1Tag, d.b.tunnel.Public())
		step := 1
		if suite(in.Datagrams[0][2]) == suiteChaCha {
			step = 13 // the suites differ in nothing that looks at single bytes; this test is long enough
		}
		for i := 0; i < len(message); i += step {
			bad := bytes.Clone(message)
			bad[i] ^= 1 << (i % 8)
			now := epoch.Add(time.Duration(i) * time.Second)
			r, err := deliver(d.mb, now, addrA, recut(typeInitiation, in.Datagrams[0], bad, macKey[:]))
			wantError(t, err, ErrAuth)
			if r.Session != nil || r.Reply != nil {
				t.Fatalf("byte %d: %+v", i, r)
			}
		}
		r, err := deliver(d.mb, epoch, addrA, in.Datagrams)
		check(t, err)
		message = assemble(r.Reply)
		for i := 0; i < len(message); i += step {
			now := epoch.Add(time.Duration(i) * time.Second)
			in := d.initiate(now)
			pending := d.ma.pending[in.ID]
			r, err := deliver(d.mb, now, addrA, in.Datagrams)
			check(t, err)
			bad := assemble(r.Reply)
			bad[i] ^= 1 << (i % 8)
			r, err = deliver(d.ma, now, addrB, recut(typeAnswer, r.Reply[0], bad, pending.answerKey[:]))
			wantError(t, err, ErrAuth)
			if r.Session != nil || r.ID != in.ID {
				t.Fatalf("byte %d: %+v", i, r)
			}
		}
	})
}

func assemble(datagrams [][]byte) (message []byte) {
	for _, d := range datagrams {
		message = append(message, d[fragmentHeader:len(d)-2*macSize]...)
	}
	return message
}

func recut(kind byte, model, message, key []byte) (out [][]byte) {
	f, err := parseFragment(model)
	if err != nil {
		panic(err)
	}
	for part := range fragments(len(message)) {
		d := appendFragment(nil, kind, f.suite, part, fragments(len(message)), f.sender, f.receiver, message)
		out = append(out, appendMACs(d, 0, key, nil))
	}
	return out
}

// TestManyAgentsBehindOnePort has each of many agents of one machine called, and calls between two of its own.
func TestManyAgentsBehindOnePort(t *testing.T) {
	w := newWorld(t)
	caller := w.agent("caller", bothSuites)
	var agents []*agent
	for i := range 20 {
		agents = append(agents, w.agent("agent"+string(rune('a'+i)), bothSuites))
	}
	ma, mb := w.machine(caller), w.machine(agents...)
	indexes := map[uint32]bool{}
	for i, a := range agents {
		in, err := ma.Initiate(epoch, caller.Agent, a.target())
		check(t, err)
		r, err := deliver(mb, epoch.Add(time.Duration(i)*time.Second), addrA, in.Datagrams)
		check(t, err)
		if r.Session.Local() != a.Agent {
			t.Fatalf("agent %d: answered by %v", i, r.Session.Local())
		}
		indexes[r.Session.LocalIndex()] = true
		r, err = deliver(ma, epoch, addrB, r.Reply)
		check(t, err)
		if r.Session.Remote().Agent != a.Agent {
			t.Fatalf("agent %d: reached %v", i, r.Session.Remote().Name)
		}
	}
	if len(indexes) != len(agents) || len(mb.indexes) != len(agents) {
		t.Fatalf("%d indexes", len(indexes))
	}
	in, err := mb.Initiate(epoch, agents[0].Agent, agents[1].target())
	check(t, err)
	r, err := deliver(mb, epoch, addrB, in.Datagrams)
	check(t, err)
	own := r.Session
	r, err = deliver(mb, epoch, addrB, r.Reply)
	check(t, err)
	send(t, r.Session, own, []byte("next door"))
}

func TestRotation(t *testing.T) {
	d := newDuo(t, bothSuites)
	a, b := d.confirmed(epoch)
	former := d.b.target()
	under := d.initiate(epoch)
	d.b.rotate()
	check(t, d.mb.SetLocals([]Local{d.b.Local}))
	send(t, a, b, []byte("still"))
	r, err := deliver(d.mb, epoch, addrA, under.Datagrams)
	check(t, err)
	r, err = deliver(d.ma, epoch, addrB, r.Reply)
	check(t, err)
	if r.Session.RemoteTunnel().Tunnel != former.Tunnel {
		t.Fatal("answered with another key")
	}
	d.connect(epoch.Add(time.Second)) // to the new key
	// When the old key is gone, it is gone.
	d.b.Keys = d.b.Keys[:1]
	check(t, d.mb.SetLocals([]Local{d.b.Local}))
	in, err := d.ma.Initiate(epoch.Add(time.Minute), d.a.Agent, former)
	check(t, err)
	_, err = deliver(d.mb, epoch, addrA, in.Datagrams)
	wantError(t, err, ErrMAC)
}

func TestInitiations(t *testing.T) {
	d := newDuo(t, bothSuites)
	_, err := d.ma.Initiate(epoch, d.b.Agent, d.b.target())
	wantError(t, err, ErrUnknownKey)
	_, err = d.ma.Initiate(epoch, d.a.Agent, d.a.target())
	wantError(t, err, ErrKeyMismatch)
	_, err = d.ma.Initiate(epoch, d.a.Agent, Target{Agent: d.b.Agent, Tunnel: d.b.tunnel.Public(), Suites: 0})
	wantError(t, err, ErrSuite)
	_, err = d.ma.Initiate(epoch, d.a.Agent, Target{Agent: d.b.Agent, Tunnel: identity.TunnelPublic{1}, Suites: bothSuites}) // a point of low order
	if err == nil || len(d.ma.indexes) != 0 {
		t.Fatalf("%v, %d indexes", err, len(d.ma.indexes))
	}

	// A newer one replaces the older.
	older, newer := d.initiate(epoch), d.initiate(epoch)
	if older.ID == newer.ID || len(d.ma.pending) != 1 || len(d.ma.indexes) != 1 {
		t.Fatalf("%d pending, %d indexes", len(d.ma.pending), len(d.ma.indexes))
	}
	r, err := deliver(d.mb, epoch, addrA, older.Datagrams)
	check(t, err)
	_, err = deliver(d.ma, epoch, addrB, r.Reply)
	wantError(t, err, ErrUnknownIndex)

	// It waits for its time and no longer, whether or not Tick was called.
	r, err = deliver(d.mb, epoch, addrA, newer.Datagrams)
	check(t, err)
	_, err = d.ma.Handle(epoch.Add(initiationLifetime), r.Reply[0], addrB)
	wantError(t, err, ErrUnknownIndex)
	if again := d.ma.Tick(epoch.Add(initiationLifetime - time.Second)); again != time.Second || len(d.ma.pending) == 0 {
		t.Fatalf("%d are pending, to be forgotten in %v", len(d.ma.pending), again)
	}
	if again := d.ma.Tick(epoch.Add(initiationLifetime)); again != 0 {
		t.Fatalf("nothing is left to forget in %v", again)
	}
	if len(d.ma.pending)+len(d.ma.newest)+len(d.ma.indexes) != 0 {
		t.Fatal("Tick left an initiation")
	}

	abandoned := d.initiate(epoch.Add(time.Second))
	r, err = deliver(d.mb, epoch, addrA, abandoned.Datagrams)
	check(t, err)
	d.ma.Release(abandoned.ID)
	_, err = deliver(d.ma, epoch, addrB, r.Reply)
	wantError(t, err, ErrUnknownIndex)
	if len(d.ma.pending)+len(d.ma.newest)+len(d.ma.indexes) != 0 {
		t.Fatal("Release left an initiation")
	}
}

func TestTimestampsRiseWhenTheClockStepsBack(t *testing.T) {
	d := newDuo(t, bothSuites)
	for _, back := range []time.Duration{0, 0, time.Hour, time.Minute, 2 * time.Hour} {
		in, err := d.ma.Initiate(epoch.Add(-back), d.a.Agent, d.b.target())
		check(t, err)
		_, err = deliver(d.mb, epoch, addrA, in.Datagrams)
		check(t, err)
	}
	// They are forgotten when nobody could replay them any more.
	if again := d.mb.Tick(epoch.Add(23*time.Hour + ClockSkew)); again <= 0 || again > time.Hour || len(d.mb.stamps) != 1 {
		t.Fatal("forgotten too early")
	}
	d.mb.Tick(epoch.Add(24 * time.Hour))
	if len(d.mb.stamps) != 0 {
		t.Fatal("not forgotten")
	}
}

func TestSetLocalsRefuses(t *testing.T) {
	d := newDuo(t, bothSuites)
	mallory := d.agent("mallory", bothSuites)
	_, err := NewMachine(Options{})
	if err == nil {
		t.Fatal("a machine of no network")
	}
	stolen, other := d.a.Local, d.a.Local
	stolen.Certificate = mallory.Certificate
	other.Keys = mallory.Keys
	wantError(t, d.ma.SetLocals([]Local{stolen}), ErrKeyMismatch)
	wantError(t, d.ma.SetLocals([]Local{other}), ErrKeyMismatch)
	other.Keys = []TunnelIdentity{{mallory.tunnel, d.a.Keys[0].Statement}}
	wantError(t, d.ma.SetLocals([]Local{other}), ErrKeyMismatch)
	other.Keys = []TunnelIdentity{{d.a.tunnel, nil}}
	wantError(t, d.ma.SetLocals([]Local{other}), ErrStatement)
	stolen.Certificate = nil
	wantError(t, d.ma.SetLocals([]Local{stolen}), ErrCertificate)
	if d.ma.SetLocals([]Local{d.a.Local, d.a.Local}) == nil || d.ma.SetLocals([]Local{{Agent: d.a.Agent, Certificate: d.a.Certificate}}) == nil {
		t.Fatal("took an agent twice or without a key")
	}
	d.connect(epoch) // nothing was changed by all that
}

// TestManyHandshakesAtOnce is for the race detector.
func TestManyHandshakesAtOnce(t *testing.T) {
	w := newWorld(t)
	b := w.agent("beta", bothSuites)
	mb := w.machine(b)
	var wg sync.WaitGroup
	for i := range 8 {
		a := w.agent("alpha"+string(rune('a'+i)), bothSuites)
		ma := w.machine(a)
		from := netip.AddrPortFrom(addrA.Addr(), uint16(1000+i))
		wg.Go(func() {
			for n := range 5 {
				now := epoch.Add(time.Duration(n) * time.Second)
				in, err := ma.Initiate(now, a.Agent, b.target())
				if err != nil {
					t.Error(err)
					return
				}
				r, err := deliver(mb, now, from, in.Datagrams)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err = deliver(ma, now, addrB, r.Reply); err != nil {
					t.Error(err)
				}
				mb.Tick(now)
				_ = mb.SetLocals([]Local{b.Local})
				mb.Release(r.Session.LocalIndex())
			}
		})
	}
	wg.Wait()
	if len(mb.indexes) != 0 {
		t.Fatalf("%d indexes left", len(mb.indexes))
	}
}

func TestKind(t *testing.T) {
	d := newDuo(t, bothSuites)
	in := d.initiate(epoch)
	stun := append([]byte{0x01, 0x01, 0, 12, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 40)...)
	junk := make([]byte, 100)
	_, _ = rand.Read(junk[1:])
	for name, c := range map[string]struct {
		datagram []byte
		want     MessageKind
	}{
		"nothing": {nil, KindInvalid}, "short": {in.Datagrams[0][:Overhead-1], KindInvalid}, "stun": {stun, KindInvalid},
		"junk": {junk, KindInvalid}, "initiation": {in.Datagrams[0], KindHandshake},
		"other version": {append([]byte{typeInitiation, Version + 1}, make([]byte, 100)...), KindInvalid},
		"too long":      {append(bytes.Clone(in.Datagrams[0]), 0), KindInvalid},
	} {
		if got := Kind(c.datagram); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		if RecordIndex(c.datagram) != 0 {
			t.Errorf("%s: has an index", name)
		}
	}
}
