// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

func wantSilence(t *testing.T, r Result, err, want error) {
	t.Helper()
	wantError(t, err, want)
	if r.Session != nil || r.Reply != nil {
		t.Fatalf("%+v", r)
	}
}

func TestAbuse11Replay(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		older := d.initiate(epoch)
		newer := d.initiate(epoch.Add(time.Second))
		answer, err := deliver(d.mb, epoch, addrA, newer.Datagrams)
		check(t, err)
		made, err := deliver(d.ma, epoch, addrB, answer.Reply)
		check(t, err)
		for _, from := range []netip.AddrPort{addrA, addrB} {
			for _, now := range []time.Time{epoch, epoch.Add(10 * time.Hour)} {
				r, err := deliver(d.mb, now, from, newer.Datagrams)
				wantSilence(t, r, err, ErrReplay)
				r, err = deliver(d.mb, now, from, older.Datagrams)
				wantSilence(t, r, err, ErrReplay)
				r, err = deliver(d.ma, now, from, answer.Reply)
				wantSilence(t, r, err, ErrUnknownIndex)
				d.mb.Tick(now)
			}
		}
		send(t, made.Session, answer.Session, []byte("untouched"))

		// An answer to one initiation is none to another.
		in := d.initiate(epoch.Add(2 * time.Second))
		forged := bytes.Clone(answer.Reply[0])
		copy(forged[8:12], in.Datagrams[0][4:8])
		r, err := d.ma.Handle(epoch, forged, addrB)
		wantSilence(t, r, err, ErrMAC)

		// A responder that lost its memory answers a replay, but its session never sends.
		mb := d.machine(d.b)
		r, err = deliver(mb, epoch, addrB, newer.Datagrams)
		check(t, err)
		_, err = r.Session.Seal(nil, 0, []byte("secret"))
		wantError(t, err, ErrUnconfirmed)
		record, err := made.Session.Seal(nil, 0, nil)
		check(t, err)
		copy(record[4:8], r.Reply[0][4:8])
		_, _, err = r.Session.Open(nil, record)
		wantError(t, err, ErrAuth)
	})
}

// TestAbuse11ReplayAtOnce hands copies of one initiation to a responder from many goroutines.
func TestAbuse11ReplayAtOnce(t *testing.T) {
	d := newDuo(t, bothSuites)
	in := d.initiate(epoch)
	var sessions atomic.Int64
	var wg sync.WaitGroup
	for i := range 16 {
		from := netip.AddrPortFrom(addrA.Addr(), uint16(1000+i))
		wg.Go(func() {
			r, err := deliver(d.mb, epoch, from, in.Datagrams)
			if r.Session != nil {
				sessions.Add(1)
			} else if !errors.Is(err, ErrReplay) || r.Reply != nil {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	wg.Wait()
	if sessions.Load() != 1 || len(d.mb.indexes) != 1 {
		t.Fatalf("%d sessions, %d indexes", sessions.Load(), len(d.mb.indexes))
	}
}

func TestAbuse11Reflection(t *testing.T) {
	d := newDuo(t, bothSuites)
	in := d.initiate(epoch)
	for _, datagram := range in.Datagrams {
		r, err := d.ma.Handle(epoch, datagram, addrB)
		wantSilence(t, r, err, ErrMAC)
		// Nor can it be made to look like an answer.
		turned := bytes.Clone(datagram)
		turned[0] = typeAnswer
		copy(turned[8:12], datagram[4:8])
		r, err = d.ma.Handle(epoch, turned, addrB)
		wantSilence(t, r, err, ErrMalformed) // longer than any answer
		binary.BigEndian.PutUint16(turned[12:], maxAnswer)
		start, stop := cut(maxAnswer, 2, int(turned[3]>>4))
		turned = slices.Delete(turned, fragmentHeader+stop-start, len(turned)-2*macSize)
		r, err = d.ma.Handle(epoch, turned, addrB)
		wantSilence(t, r, err, ErrMAC)
	}
	answer, err := deliver(d.mb, epoch, addrA, in.Datagrams)
	check(t, err)
	for _, datagram := range answer.Reply {
		r, err := d.mb.Handle(epoch, datagram, addrA)
		wantSilence(t, r, err, ErrUnknownIndex)
	}
	made, err := deliver(d.ma, epoch, addrB, answer.Reply)
	check(t, err)
	// A record sent back, with the index set right, is not from the other side.
	record, err := made.Session.Seal(nil, 0, []byte("echo"))
	check(t, err)
	copy(record[4:8], in.Datagrams[0][4:8])
	_, _, err = made.Session.Open(nil, record)
	wantError(t, err, ErrAuth)
}

// TestAbuse11UnknownKeyShare: Mallory signs Beta's tunnel key as her own and passes on what Alpha sends to "Mallory".
func TestAbuse11UnknownKeyShare(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		mallory := d.agent("mallory", d.b.suites)
		to := Target{Agent: mallory.Agent, Tunnel: d.b.tunnel.Public(), Suites: d.b.suites}
		in, err := d.ma.Initiate(epoch, d.a.Agent, to)
		check(t, err)
		r, err := deliver(d.mb, epoch, addrA, in.Datagrams)
		wantSilence(t, r, err, ErrAuth)

		// Even a Beta who answers in Mallory's name must show a statement, and has only Beta's.
		mallorys := d.forge(d.b, credentials{d.b.Keys[0].Statement, d.b.Certificate})
		mallorys.locals.Load().keys[0].agent = mallory.Agent
		r, err = deliver(mallorys, epoch, addrA, in.Datagrams)
		check(t, err)
		r, err = deliver(d.ma, epoch, addrB, r.Reply)
		wantSilence(t, r, err, ErrKeyMismatch)

		// A message for one agent is not taken by another, even of the same port.
		mb := d.machine(d.b, mallory)
		in, err = d.ma.Initiate(epoch, d.a.Agent, mallory.target())
		check(t, err)
		key := labelKey(mac1Tag, d.b.tunnel.Public())
		r, err = deliver(mb, epoch, addrA, recut(typeInitiation, in.Datagrams[0], assemble(in.Datagrams), key[:]))
		wantSilence(t, r, err, ErrAuth)
		// An agent does not talk to itself, wherever it runs: here one end pretends to itself to be somebody else.
		twin := &agent{w: d.world, key: d.a.key, suites: d.a.suites, Local: Local{Agent: d.a.Agent, Certificate: d.a.Certificate}}
		twin.rotate()
		ma := d.machine(d.a)
		pretend := ma.locals.Load().keys[0]
		pretend.agent = mallory.Agent
		ma.locals.Store(&localSet{newest: map[identity.AgentPublic]*localKey{mallory.Agent: pretend}})
		in, err = ma.Initiate(epoch, mallory.Agent, twin.target())
		check(t, err)
		r, err = deliver(d.machine(twin), epoch, addrA, in.Datagrams)
		wantSilence(t, r, err, ErrKeyMismatch)
	})
}

func TestAbuse12NeverAWeakerSuite(t *testing.T) {
	d := newDuo(t, bothSuites)
	macKey := labelKey(mac1Tag, d.b.tunnel.Public())
	in := d.initiate(epoch)
	for _, datagram := range in.Datagrams {
		if suite(datagram[2]) != suiteAES {
			t.Fatal("two that have AES did not choose it")
		}
	}
	change := func(datagrams [][]byte, to byte, key []byte) (out [][]byte) {
		for _, datagram := range datagrams {
			b := bytes.Clone(datagram[:len(datagram)-2*macSize])
			b[2] = to
			out = append(out, appendMACs(b, 0, key, nil))
		}
		return out
	}
	// Somebody between changes the suite, and makes the MACs right.
	r, err := deliver(d.mb, epoch, addrA, change(in.Datagrams, byte(suiteChaCha), macKey[:]))
	wantSilence(t, r, err, ErrAuth)
	for _, s := range []byte{0, 3, 4, 255} {
		r, err = deliver(d.mb, epoch, addrA, change(in.Datagrams, s, macKey[:]))
		wantSilence(t, r, err, ErrMalformed)
	}
	pending := d.ma.pending[in.ID]
	answer, err := deliver(d.mb, epoch, addrA, in.Datagrams)
	check(t, err)
	r, err = deliver(d.ma, epoch, addrB, change(answer.Reply, byte(suiteChaCha), pending.answerKey[:]))
	wantSilence(t, r, err, ErrSuite)
	r, err = deliver(d.ma, epoch, addrB, answer.Reply)
	check(t, err)
	send(t, r.Session, answer.Session, nil)

	// A responder refuses what its statement does not offer; an initiator does not choose it.
	narrow := d.agent("narrow", identity.SuiteChaCha)
	lying := Target{Agent: narrow.Agent, Tunnel: narrow.tunnel.Public(), Suites: bothSuites}
	in, err = d.ma.Initiate(epoch, d.a.Agent, lying)
	check(t, err)
	r, err = deliver(d.machine(narrow), epoch, addrA, in.Datagrams)
	wantSilence(t, r, err, ErrSuite)
	for name, choice := range map[string]struct {
		m    *Machine
		from *agent
		to   Target
	}{
		"peer without": {d.ma, d.a, narrow.target()},
		"we without":   {d.machineWith(Options{}, d.a), d.a, d.b.target()},
		"we say so":    {d.machine(narrow), narrow, d.b.target()},
	} {
		in, err := choice.m.Initiate(epoch, choice.from.Agent, choice.to)
		check(t, err)
		if suite(in.Datagrams[0][2]) != suiteChaCha {
			t.Errorf("%s: suite %d", name, in.Datagrams[0][2])
		}
	}
}

// TestAbuse12NoAnswer: whatever stays away or comes instead of an answer, all that goes out is the same handshake.
func TestAbuse12NoAnswer(t *testing.T) {
	d := newDuo(t, bothSuites)
	foreign := newDuo(t, bothSuites)
	for i := range 100 {
		now := epoch.Add(time.Duration(i) * time.Second)
		in := d.initiate(now)
		for _, datagram := range in.Datagrams {
			if Kind(datagram) != KindHandshake || suite(datagram[2]) != suiteAES || len(datagram) > MaxDatagram {
				t.Fatalf("sent %x", datagram[:fragmentHeader])
			}
			for _, secret := range [][]byte{[]byte("alpha"), d.a.Agent[:], d.b.Agent[:], d.a.Certificate[:32], d.a.Keys[0].Statement[:32]} {
				if bytes.Contains(datagram, secret) {
					t.Fatal("shows who we are")
				}
			}
		}
		r, err := deliver(foreign.mb, now, addrA, in.Datagrams)
		wantSilence(t, r, err, ErrMAC)
		for _, junk := range [][]byte{nil, []byte("plaintext please"), make([]byte, 1200), in.Datagrams[0], foreign.initiate(now).Datagrams[0]} {
			if r, err := d.ma.Handle(now, junk, addrB); err == nil || r.Session != nil || r.Reply != nil {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		d.ma.Tick(now)
	}
	if len(d.ma.pending) != 1 || len(d.ma.indexes) != 1 {
		t.Fatalf("%d pending, %d indexes", len(d.ma.pending), len(d.ma.indexes))
	}
}

// TestAbuse24NoAmplification: at no moment of any arrival has a source been sent more than came from it.
func TestAbuse24NoAmplification(t *testing.T) {
	d := newDuo(t, bothSuites)
	d.b.Certificate = d.largeCertificate(d.b.Agent) // the smallest question, the largest answer
	check(t, d.mb.SetLocals([]Local{d.b.Local}))
	for _, loaded := range []bool{false, true} {
		for i, order := range append(permutations(2), []int{0, 0, 1, 1, 0}, []int{1, 1, 1, 0, 0}) {
			now := epoch.Add(time.Duration(i) * time.Minute)
			if loaded {
				now = now.Add(time.Hour)
				d.mb.load.until = now.Add(time.Hour)
			}
			in, received, sent := d.initiate(now), 0, 0
			for _, part := range order {
				received += len(in.Datagrams[part])
				r, _ := d.mb.Handle(now, in.Datagrams[part], addrA)
				for _, reply := range r.Reply {
					sent += len(reply)
				}
				if sent > received {
					t.Fatalf("loaded %v, order %v: %d bytes came, %d went", loaded, order, received, sent)
				}
			}
			if sent == 0 {
				t.Fatal("nothing was answered")
			}
		}
	}
	if maxAnswer+2*fragmentFrame > minInitiation+2*fragmentFrame || fragments(minInitiation) != 2 || fragments(maxAnswer) > 2 {
		t.Fatal("the largest answer is larger than the smallest question")
	}
	if start, stop := cut(maxInitiation, maxFragments, maxFragments-1); stop-start+fragmentFrame < cookieReply {
		t.Fatal("a cookie reply is larger than the smallest fragment")
	}
}

func source(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 4000)
}

// TestAbuse24Cookie floods a responder from made-up addresses, and lets one real peer through by its cookie.
func TestAbuse24Cookie(t *testing.T) {
	d := newDuo(t, bothSuites)
	flood := d.initiate(epoch).Datagrams[0]
	cookied := 0
	for i := range 5000 {
		r, err := d.mb.Handle(epoch, flood, source(i))
		if errors.Is(err, ErrCookie) {
			cookied++
			if len(r.Reply) != 1 || len(r.Reply[0]) > len(flood) || Kind(r.Reply[0]) != KindHandshake {
				t.Fatalf("cookie reply %x", r.Reply)
			}
		} else {
			wantSilence(t, r, err, ErrIncomplete)
		}
	}
	if cookied < 5000-handshakeBurst || len(d.mb.partials.list) > maxPartials {
		t.Fatalf("%d cookies, %d partial messages", cookied, len(d.mb.partials.list))
	}

	in := d.initiate(epoch)
	r, err := d.mb.Handle(epoch, in.Datagrams[0], addrA)
	wantError(t, err, ErrCookie)
	reply := r.Reply[0]
	for i := range reply { // a cookie that was changed is not taken
		bad := bytes.Clone(reply)
		bad[i] ^= 1
		if r, err := d.ma.Handle(epoch, bad, addrB); err == nil || r.Retry {
			t.Fatalf("byte %d: %+v, %v", i, r, err)
		}
	}
	r, err = d.ma.Handle(epoch, reply, addrB)
	check(t, err)
	if !r.Retry || r.ID != in.ID || r.Reply != nil {
		t.Fatalf("%+v", r)
	}
	r, err = d.ma.Handle(epoch, reply, addrB)
	check(t, err)
	if r.Retry {
		t.Fatal("a second cookie asks for a second retry")
	}

	// The next one bears it, is answered to the address that the cookie was for, and to no other.
	in = d.initiate(epoch)
	r, err = d.mb.Handle(epoch, in.Datagrams[0], addrB)
	wantError(t, err, ErrCookie)
	r, err = deliver(d.mb, epoch, addrA, in.Datagrams)
	check(t, err)
	r, err = deliver(d.ma, epoch, addrB, r.Reply)
	check(t, err)

	// The responder honours it for at least its lifetime; the initiator uses it no longer than that.
	late := epoch.Add(cookieLifetime - time.Second)
	in = d.initiate(late)
	d.mb.load.until = late.Add(time.Hour)
	_, err = deliver(d.mb, late, addrA, in.Datagrams)
	check(t, err)
	late = epoch.Add(cookieLifetime)
	in = d.initiate(late)
	_, err = deliver(d.mb, late, addrA, in.Datagrams)
	wantError(t, err, ErrCookie)
	if mac2 := in.Datagrams[0][MaxDatagram-macSize:]; !bytes.Equal(mac2, make([]byte, macSize)) {
		t.Fatal("used an old cookie")
	}
	d.ma.Tick(late)
	if len(d.ma.given) != 0 {
		t.Fatal("kept an old cookie")
	}
}

func TestCookieSecretsTurn(t *testing.T) {
	d := newDuo(t, bothSuites)
	c := cookies{rand: d.mb.rand}
	check(t, c.turn(epoch))
	datagram := d.initiate(epoch).Datagrams[0]
	cookie := cookieFor(c.secret, addrA)
	f, err := parseFragment(appendMACs(bytes.Clone(datagram[:MaxDatagram-2*macSize]), 0, make([]byte, keySize), cookie[:]))
	check(t, err)
	for _, step := range []struct {
		at   time.Duration
		want bool
	}{{cookieLifetime - 1, true}, {cookieLifetime, true}, {2*cookieLifetime - 1, true}, {2 * cookieLifetime, false}} {
		check(t, c.turn(epoch.Add(step.at)))
		if c.proves(&f, addrA) != step.want || c.proves(&f, addrB) {
			t.Errorf("after %v: %v", step.at, !step.want)
		}
	}
	// After a long silence nothing old is honoured.
	cookie = cookieFor(c.secret, addrA)
	f, err = parseFragment(appendMACs(bytes.Clone(datagram[:MaxDatagram-2*macSize]), 0, make([]byte, keySize), cookie[:]))
	check(t, err)
	check(t, c.turn(epoch.Add(24*time.Hour)))
	if c.proves(&f, addrA) {
		t.Error("honours a cookie of a day ago")
	}
}

// TestAbuse24OneSource: a proved source under load has its share, and no source can push out what others began.
func TestAbuse24OneSource(t *testing.T) {
	d := newDuo(t, bothSuites)
	honest := d.initiate(epoch)
	_, err := d.mb.Handle(epoch, honest.Datagrams[0], addrB)
	wantError(t, err, ErrIncomplete)
	macKey := labelKey(mac1Tag, d.b.tunnel.Public())
	part := func(sender byte, cookie []byte) []byte {
		b := bytes.Clone(honest.Datagrams[0][:MaxDatagram-2*macSize])
		b[7] ^= sender
		return appendMACs(b, 0, macKey[:], cookie)
	}
	for i := range 100 {
		_, err := d.mb.Handle(epoch, part(byte(i+1), nil), addrA)
		wantError(t, err, ErrIncomplete)
	}
	if n := len(d.mb.partials.list); n != maxPartialsPerSource+1 {
		t.Fatalf("%d partial messages", n)
	}
	r, err := d.mb.Handle(epoch, honest.Datagrams[1], addrB)
	check(t, err)
	if r.Session == nil {
		t.Fatal("the honest message was pushed out")
	}

	d.mb.load.until = epoch.Add(time.Hour)
	check(t, d.mb.cookies.turn(epoch))
	cookie := cookieFor(d.mb.cookies.secret, addrA)
	busy := 0
	for i := range 200 {
		if _, err := d.mb.Handle(epoch, part(byte(i), cookie[:]), addrA); errors.Is(err, ErrBusy) {
			busy++
		} else {
			wantError(t, err, ErrIncomplete)
		}
	}
	if busy != 200-sourceBurst {
		t.Fatalf("%d over the share", busy)
	}
	if _, err := d.mb.Handle(epoch.Add(time.Second), part(0, cookie[:]), addrA); !errors.Is(err, ErrIncomplete) {
		t.Fatalf("its share did not come back: %v", err)
	}
}

func TestLoad(t *testing.T) {
	var l load
	now := epoch
	for range 10 * handshakeRate { // just at the rate
		now = now.Add(time.Second / handshakeRate)
		if l.arrive(now) {
			t.Fatal("loaded at the rate")
		}
	}
	loaded := false
	for range 3 * handshakeBurst {
		loaded = l.arrive(now)
	}
	if !loaded || !l.arrive(now.Add(loadedFor-1)) || l.arrive(now.Add(3*loadedFor)) {
		t.Fatal("load does not come or does not go")
	}
	if l.arrive(now.Add(-time.Hour)) != true {
		t.Fatal("a clock that stepped back gave tokens or lost the load")
	}
	if sourceOf(netip.MustParseAddrPort("[::ffff:192.0.2.1]:1")) != sourceOf(addrA) ||
		sourceOf(netip.MustParseAddrPort("[2001:db8::ffff:1]:9")) != sourceOf(addrB) || sourceOf(addrA) == sourceOf(addrB) {
		t.Fatal("sources are told apart wrongly")
	}
}

// TestPartialsAreBounded fills the table from many sources: the oldest goes.
func TestPartialsAreBounded(t *testing.T) {
	d := newDuo(t, bothSuites)
	f, err := parseFragment(d.initiate(epoch).Datagrams[0])
	check(t, err)
	var a assembler
	for i := range 2 * maxPartials {
		if a.add(&f, source(i), nil, epoch) != nil {
			t.Fatal("half a message is whole")
		}
	}
	if len(a.list) != maxPartials || a.list[0].from != source(maxPartials) {
		t.Fatalf("%d, oldest from %v", len(a.list), a.list[0].from)
	}
	if !slices.ContainsFunc(a.list, func(p *partial) bool { return p.from == source(2*maxPartials-1) }) {
		t.Fatal("the newest is not there")
	}
	a.expire(epoch.Add(partialLifetime))
	if len(a.list) != 0 {
		t.Fatal("kept too long")
	}
}

// Somebody who sees a first message can answer it with a cookie of their own making, since that is sealed by public keys
// only. Each such answer of 64 bytes must not draw another first message at once.
func TestAbuse24CookiesDoNotDrawMessages(t *testing.T) {
	d := newDuo(t, bothSuites)
	key := labelKey(cookieTag, d.b.tunnel.Public())
	forger := cookies{rand: rand.Reader}
	check(t, forger.turn(epoch))
	retries := 0
	for range 10 {
		in := d.initiate(epoch)
		f, err := parseFragment(in.Datagrams[0])
		check(t, err)
		reply, err := forger.appendReply(nil, &f, addrA, key)
		check(t, err)
		r, err := d.ma.Handle(epoch, reply, addrB)
		check(t, err)
		if r.Retry {
			retries++
		}
	}
	if retries > 1 {
		t.Fatalf("%d cookies drew %d messages", 10, retries)
	}
}

// A peer may sign as many tunnel keys as it likes, for as long as it likes: what is remembered of one is bounded, and the
// latest messages still can't be replayed.
func TestTimestampsOfOnePeerAreBounded(t *testing.T) {
	d := newDuo(t, bothSuites)
	var last Initiation
	for i := range 3 * maxStampsOfPeer {
		d.a.rotate()
		check(t, d.ma.SetLocals([]Local{d.a.Local}))
		now := epoch.Add(time.Duration(i) * time.Second)
		last = d.initiate(now)
		r, err := deliver(d.mb, now, addrA, last.Datagrams)
		check(t, err)
		d.mb.Release(r.Session.LocalIndex())
	}
	if n := len(d.mb.stamps); n != maxStampsOfPeer {
		t.Errorf("%d timestamps", n)
	}
	r, err := deliver(d.mb, epoch.Add(time.Hour), addrA, last.Datagrams)
	wantSilence(t, r, err, ErrReplay)
}
