// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/underlay/relay"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

// patience is how long things may take that take milliseconds; tests with real sockets have no other clock.
const patience = 15 * time.Second

// peer is an underlay whose loops all run: what they receive comes out of one channel.
type peer struct {
	*Underlay
	t     *testing.T
	state State
	got   chan Burst
	addr  netip.Addr
}

func (a *authority) peer(dial func(context.Context, string, string) (net.Conn, error), relays ...*fakeRelay) *peer {
	a.t.Helper()
	p := &peer{Underlay: must(New(Options{Dial: dial})), t: a.t, state: a.member(relays...), got: make(chan Burst, 1000)}
	p.addr = a.address(&p.state)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := p.Run(ctx); err != nil {
			a.t.Errorf("Run: %v", err)
		}
	})
	for loop := range p.Loops() {
		group.Go(func() { p.receive(loop) })
	}
	a.t.Cleanup(func() { cancel(); group.Wait() })
	p.Set(p.state)
	return p
}

func (p *peer) receive(loop int) {
	in := arena(8)
	for {
		n, err := p.Receive(loop, in)
		if err != nil {
			return
		}
		for i := range in[:n] {
			for d := range in[i].Each {
				path := in[i].Path
				if d[0] != 'd' { // what is not ours in these tests
					var ok bool
					if d, path, ok = p.Accept(d, path); !ok {
						continue
					}
				}
				p.got <- Burst{Path: path, Data: bytes.Clone(d)}
			}
		}
	}
}

// wait waits until the status is as it should be.
func (p *peer) wait(what string, is func(Status) bool) Status {
	p.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if s := p.Status(); is(s) {
			return s
		}
	}
	p.t.Fatalf("%s: never in %v; %+v", what, patience, p.Status())
	return Status{}
}

func connectedBy(transport string) func(Status) bool {
	return func(s Status) bool {
		return slices.ContainsFunc(s.Relays, func(r RelayStatus) bool { return r.Home && r.Connected && r.Transport == transport })
	}
}

func (p *peer) want(d string, path Path) {
	p.t.Helper()
	select {
	case b := <-p.got:
		if string(b.Data) != d || b.Path != path {
			p.t.Errorf("got %q by %+v, want %q by %+v", b.Data, b.Path, d, path)
		}
	case <-time.After(patience):
		p.t.Fatalf("%q never came", d)
	}
}

func (r *fakeRelay) to(p *peer) Path {
	return Path{Relay: r.statement.ID(), Remote: netip.AddrPortFrom(p.addr, 0)}
}

func TestDatagramsOverARelay(t *testing.T) {
	for _, transport := range []string{relay.TransportUDP, relay.TransportTLS} {
		t.Run(transport, func(t *testing.T) {
			a := newAuthority(t)
			r := a.relay("eu-1")
			r.set(func() { r.deaf = transport == relay.TransportTLS })
			x, y := a.peer(nil, r), a.peer(nil, r)
			x.wait("x", connectedBy(transport))
			y.wait("y", connectedBy(transport))
			if err := x.Send(r.to(y), [][]byte{[]byte("d1"), []byte("d2")}); err != nil {
				t.Fatal(err)
			}
			y.want("d1", r.to(x))
			y.want("d2", r.to(x))
			long := &Burst{Path: r.to(y), Size: 1400}
			for i := range MaxSegments {
				d := bytes.Repeat([]byte{'d', byte(i)}, 700)
				if i == 40 {
					d = d[:100]
				}
				if long.Data = append(long.Data, d...); i == 40 {
					break
				}
			}
			if err := x.SendBurst(long); err != nil {
				t.Fatal(err)
			}
			for d := range long.Each {
				y.want(string(d), r.to(x))
			}
			if err := y.Send(r.to(x), [][]byte{[]byte("d back")}); err != nil {
				t.Fatal(err)
			}
			x.want("d back", r.to(y))
		})
	}
}

func TestWhatARelaySeesIsAnEndpoint(t *testing.T) {
	a := newAuthority(t)
	r := a.relay("eu-1")
	x := a.peer(nil, r)
	want := Endpoint{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), x.Port()), KindHost}
	s := x.wait("findings", func(s Status) bool { return s.NAT.Filtering != stun.Unknown })
	if len(s.Endpoints) != 1 || s.Endpoints[0] != want { // the reflexive one is the same
		t.Errorf("%+v", s.Endpoints)
	}
	if (s.NAT != NAT{Mapping: stun.None, Filtering: stun.None}) || s.Home != r.statement.ID() {
		t.Errorf("%+v", s)
	}
	select {
	case <-x.Changes():
	case <-time.After(patience):
		t.Error("nothing said that the status changed")
	}
	x.state.Hosts = []netip.Addr{netip.MustParseAddr("192.0.2.9")} // as behind a translator
	x.Set(x.state)
	s = x.wait("a translator", func(s Status) bool { return s.NAT.Mapping == stun.EndpointIndependent })
	if len(s.Endpoints) != 2 || s.Endpoints[1] != (Endpoint{want.Addr, KindReflexive}) {
		t.Errorf("%+v", s.Endpoints)
	}
}

// One relay is enough to tell whether a translator is hard, by its second port.
func TestOneRelayTellsHardFromEasy(t *testing.T) {
	for hard, want := range map[bool]stun.Behaviour{false: stun.EndpointIndependent, true: stun.AddressAndPortDependent} {
		a := newAuthority(t)
		r := a.relay("eu-1")
		r.set(func() { r.hard, r.outside = hard, 7 })
		x := a.peer(nil, r)
		s := x.wait("findings", func(s Status) bool { return s.NAT.Mapping != stun.Unknown })
		if s.NAT.Mapping != want {
			t.Errorf("hard %v: %+v", hard, s.NAT)
		}
	}
}

// A relay that sees the node elsewhere than before lets it ask anew, and one that goes on to see other addresses does not.
func TestAsksAnewWhereItIsSeenElsewhere(t *testing.T) {
	a := newAuthority(t)
	r := a.relay("eu-1")
	x := a.peer(nil, r)
	x.wait("findings", func(s Status) bool { return s.NAT.Mapping == stun.None })
	x.wait("home", connectedBy(relay.TransportUDP))
	r.set(func() { r.outside = 7 })
	x.relays.refresh() // the next bind comes at once
	x.wait("a translator", func(s Status) bool { return s.NAT.Mapping == stun.EndpointIndependent })
	var asked int
	r.set(func() { asked, r.outside = r.asked, 8 })
	x.relays.refresh()
	x.wait("the address", func(s Status) bool {
		return slices.Contains(s.Endpoints, Endpoint{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), x.Port()+8), KindReflexive})
	})
	r.set(func() {
		if r.asked != asked {
			t.Errorf("%d questions", r.asked-asked)
		}
	})
}

func TestHomeIsTheNearestAndMovesWhenItDies(t *testing.T) {
	a := newAuthority(t)
	near, far, farther := a.relay("near"), a.relay("far"), a.relay("farther")
	far.set(func() { far.delay = 100 * time.Millisecond })
	farther.set(func() { farther.delay = 250 * time.Millisecond })
	x := a.peer(nil, farther, far, near)
	x.wait("the nearest", func(s Status) bool { return s.Home == near.statement.ID() && connectedBy(relay.TransportUDP)(s) })
	for _, r := range []*fakeRelay{far, farther} {
		r.set(func() {
			if r.accepted != 0 {
				t.Errorf("%d connections to %s", r.accepted, r.statement.Name)
			}
		})
	}
	began := time.Now()
	near.close()
	x.wait("another", func(s Status) bool { return s.Home == far.statement.ID() && connectedBy(relay.TransportUDP)(s) })
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestRelayIsConnectedOnDemand(t *testing.T) {
	a := newAuthority(t)
	near, far := a.relay("near"), a.relay("far")
	far.set(func() { far.delay = 100 * time.Millisecond })
	x, y := a.peer(nil, near, far), a.peer(nil, far)
	x.wait("x", connectedBy(relay.TransportUDP))
	y.wait("y", connectedBy(relay.TransportUDP))
	if s := x.Status(); s.Home != near.statement.ID() {
		t.Fatalf("home %d", s.Home)
	}
	var sent [][]byte
	for i := range maxWaiting + 3 {
		sent = append(sent, []byte{'d', byte(i)})
	}
	if err := x.Send(far.to(y), sent); err != nil {
		t.Fatal(err)
	}
	got := 0
	for end := time.After(patience); got < maxWaiting; got++ {
		select {
		case b := <-y.got:
			if b.Path != far.to(x) {
				t.Fatalf("by %+v", b.Path)
			}
		case <-end:
			t.Fatalf("%d of %d came", got, maxWaiting)
		}
	}
	if err := x.Send(Path{Relay: 12345, Remote: far.to(y).Remote}, [][]byte{[]byte("d")}); !errors.Is(err, ErrNoRelay) {
		t.Errorf("an unknown relay: %v", err)
	}
}

// What a relay says of a peer that is not there comes out as the path to it; of words that nobody takes the newest are lost.
func TestGone(t *testing.T) {
	a := newAuthority(t)
	r := a.relay("one")
	x := a.peer(nil, r)
	x.wait("x", connectedBy(relay.TransportUDP))
	nobody := Path{Relay: r.statement.ID(), Remote: netip.AddrPortFrom(netip.MustParseAddr("fd00::7"), 0)}
	if err := x.Send(nobody, [][]byte{[]byte("d")}); err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-x.Gone():
		if p != nobody {
			t.Errorf("%+v", p)
		}
	case <-time.After(patience):
		t.Fatal("nobody said so")
	}
	for range 2 * maxGone {
		x.relays.gone(nobody) // does not wait
	}
	if n := len(x.Gone()); n != maxGone {
		t.Errorf("%d words wait", n)
	}
}

func TestRelayThatIsNoLongerKnownIsLeft(t *testing.T) {
	a := newAuthority(t)
	one, two := a.relay("one"), a.relay("two")
	x := a.peer(nil, one)
	x.wait("one", connectedBy(relay.TransportUDP))
	s := x.state
	s.Relays = a.member(two).Relays
	x.Set(s)
	x.wait("two", func(s Status) bool { return s.Home == two.statement.ID() && connectedBy(relay.TransportUDP)(s) })
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		left := 0
		one.set(func() { left = len(one.clients) })
		if left == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the old relay is still connected")
		}
	}
	x.Set(State{})
	x.wait("none", func(s Status) bool { return s.Home == 0 && len(s.Relays) == 0 })
}

func TestWithoutUDPTheNearestIsFoundByConnecting(t *testing.T) {
	a := newAuthority(t)
	far, near := a.relay("far"), a.relay("near")
	for _, r := range []*fakeRelay{far, near} {
		r.set(func() { r.deaf = true })
	}
	slow := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil && addr == far.tcp.Addr().String() {
			return &slowConn{c}, nil
		}
		return c, err
	}
	x := a.peer(slow, far, near)
	x.wait("the nearer", func(s Status) bool { return s.Home == near.statement.ID() && connectedBy(relay.TransportTLS)(s) })
}

// slowConn is far away.
type slowConn struct{ net.Conn }

func (c *slowConn) Write(b []byte) (int, error) {
	time.Sleep(60 * time.Millisecond)
	return c.Conn.Write(b)
}

func TestRelayedDatagramsDoNotAllocate(t *testing.T) {
	a := newAuthority(t)
	r := a.relay("eu-1")
	x := a.peer(nil, r)
	x.wait("x", connectedBy(relay.TransportUDP))
	c := x.relays.lines.Load().list[0].client.Load()
	burst := burstOf(Path{Relay: r.statement.ID(), Remote: netip.MustParseAddrPort("[fd00::1]:0")}, 40, 1000, 900)
	if n := testing.AllocsPerRun(200, func() { _ = x.SendBurst(burst) }); n != 0 {
		t.Errorf("%v allocations to send", n)
	}
	d := append(c.AppendHeader(nil, netip.MustParseAddr("fd00::2")), "sealed"...) // not for us
	if n := testing.AllocsPerRun(200, func() { x.Accept(d, Path{Remote: netip.MustParseAddrPort("127.0.0.1:9")}) }); n != 0 {
		t.Errorf("%v allocations to accept", n)
	}
}

func TestAcceptLeavesWhatItDoesNotKnow(t *testing.T) {
	u := open(t)
	from := Path{Remote: netip.MustParseAddrPort("127.0.0.1:9")}
	for _, d := range [][]byte{nil, {0}, []byte("hello"), {0x24}} {
		if inner, path, ok := u.Accept(d, from); ok || path != from || !bytes.Equal(inner, d) {
			t.Errorf("%x: %x, %v, %v", d, inner, path, ok)
		}
	}
	for _, d := range [][]byte{{relay.TypeData}, {relay.TypeControl, 1}, append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...)} {
		if inner, _, ok := u.Accept(d, from); ok || inner != nil {
			t.Errorf("%x: %x, %v", d, inner, ok)
		}
		if inner, _, ok := u.Accept(d, Path{Relay: 1}); ok || inner == nil {
			t.Errorf("%x through a relay: %x, %v", d, inner, ok)
		}
	}
}
