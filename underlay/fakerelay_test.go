// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// authority is a network with members and relays on loopback.
type authority struct {
	t   *testing.T
	key identity.AuthorityKey
}

func newAuthority(t *testing.T) *authority {
	return &authority{t, must(identity.NewAuthorityKey(rand.Reader))}
}

// member returns the state of a node that knows some relays.
func (a *authority) member(relays ...*fakeRelay) State {
	key := must(identity.NewAgentKey(rand.Reader))
	now := time.Now()
	pass := must(identity.RelayPass{
		Agent: key.Public(), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), Serial: 1,
	}.Sign(a.key))
	s := State{
		Network: a.key.Public(), Key: key, Pass: pass.Raw(), Prefix: identity.NetworkPrefix(a.key.Public()),
		Hosts: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	}
	for _, r := range relays {
		s.Relays = append(s.Relays, r.statement)
	}
	return s
}

func (a *authority) address(s *State) netip.Addr {
	return identity.Address(a.key.Public(), s.Key.Public())
}

// fakeRelay forwards what its clients send, over UDP and TLS, and answers STUN.
type fakeRelay struct {
	a         *authority
	key       identity.AgentKey
	statement identity.RelayStatement
	tcp       net.Listener
	udp, more *net.UDPConn
	group     sync.WaitGroup

	mu       sync.Mutex
	delay    time.Duration // of answers to STUN
	deaf     bool          // to UDP
	outside  uint16        // added to the ports that it sees
	hard     bool          // its second port sees another one
	asked    int           // by STUN
	clients  map[uint32]*fakeClient
	accepted int
	closed   bool
}

type fakeClient struct {
	conn  *tls.Conn
	addr  netip.Addr
	hello relay.Hello
	token relay.Token
	at    netip.AddrPort // bound
	told  bool           // that somebody is gone
}

var fakeSecret = relay.Secret{1}

func (a *authority) relay(name string) *fakeRelay {
	r := &fakeRelay{a: a, key: must(identity.NewAgentKey(rand.Reader)), clients: map[uint32]*fakeClient{}}
	certificate := must(relay.TLSCertificate(r.key, time.Now()))
	r.tcp = must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{relay.ALPN}, Certificates: []tls.Certificate{*certificate},
		ClientAuth: tls.RequireAnyClientCert,
	}))
	loopback := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	r.udp, r.more = must(net.ListenUDP("udp4", loopback)), must(net.ListenUDP("udp4", loopback))
	now := time.Now()
	r.statement = must(identity.RelayStatement{
		Key: r.key.Public(), Name: name, Addresses: []string{r.tcp.Addr().String()}, UDP: uint16(r.udp.LocalAddr().(*net.UDPAddr).Port),
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), Serial: 1,
	}.Sign(a.key))
	r.group.Go(r.listen)
	r.group.Go(func() { r.serveUDP(r.udp) })
	r.group.Go(func() { r.serveUDP(r.more) })
	a.t.Cleanup(r.close)
	return r
}

func (r *fakeRelay) close() {
	r.mu.Lock()
	r.closed = true
	for _, c := range r.clients {
		c.conn.NetConn().Close()
	}
	r.mu.Unlock()
	r.tcp.Close()
	r.udp.Close()
	r.more.Close()
	r.group.Wait()
}

func (r *fakeRelay) listen() {
	for {
		c, err := r.tcp.Accept()
		if err != nil {
			return
		}
		r.group.Go(func() { r.serve(c.(*tls.Conn)) })
	}
}

func (r *fakeRelay) serve(conn *tls.Conn) {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, relay.FrameBuffer)
	t, body, err := relay.ReadFrame(in)
	if err != nil || t != relay.FrameHello {
		return
	}
	h, err := relay.ParseHello(body)
	if err != nil {
		return
	}
	cs := conn.ConnectionState()
	c := &fakeClient{conn: conn, hello: h, addr: identity.Address(r.a.key.Public(), must(relay.PeerKey(&cs)))}
	rand.Read(c.token[:])
	r.mu.Lock()
	r.accepted++
	slot := uint32(r.accepted)
	r.clients[slot] = c
	if r.closed {
		conn.NetConn().Close()
	}
	conn.Write(relay.Welcome{UDP: r.statement.UDP, Slot: slot, Token: c.token, Secret: fakeSecret, MaxDatagram: relay.MaxDatagram}.Append(nil))
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.clients, slot)
	}()
	for {
		t, body, err := relay.ReadFrame(in)
		if err != nil {
			return
		}
		r.mu.Lock()
		switch t {
		case relay.FramePing:
			conn.Write(relay.AppendFrame(nil, relay.FramePong, body))
		case relay.FrameData:
			if to, d, ok := relay.ParseData(body); ok {
				r.forwardLocked(c.addr, to, d)
			}
		}
		r.mu.Unlock()
	}
}

func (r *fakeRelay) forwardLocked(from, to netip.Addr, d []byte) {
	found := false
	defer func() {
		for _, c := range r.clients {
			if gone := to.As16(); !found && c.addr == from && !c.told {
				c.told = true
				c.conn.Write(relay.AppendFrame(nil, relay.FrameGone, gone[:]))
			}
		}
	}()
	for _, c := range r.clients {
		if c.addr != to {
			continue
		}
		found = true
		if c.at.IsValid() {
			r.udp.WriteToUDPAddrPort(append(relay.Header{Slot: c.hello.Slot, Token: c.hello.Token, Address: from}.Append(nil), d...), c.at)
		} else {
			c.conn.Write(relay.AppendData(nil, from, d))
		}
	}
}

func (r *fakeRelay) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		if !r.deaf {
			r.datagramLocked(conn, buf[:n], from)
		}
		r.mu.Unlock()
	}
}

func (r *fakeRelay) datagramLocked(conn *net.UDPConn, d []byte, from netip.AddrPort) {
	if stun.Is(d) {
		r.answerLocked(conn, d, from)
		return
	}
	if h, ok := relay.ParseHeader(d); ok {
		if c := r.clients[h.Slot]; c != nil && c.token == h.Token && c.at == from {
			r.forwardLocked(c.addr, h.Address, d[relay.HeaderSize:])
		}
		return
	}
	m, ok := relay.ParseControl(d)
	c := r.clients[m.Slot]
	if !ok || c == nil || c.token != m.Token || !relay.VerifyControl(d, &fakeSecret) {
		return
	}
	m.Slot, m.Token, m.Op = c.hello.Slot, c.hello.Token, relay.OpChallenge
	if m.Cookie == [16]byte{7} {
		m.Op, m.Observed, c.at = relay.OpBound, r.seen(from), from
	}
	m.Cookie = [16]byte{7}
	r.udp.WriteToUDPAddrPort(m.Append(nil, &fakeSecret), from)
}

func (r *fakeRelay) answerLocked(conn *net.UDPConn, d []byte, from netip.AddrPort) {
	m := &pion.Message{Raw: append([]byte(nil), d...)}
	if m.Decode() != nil {
		return
	}
	r.asked++
	other := r.more.LocalAddr().(*net.UDPAddr)
	seen := r.seen(from)
	if conn == r.more && r.hard {
		seen = netip.AddrPortFrom(seen.Addr(), seen.Port()+1)
	}
	answer := pion.MustBuild(pion.NewTransactionIDSetter(m.TransactionID), pion.BindingSuccess,
		&pion.XORMappedAddress{IP: seen.Addr().AsSlice(), Port: int(seen.Port())}, &pion.OtherAddress{IP: net.IPv4zero, Port: other.Port})
	if m.Contains(pion.AttrChangeRequest) {
		conn = r.more
	}
	if r.delay == 0 {
		conn.WriteToUDPAddrPort(answer.Raw, from)
		return
	}
	time.AfterFunc(r.delay, func() { conn.WriteToUDPAddrPort(answer.Raw, from) })
}

// seen is where the relay sees somebody.
func (r *fakeRelay) seen(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), a.Port()+r.outside)
}

// set changes how the relay behaves.
func (r *fakeRelay) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}
