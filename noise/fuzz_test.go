// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// fixedDuo is a duo whose seeds are the same in each run, so that a corpus keeps its meaning.
func fixedDuo(tb testing.TB) *duo {
	tb.Helper()
	w := &world{tb, identity.AuthorityKeyFromSeed([32]byte{1})}
	member := func(seed byte, name string) *agent {
		a := &agent{w: w, key: identity.AgentKeyFromSeed([32]byte{seed}), suites: bothSuites}
		a.Agent = a.key.Public()
		a.Certificate = w.certify(a.Agent, name, nil)
		var err error
		a.tunnel, err = identity.TunnelKeyFromBytes([32]byte{seed})
		check(tb, err)
		a.Keys = []TunnelIdentity{{a.tunnel, a.state(a.tunnel.Public())}}
		return a
	}
	d := &duo{world: w, a: member(2, "alpha"), b: member(3, "beta")}
	d.ma, d.mb = w.machine(d.a), w.machine(d.b)
	return d
}

// FuzzHandle gives both machines anything, as it is and with its MAC made right.
func FuzzHandle(f *testing.F) {
	d := fixedDuo(f)
	in := d.initiate(epoch)
	for _, datagram := range in.Datagrams {
		f.Add(datagram)
	}
	r, err := deliver(d.mb, epoch, addrA, in.Datagrams)
	check(f, err)
	for _, datagram := range r.Reply {
		f.Add(datagram)
	}
	d.mb.load.until = epoch.Add(time.Minute)
	r, err = d.mb.Handle(epoch, d.initiate(epoch).Datagrams[0], addrA)
	wantError(f, err, ErrCookie)
	f.Add(r.Reply[0])
	key := labelKey(mac1Tag, d.b.tunnel.Public())
	fresh := func(t *testing.T, like *Machine) *Machine { // without verifying the same statements again
		m, err := NewMachine(Options{Network: like.network})
		check(t, err)
		m.locals.Store(like.locals.Load())
		return m
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		ma, mb := fresh(t, d.ma), fresh(t, d.mb)
		for _, m := range []*Machine{ma, mb} {
			before := bytes.Clone(datagram)
			r, err := m.Handle(epoch, datagram, addrA)
			if err == nil || r.Session != nil || r.Reply != nil {
				t.Fatalf("%+v, %v", r, err)
			}
			if !bytes.Equal(before, datagram) {
				t.Fatal("changed the datagram")
			}
		}
		if len(datagram) > fragmentFrame {
			right := appendMACs(bytes.Clone(datagram[:len(datagram)-2*macSize]), 0, key[:], nil)
			if r, err := mb.Handle(epoch, right, addrA); err == nil || r.Session != nil || r.Reply != nil {
				t.Fatalf("%+v, %v", r, err)
			}
		}
	})
}

// FuzzOpen gives a session any record: only what was sealed opens.
func FuzzOpen(f *testing.F) {
	d := fixedDuo(f)
	a, b := d.confirmed(epoch)
	for _, plain := range []string{"", "x", "a packet of some bytes"} {
		record, err := a.Seal(nil, FlagControl, []byte(plain))
		check(f, err)
		f.Add(record[8:])
	}
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, rest []byte) {
		// The index is random in each run: the fuzzer need not guess it.
		record := append([]byte{typeRecord, 0, 0, 0, byte(b.local >> 24), byte(b.local >> 16), byte(b.local >> 8), byte(b.local)}, rest...)
		if out, _, err := b.Open([]byte("dst"), record); err == nil || string(out) != "dst" {
			t.Fatalf("opened %x", out)
		}
		sealed, err := a.Seal(nil, Flags(len(rest)), rest)
		check(t, err)
		out, flags, err := b.Open(nil, sealed)
		check(t, err)
		if !bytes.Equal(out, rest) || flags != Flags(len(rest)) {
			t.Fatalf("opened %x", out)
		}
	})
}

// FuzzFragments parses any fragment, and cuts and joins what it finds; and parses its body as either payload.
func FuzzFragments(f *testing.F) {
	message := make([]byte, maxInitiation)
	for _, total := range []int{minInitiation, maxInitiation} {
		for count := fragments(total); count <= maxFragments; count++ {
			for part := range count {
				d := appendFragment(nil, typeInitiation, suiteAES, part, count, 7, 0, message[:total])
				f.Add(appendMACs(d, 0, message[:keySize], nil))
			}
		}
	}
	for _, total := range []int{minAnswer, maxAnswer} {
		for count := fragments(total); count <= maxFragments; count++ {
			d := appendFragment(nil, typeAnswer, suiteChaCha, 0, count, 7, 8, message[:total])
			f.Add(appendMACs(d, 0, message[:keySize], nil))
		}
	}
	payload := initiationPayload{kemKey: make([]byte, kemKeySize), credentials: credentials{[]byte("s"), []byte("c")}}
	f.Add(payload.append(nil))
	f.Add(appendAnswerPayload(nil, 9, payload.credentials))
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := parseFragment(b); err == nil {
			whole := bytes.Repeat([]byte{1}, g.total)
			start, stop := cut(g.total, g.count, g.part)
			copy(whole[start:stop], g.body)
			again := appendFragment(nil, g.kind, g.suite, g.part, g.count, g.sender, g.receiver, whole)
			if !bytes.Equal(again, g.signed) {
				t.Fatalf("parsed %x, made %x", g.signed, again)
			}
			var table assembler
			for part := range g.count {
				start, stop := cut(g.total, g.count, part)
				h := g
				h.part, h.body = part, whole[start:stop]
				if p := table.add(&h, addrA, nil, epoch); (p != nil) != (part == g.count-1) || p != nil && !bytes.Equal(p.body, whole) {
					t.Fatal("joined wrongly")
				}
			}
		} else if !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		if p, err := parseInitiationPayload(b); err == nil && len(b) <= minInitiation-initiationFrame {
			if again := p.append(nil); !bytes.HasPrefix(again, b) {
				t.Fatalf("parsed %x, made %x", b, again)
			}
		}
		if sender, c, err := parseAnswerPayload(b); err == nil {
			if again := appendAnswerPayload(nil, sender, c); !bytes.Equal(again, b) {
				t.Fatalf("parsed %x, made %x", b, again)
			}
		}
	})
}
