// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

// stranger is a UDP socket of nobody.
func stranger(t testing.TB) *net.UDPConn {
	t.Helper()
	c := must(net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask sends a datagram to the relay and returns its answer, nil if none comes.
func (p *place) ask(t testing.TB, c *net.UDPConn, d []byte) []byte {
	t.Helper()
	return p.askAt(t, c, p.UDPPort(), d)
}

// askAt is ask for one of the relay's two ports.
func (p *place) askAt(t testing.TB, c *net.UDPConn, port uint16, d []byte) []byte {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	if _, err := c.WriteToUDPAddrPort(d, to); err != nil {
		t.Fatal(err)
	}
	// A binding request behind it says when an answer would have come: one loop deals with both, in their order.
	probe := stunRequestOf(64)
	if _, err := c.WriteToUDPAddrPort(probe, to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var answer []byte
	for {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if n >= stunHeader && bytes.Equal(buf[8:stunHeader], probe[8:stunHeader]) {
			return answer
		}
		answer = bytes.Clone(buf[:n])
	}
}

// stunRequestOf is a binding request of n bytes, padded by an attribute that nobody has to know.
func stunRequestOf(n int) []byte {
	d := make([]byte, n)
	binary.BigEndian.PutUint16(d, stunRequest)
	binary.BigEndian.PutUint16(d[2:], uint16(n-stunHeader))
	binary.BigEndian.PutUint32(d[4:], stunMagic)
	if _, err := rand.Read(d[8:stunHeader]); err != nil {
		panic(err)
	}
	if n > stunHeader {
		binary.BigEndian.PutUint16(d[stunHeader:], 0x8022) // SOFTWARE
		binary.BigEndian.PutUint16(d[stunHeader+2:], uint16(n-stunHeader-4))
	}
	return d
}

// otherPort makes a binding request of 28 bytes or more one whose answer shall come from the other port.
func otherPort(request []byte) []byte {
	d := request[stunHeader:]
	binary.BigEndian.PutUint16(d, stunChange)
	binary.BigEndian.PutUint16(d[2:], 4)
	binary.BigEndian.PutUint32(d[4:], stunChangePort)
	if d = d[8:]; len(d) > 0 {
		binary.BigEndian.PutUint16(d, 0x8022) // SOFTWARE
		binary.BigEndian.PutUint16(d[2:], uint16(len(d)-4))
	}
	return request
}

// TestAbuse23Spoofing: what a member sends always bears its own address; neither another's token nor another's
// address in the underlay lets anybody send as it.
func TestAbuse23Spoofing(t *testing.T) {
	p := newPlace(t, nil)
	victim, b, mallory := p.join(t, true), p.join(t, true), p.join(t, true)
	seen := append(victim.AppendHeader(nil, b.addr), filled(100, 'x')...) // what somebody on the way may have seen
	p.ask(t, stranger(t), seen)
	if c := p.table.find(victim.addr); c.udp.Load().remote.String() != victim.conn.LocalAddr().String() {
		t.Error("the victim's address moved")
	}
	if _, err := mallory.conn.WriteToUDPAddrPort(seen, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.UDPPort())); err != nil {
		t.Fatal(err)
	}
	// One who guesses tokens or slots.
	h, _ := relay.ParseHeader(seen)
	for i := range 64 {
		guess := h
		guess.Token[i/8] ^= 1 << (i % 8)
		if got := p.ask(t, stranger(t), append(guess.Append(nil), filled(100, 'x')...)); got != nil {
			t.Errorf("a wrong token got %d bytes", len(got))
		}
	}
	for slot := range uint32(16) {
		guess := h
		guess.Slot, guess.Token = slot, relay.Token{}
		if got := p.ask(t, stranger(t), append(guess.Append(nil), filled(100, 'x')...)); got != nil {
			t.Errorf("slot %d got %d bytes: slots can be counted", slot, len(got))
		}
	}
	b.nothing(t, victim)
}

// TestAbuse23BindSomebodyElse: a member that binds an address at which it receives nothing gets nothing sent there,
// and the replay of another's bind from elsewhere moves nothing.
func TestAbuse23BindSomebodyElse(t *testing.T) {
	p := newPlace(t, nil)
	a, b := p.join(t, true), p.join(t, false)
	elsewhere := stranger(t)
	c := p.table.find(b.addr)
	bind := relay.Control{Op: relay.OpBind, Slot: c.slot, Token: c.token, ID: 7}
	// The member's own bind, with an address that isn't its own: only the challenge goes there, once for each.
	answer, ok := relay.ParseControl(p.ask(t, elsewhere, bind.Append(nil, &c.secret)))
	if !ok || answer.Op != relay.OpChallenge || answer.Cookie == [16]byte{} {
		t.Fatalf("got %+v", answer)
	}
	if c.udp.Load() != nil {
		t.Error("bound without a proof")
	}
	// The cookie of one address is worth nothing from another, and one that is made up nothing at all.
	bind.Cookie = answer.Cookie
	for _, cookie := range [][16]byte{answer.Cookie, {1, 2, 3}} {
		bind.Cookie = cookie
		if got, ok := relay.ParseControl(p.ask(t, stranger(t), bind.Append(nil, &c.secret))); !ok || got.Op != relay.OpChallenge {
			t.Errorf("got %+v", got)
		}
	}
	if c.udp.Load() != nil {
		t.Error("bound by a cookie of somewhere else")
	}
	a.send(t, b.addr, "over TLS")
	if got := b.next(t); got.data != "over TLS" || got.udp {
		t.Errorf("%+v", got)
	}
	// Somebody who saw the token, but not the secret.
	victim := p.table.find(a.addr)
	before := victim.udp.Load()
	forged := relay.Control{Op: relay.OpBind, Slot: victim.slot, Token: victim.token, ID: 9}
	if got := p.ask(t, stranger(t), forged.Append(nil, &relay.Secret{1})); got != nil {
		t.Errorf("a bind without the secret got %d bytes", len(got))
	}
	// Who replays a whole bind learns a cookie that it can't use.
	if got, ok := relay.ParseControl(p.ask(t, stranger(t), forged.Append(nil, &victim.secret))); !ok || got.Op != relay.OpChallenge {
		t.Errorf("got %+v", got)
	}
	if victim.udp.Load() != before {
		t.Error("the victim's way moved")
	}
}

// TestAbuse23Reading: a member gets what is for it and nothing else; one that is not connected can't be asked about
// but by sending to it, and the answer to that is rare.
func TestAbuse23Reading(t *testing.T) {
	p := newPlace(t, nil)
	a, b, curious := p.join(t, true), p.join(t, true), p.join(t, false)
	for i := range 20 {
		a.send(t, b.addr, filled(10, byte(i)))
		b.next(t)
	}
	curious.nothing(t, a)
	p.counts.gone.Store(0)
	for i := range 500 {
		guess := curious.addr.As16()
		guess[14], guess[15] = byte(i), byte(i>>8)
		curious.send(t, netip.AddrFrom16(guess), "anybody?")
	}
	for p.counts.gone.Load() < 500 {
		time.Sleep(time.Millisecond)
	}
	if n := len(curious.gone); n > 50 {
		t.Errorf("it learned of %d addresses", n)
	}
}

// TestAbuse23Disconnecting: nothing that a member can send ends or moves another's connection.
func TestAbuse23Disconnecting(t *testing.T) {
	p := newPlace(t, nil)
	a, b, mallory := p.join(t, true), p.join(t, false), p.join(t, true)
	before := p.table.find(b.addr)
	way, _ := mallory.UDP()
	// Too long for a frame; a record that looks like a control; a header within a header.
	for _, inner := range []string{filled(relay.MaxDatagram+1, 'x'), filled(20000, 'y'), string(make([]byte, relay.ControlSize)), "\x25\x01\x00\x00"} {
		if _, err := mallory.conn.WriteToUDPAddrPort(append(mallory.AppendHeader(nil, b.addr), inner...), way); err != nil {
			t.Fatal(err)
		}
	}
	key := must(identity.NewAgentKey(rand.Reader)) // not b's key, but b's pass
	m := p.start(t, key, p.pass(b.key, 5, time.Hour), false)
	m.until(t, "the refusal", func(s relay.Status) bool { return s.State == relay.StateFailed })
	for {
		a.send(t, b.addr, "still here")
		if b.next(t).data == "still here" {
			break
		}
	}
	if p.table.find(b.addr) != before || before.member.Load().Serial != 1 {
		t.Error("the connection is another one")
	}
}

// TestAbuse23ConstantTime: wherever this package and the client compare a token, a cookie or a MAC, they do it by
// means of crypto/subtle: there is no == or bytes.Equal between two of them in the source.
func TestAbuse23ConstantTime(t *testing.T) {
	for _, folder := range []string{".", "../../underlay/relay"} {
		packages, err := parser.ParseDir(token.NewFileSet(), folder, nil, 0) //nolint:staticcheck // no types are needed
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, pkg := range packages {
			for name, file := range pkg.Files {
				if strings.HasSuffix(name, "_test.go") {
					continue
				}
				ast.Inspect(file, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.BinaryExpr:
						if (n.Op == token.EQL || n.Op == token.NEQ) && secretName(n.X) && secretName(n.Y) {
							t.Errorf("%s compares secrets with %s", name, n.Op)
						}
					case *ast.CallExpr:
						if f, ok := n.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "Equal" || f.Sel.Name == "ConstantTimeCompare") {
							if x, ok := f.X.(*ast.Ident); ok && (x.Name == "hmac" || x.Name == "subtle") || secretName(f.X) {
								found++
							}
						}
					}
					return true
				})
			}
		}
		if found == 0 {
			t.Errorf("%s: no comparison was found: the test looks for the wrong thing", folder)
		}
	}
}

// secretName reports whether an expression is named as what must not be guessed byte by byte.
func secretName(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return strings.Contains(strings.ToLower(e.Name), "token") || strings.Contains(strings.ToLower(e.Name), "cookie") || strings.Contains(strings.ToLower(e.Name), "secret")
	case *ast.SelectorExpr:
		return secretName(e.Sel)
	}
	return false
}

// TestAbuse13ReplayThroughARelay: the relay forwards to nobody but the one whom the sender named, from nobody but the
// sender's own address, and never twice: a datagram that was seen on the way and is sent again from elsewhere dies here.
// One that is sent again from the same place reaches the session's window.
func TestAbuse13ReplayThroughARelay(t *testing.T) {
	p := newPlace(t, nil)
	a, b := p.join(t, true), p.join(t, true)
	way, _ := a.UDP()
	d := append(a.AppendHeader(nil, b.addr), "once"...)
	if _, err := a.conn.WriteToUDPAddrPort(d, way); err != nil {
		t.Fatal(err)
	}
	if got := b.next(t); got.data != "once" {
		t.Errorf("%+v", got)
	}
	for range 10 {
		p.ask(t, stranger(t), d)
	}
	b.nothing(t, a)
}

// TestAbuse24Amplification: no answer to anything over UDP is longer than the question, whatever is asked.
func TestAbuse24Amplification(t *testing.T) {
	p := newPlace(t, nil)
	a := p.join(t, true)
	c := p.table.find(a.addr)
	header := relay.Header{Slot: c.slot, Token: c.token, Address: a.addr}
	bind := relay.Control{Op: relay.OpBind, Slot: c.slot, Token: c.token, ID: 3}.Append(nil, &c.secret)
	questions := map[string][]byte{
		"data":               append(header.Append(nil), filled(200, 'x')...),
		"short data":         append(header.Append(nil), 'x'),
		"bind":               bind,
		"a longer bind":      append(bytes.Clone(bind), 0),
		"a bind that is cut": bind[:relay.ControlSize-1],
		"bound":              relay.Control{Op: relay.OpBound, Slot: c.slot, Token: c.token}.Append(nil, &c.secret),
		"a record":           append([]byte{0x24}, make([]byte, 100)...),
		"a handshake":        append([]byte{0x21}, make([]byte, 1100)...),
	}
	for n := stunHeader; n <= 80; n += 4 {
		questions[fmt.Sprint("STUN of ", n)] = stunRequestOf(n)
		if n >= stunHeader+8 {
			questions[fmt.Sprint("STUN for the other port of ", n)] = otherPort(stunRequestOf(n))
		}
	}
	for port, least := range map[uint16]int{ // of answers that there are for sure
		p.UDPPort():      4, // unbound, challenge, STUN and STUN from the other port
		p.udp.other.port: 2, // STUN and STUN from the other port
	} {
		kinds := map[string]bool{}
		for name, q := range questions {
			if port == p.UDPPort() {
				time.Sleep(unboundPause) // one answer of that kind is not held back for another
			}
			answer := p.askAt(t, stranger(t), port, q)
			if len(answer) > len(q) {
				t.Errorf("%s: %d bytes for %d", name, len(answer), len(q))
			}
			if answer != nil {
				kind, _, _ := strings.Cut(name, " of ")
				kinds[kind] = true
			}
		}
		if len(kinds) < least || port != p.UDPPort() && len(kinds) > least {
			t.Errorf("answers to %v: the test asks for nothing, or the second port answers more than STUN", kinds)
		}
	}
}

// TestAbuse23LogsTellNothing: at the most talkative level, what the relay logs has no agent, no name, no payload.
func TestAbuse23LogsTellNothing(t *testing.T) {
	var log lockedBuffer
	p := newPlace(t, func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	a, b := p.join(t, true), p.join(t, false)
	a.send(t, b.addr, "the payload")
	b.next(t)
	a.send(t, netip.MustParseAddr("fd00::1"), "the payload")
	foreign := must(identity.NewAgentKey(rand.Reader))
	m := p.start(t, foreign, p.pass(a.key, 1, time.Hour), false)
	m.until(t, "the refusal", func(s relay.Status) bool { return s.State == relay.StateFailed })
	p.Revoke(a.key.Public(), 1)
	a.until(t, "the end", func(s relay.Status) bool { return s.State == relay.StateFailed })
	text := log.String()
	if text == "" {
		t.Error("nothing was logged: the test looks for the wrong thing")
	}
	for _, secret := range []string{"someone", "payload", a.addr.String(), b.addr.String(), a.key.Public().String(), "agent:"} {
		if strings.Contains(text, secret) {
			t.Errorf("the log has %q:\n%s", secret, text)
		}
	}
}

// TestFairness: while one client floods, what another sends arrives.
func TestFairness(t *testing.T) {
	p := newPlace(t, func(o *Options) { o.Rate, o.Burst = 10_000_000, 1<<20 })
	flooder, quiet, b := p.join(t, true), p.join(t, true), p.join(t, false)
	way, _ := flooder.UDP()
	d := append(flooder.AppendHeader(nil, b.addr), filled(1400, 'f')...)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = flooder.conn.WriteToUDPAddrPort(d, way)
			}
		}
	}()
	arrived := 0
	for range 100 {
		quiet.send(t, b.addr, "quiet")
		for wait := time.After(500 * time.Millisecond); ; {
			select {
			case got := <-b.got:
				if got.from != quiet.addr {
					continue
				}
				arrived++
			case <-wait:
			}
			break
		}
	}
	close(stop)
	<-ended
	if arrived < 90 {
		t.Errorf("%d of 100 arrived", arrived)
	}
	if p.Stats().Drops["limit"] == 0 {
		t.Error("nothing was held back: there was no flood")
	}
}

// TestAbuse09AnotherRelay: a client says nothing to a server whose key is not the one of the authority's statement, also
// if that is a relay of the same network.
func TestAbuse09AnotherRelay(t *testing.T) {
	p := newPlace(t, nil)
	p.statement = must(identity.RelayStatement{
		Key: must(identity.NewAgentKey(rand.Reader)).Public(), Name: "other", Addresses: p.statement.Addresses, UDP: p.UDPPort(),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), Serial: 1,
	}.Sign(p.authority))
	key := must(identity.NewAgentKey(rand.Reader))
	m := p.start(t, key, p.pass(key, 1, time.Hour), true)
	m.until(t, "the failure", func(s relay.Status) bool { return s.State == relay.StateFailed })
	if err := m.Status().Err; !errors.Is(err, relay.ErrServer) {
		t.Errorf("got %v", err)
	}
	if s := p.Stats(); s.Clients != 0 || s.Connections != 0 {
		t.Errorf("%+v", s)
	}
}

// TestAbuse23ForgedFromTheRelay: what a client takes for the relay's bears a slot and a token that the client drew, other ones for
// each connection: nobody who did not see them can send it anything in the relay's name.
func TestAbuse23ForgedFromTheRelay(t *testing.T) {
	p := newPlace(t, nil)
	a, b := p.join(t, true), p.join(t, true)
	mine, others := p.table.find(a.addr).theirs, p.table.find(b.addr).theirs
	if mine.Token == (relay.Token{}) || others.Token == (relay.Token{}) || mine.Slot == others.Slot && mine.Token == others.Token {
		t.Fatalf("the clients drew %+v and %+v", mine, others)
	}
	way, _ := a.UDP()
	mine.Address = b.addr
	if _, _, ok := a.Accept(append(mine.Append(nil), 'x'), way); !ok {
		t.Error("the relay's own is refused")
	}
	for i := range 64 {
		forged := mine
		forged.Token[i/8] ^= 1 << (i % 8)
		if _, _, ok := a.Accept(append(forged.Append(nil), 'x'), way); ok {
			t.Fatalf("taken with bit %d of the token changed", i)
		}
	}
	others.Address = b.addr
	if _, _, ok := a.Accept(append(others.Append(nil), 'x'), way); ok {
		t.Error("taken with another client's token")
	}
}
