// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// place is a relay that runs, with the authority that it serves.
type place struct {
	*Server
	authority identity.AuthorityKey
	statement identity.RelayStatement
}

func newPlace(t testing.TB, change func(*Options)) *place {
	t.Helper()
	p := &place{authority: must(identity.NewAuthorityKey(rand.Reader))}
	o := Options{
		Network: p.authority.Public(), Key: must(identity.NewAgentKey(rand.Reader)), Host: "127.0.0.1",
		Listener: must(net.Listen("tcp", "127.0.0.1:0")),
	}
	if change != nil {
		change(&o)
	}
	p.Server = must(New(o))
	p.statement = must(identity.RelayStatement{
		Key: o.Key.Public(), Name: "test", Addresses: []string{o.Listener.Addr().String()}, UDP: p.UDPPort(),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), Serial: 1,
	}.Sign(p.authority))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *place) pass(key identity.AgentKey, serial uint64, life time.Duration) []byte {
	return must(identity.RelayPass{
		Agent: key.Public(), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life), Serial: serial,
	}.Sign(p.authority)).Raw()
}

// packet is something that a member received.
type packet struct {
	from netip.Addr
	data string
	udp  bool
}

// member is a client of the relay, with a UDP socket of its own.
type member struct {
	*relay.Client
	key  identity.AgentKey
	addr netip.Addr
	conn *net.UDPConn
	got  chan packet
	gone chan netip.Addr
	mute atomic.Bool // UDP is lost on its way
	end  func()
}

// join connects a new member and waits until it is, with UDP unless that is off.
func (p *place) join(t testing.TB, udp bool) *member {
	t.Helper()
	return p.joinAs(t, must(identity.NewAgentKey(rand.Reader)), udp)
}

func (p *place) joinAs(t testing.TB, key identity.AgentKey, udp bool) *member {
	t.Helper()
	m := p.start(t, key, p.pass(key, 1, time.Hour), udp)
	want := relay.TransportTLS
	if udp {
		want = relay.TransportUDP
	}
	m.until(t, want, func(s relay.Status) bool { return s.Transport == want })
	return m
}

// start starts a member and doesn't wait.
func (p *place) start(t testing.TB, key identity.AgentKey, pass []byte, udp bool) *member {
	t.Helper()
	m := &member{
		key: key, addr: identity.Address(p.authority.Public(), key.Public()), got: make(chan packet, 1000), gone: make(chan netip.Addr, 100),
		conn: must(net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})),
	}
	o := relay.Options{
		Statement: p.statement, Network: p.authority.Public(), Key: m.key, Pass: func() []byte { return pass },
		Deliver: func(from netip.Addr, d []byte) { m.put(packet{from, string(d), false}) },
		Gone: func(a netip.Addr) {
			select {
			case m.gone <- a:
			default:
			}
		},
	}
	if udp {
		o.SendUDP = func(to netip.AddrPort, d []byte) error {
			if m.mute.Load() {
				return nil
			}
			_, err := m.conn.WriteToUDPAddrPort(d, to)
			return err
		}
	}
	m.Client = must(relay.New(o))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- m.Run(ctx) }()
	go func() { ended <- m.receive() }()
	m.end = func() {
		cancel()
		_ = m.conn.Close()
		for range cap(ended) {
			<-ended
		}
		m.end = func() {}
	}
	t.Cleanup(func() { m.end() })
	return m
}

func (m *member) put(p packet) {
	select {
	case m.got <- p:
	default:
	}
}

func (m *member) receive() error {
	buf := make([]byte, 65536)
	for {
		n, from, err := m.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		if m.mute.Load() {
			continue
		}
		if inner, source, ok := m.Accept(buf[:n], from); ok {
			m.put(packet{source, string(inner), true})
		}
	}
}

// send sends a datagram as a node would: over UDP where there is a way.
func (m *member) send(t testing.TB, to netip.Addr, d string) {
	t.Helper()
	if way, ok := m.UDP(); ok {
		if _, err := m.conn.WriteToUDPAddrPort(append(m.AppendHeader(nil, to), d...), way); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := m.SendTLS(to, []byte(d)); err != nil {
		t.Fatal(err)
	}
}

// until waits for a status.
func (m *member) until(t testing.TB, what string, fits func(relay.Status) bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !fits(m.Status()); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s: %+v", what, m.Status())
		}
	}
}

// next is what comes next.
func (m *member) next(t testing.TB) packet {
	t.Helper()
	select {
	case p := <-m.got:
		return p
	case <-time.After(5 * time.Second):
		t.Fatal("nothing came")
		return packet{}
	}
}

// nothing fails if anything came before a datagram that other sends now.
func (m *member) nothing(t testing.TB, other *member) {
	t.Helper()
	other.send(t, m.addr, "the last")
	if p := m.next(t); p.data != "the last" {
		t.Errorf("%q came from %v", p.data, p.from)
	}
}

func filled(n int, b byte) string { return string(bytes.Repeat([]byte{b}, n)) }
