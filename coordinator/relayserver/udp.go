// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/pilot-protocol/pilot/underlay/relay"
)

const (
	maxBurst    = 65507 // the largest UDP payload over IPv4
	maxSegments = 64    // that Linux cuts of one message, in older kernels
	batch       = 32    // messages that a loop takes at once
	// cookieLife is how long a challenge can be answered, at least; twice as long at most.
	cookieLife = time.Minute
	// unboundPause is how often a client is told that its address is not bound.
	unboundPause = 200 * time.Millisecond
)

// endpoint is an underlay address that a client has proved to be its own.
type endpoint struct {
	remote netip.AddrPort
	local  netip.Addr // our address that it talks to; invalid: the kernel's choice
}

// message is one or more datagrams that came from one place one after another.
type message struct {
	data   []byte // of capacity messageSize
	size   int    // of each datagram but the last, which may be shorter
	remote netip.AddrPort
	local  netip.Addr
	class  uint8 // octet of the outer header with DSCP and ECN bits
}

const messageSize = 65535

// burst is datagrams to one endpoint that leave with one call of the kernel. They stay where they are.
type burst struct {
	to     *endpoint
	parts  [maxSegments][]byte // each of whole datagrams
	n      int
	count  int // datagrams
	total  int // bytes
	size   int // of each datagram but the last
	class  uint8
	closed bool // the last datagram is shorter: none may follow
}

// fits reports whether datagrams of a size could go along.
func (b *burst) fits(to *endpoint, size int, class uint8) bool {
	return b.n == 0 || b.to == to && b.size >= size && b.class == class && !b.closed && b.n < maxSegments &&
		b.count < maxSegments && b.total+size <= maxBurst
}

// add takes the datagrams along, of which fits was asked with the length of the first. Their whole must fit too.
func (b *burst) add(to *endpoint, d []byte, size int, class uint8) {
	if b.n == 0 {
		b.to, b.size, b.class, b.count, b.total, b.closed = to, size, class, 0, 0, false
	}
	b.parts[b.n] = d
	b.n++
	b.count += (len(d) + size - 1) / size
	b.total += len(d)
	b.closed = len(d)%b.size != 0
}

// room reports whether datagrams of len bytes in all could go along.
func (b *burst) room(length, size int) bool {
	return b.n == 0 || (b.size == size || length < b.size) && b.total+length <= maxBurst && b.count+(length+size-1)/size <= maxSegments
}

// udp is the relay's UDP port, with a loop for each socket.
type udp struct {
	port  uint16
	loops []*loop
	once  sync.Once
	v4    *socket // for what leaves; either may be nil, not both
	v6    *socket
	other *udp // the second port, that only answers STUN; and the other way round; nil: there is none
}

// loop takes datagrams from one socket and sends them on, one batch after another.
type loop struct {
	server *Server
	udp    *udp // the one of its socket
	probe  bool // it only answers STUN
	socket *socket
	in     [batch]message
	out    burst
	last   sender // of the datagram before
	answer []byte
	small  burst // for answers
	asker  endpoint
}

// sender is what was found out about a header: those that follow are mostly the same.
type sender struct {
	header [relay.HeaderSize]byte
	from   *client
	to     *client
}

func openUDP(s *Server, host string, ports []uint16) (*udp, error) {
	var failures error
	for _, port := range append(ports[:len(ports):len(ports)], 0) {
		u, err := openPort(host, port)
		if err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		u.serve(s, u, false)
		// A second port lets clients find out how their translators and filters behave. The relay works without it.
		for _, second := range []uint16{u.port + 1, 0} {
			if more, err := openPort(host, second); err == nil {
				u.other, more.other = more, u
				more.serve(s, u, true)
				break
			}
		}
		return u, nil
	}
	return nil, failures
}

// serve makes loops for the sockets of u, and gives them to the relay's port.
func (u *udp) serve(s *Server, main *udp, probe bool) {
	for _, sock := range []*socket{u.v4, u.v6} {
		if sock == nil {
			continue
		}
		l := &loop{server: s, socket: sock, udp: u, probe: probe}
		for i := range l.in {
			l.in[i].data = make([]byte, 0, messageSize)
		}
		main.loops = append(main.loops, l)
	}
}

// openPort opens a port for both families, or for the one that the host or the address has.
func openPort(host string, port uint16) (*udp, error) {
	var addr netip.Addr
	if host != "" {
		var err error
		if addr, err = netip.ParseAddr(host); err != nil {
			return nil, fmt.Errorf("relayserver: the address to take UDP on: %w", err)
		}
		addr = addr.Unmap()
	}
	any := !addr.IsValid() || addr.IsUnspecified()
	u := &udp{port: port}
	var err4, err6 error
	if any || addr.Is4() {
		at := netip.IPv4Unspecified()
		if !any {
			at = addr
		}
		if u.v4, err4 = openSocket(netip.AddrPortFrom(at, port)); err4 == nil {
			u.port = u.v4.port()
		} else if errors.Is(err4, syscall.EADDRINUSE) {
			return nil, err4
		}
	}
	if any || addr.Is6() {
		at := netip.IPv6Unspecified()
		if !any {
			at = addr
		}
		if u.v6, err6 = openSocket(netip.AddrPortFrom(at, u.port)); err6 == nil {
			u.port = u.v6.port()
		}
	}
	if u.v4 == nil && u.v6 == nil || errors.Is(err6, syscall.EADDRINUSE) {
		u.close()
		return nil, errors.Join(err4, err6)
	}
	return u, nil
}

// close ends the loops.
func (u *udp) close() {
	if u == nil {
		return
	}
	u.once.Do(func() {
		u.closeSockets()
		if u.other != nil {
			u.other.closeSockets()
		}
	})
}

func (u *udp) closeSockets() {
	for _, s := range []*socket{u.v4, u.v6} {
		if s != nil {
			_ = s.close() // there is nothing left that could be lost
		}
	}
}

// send sends a burst and empties it. What can't be sent is lost, as it would be on any way.
func (u *udp) send(b *burst) bool {
	if b.n == 0 {
		return true
	}
	defer func() {
		clear(b.parts[:b.n])
		b.n = 0
	}()
	if u == nil {
		return false
	}
	s := u.v6
	if b.to.remote.Addr().Is4() {
		s = u.v4
	}
	return s != nil && s.send(b) == nil
}

// run forwards until the socket is closed.
func (l *loop) run() error {
	for {
		n, err := l.socket.receive(l.in[:])
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// An error of the network, such as one about an earlier datagram. One of the socket comes again and again.
			l.server.counts.errors.Add(1)
			time.Sleep(time.Millisecond)
			continue
		}
		now := time.Now()
		for i := range n {
			l.take(&l.in[i], now)
		}
		l.flush()
	}
}

func (l *loop) flush() {
	if n := l.out.count; l.out.n > 0 && !l.server.udp.send(&l.out) {
		l.server.counts.unsent.Add(uint64(n))
	}
}

// take deals with a message: it sends on the datagrams in it that follow each other with the same header as one.
func (l *loop) take(m *message, now time.Time) {
	for d := m.data; len(d) > 0; {
		n := min(m.size, len(d))
		first := d[:n:n]
		if first[0] != relay.TypeData || l.probe {
			l.other(m, first, now)
			d = d[n:]
			continue
		}
		run := n
		for n > relay.HeaderSize && run < len(d) {
			next := d[run:min(run+m.size, len(d))]
			if len(next) <= relay.HeaderSize || !bytes.Equal(next[:relay.HeaderSize], first[:relay.HeaderSize]) {
				break
			}
			run += len(next)
		}
		l.data(m, d[:run:run], now)
		d = d[run:]
	}
}

// data sends on datagrams that have the same header.
func (l *loop) data(m *message, d []byte, now time.Time) {
	s := l.server
	count := (len(d) + m.size - 1) / m.size
	if m.size > relay.HeaderSize+relay.MaxDatagram || !l.lookup(d) {
		s.counts.unknown.Add(uint64(count))
		return
	}
	from, to := l.last.from, l.last.to
	if ep := from.udp.Load(); ep == nil || ep.remote != m.remote {
		s.counts.unknown.Add(uint64(count))
		l.unbound(from, m, now)
		return
	}
	got := from.meter.take(now.UnixNano(), len(d), m.size)
	if got < len(d) {
		s.counts.limited.Add(uint64((len(d) - got + m.size - 1) / m.size))
		d = d[:got]
		if count = (got + m.size - 1) / m.size; count == 0 {
			return
		}
	}
	if to == nil || to == from {
		from.gone(netip.AddrFrom16([16]byte(d[16:relay.HeaderSize])), now)
		return
	}
	s.counts.datagrams.Add(uint64(count))
	s.counts.bytes.Add(uint64(len(d)))
	ep := to.udp.Load()
	if ep == nil {
		if n := to.queue.Data(from.slot, from.addr, d, m.size, relay.HeaderSize); n < count {
			s.counts.full.Add(uint64(count - n))
		}
		return
	}
	header := to.theirs
	header.Address = from.addr
	for at := 0; at < len(d); at += m.size {
		header.Put(d[at:])
	}
	size := min(m.size, len(d))
	if !l.out.fits(ep, size, m.class) || !l.out.room(len(d), size) {
		l.flush()
	}
	l.out.add(ep, d, size, m.class)
}

// lookup finds out whose datagrams these are and whom they are for.
func (l *loop) lookup(d []byte) bool {
	if l.last.from != nil && bytes.Equal(d[:min(len(d), relay.HeaderSize)], l.last.header[:]) && len(d) > relay.HeaderSize {
		from, to := l.last.from, l.last.to
		if l.server.table.slots[from.slot].Load() == from && to != nil && l.server.table.slots[to.slot].Load() == to {
			return true
		}
	}
	l.last.from = nil
	h, ok := relay.ParseHeader(d)
	if !ok {
		return false
	}
	from := l.server.table.slot(h.Slot, h.Token)
	if from == nil {
		return false
	}
	l.last = sender{header: [relay.HeaderSize]byte(d), from: from, to: l.server.table.find(h.Address)}
	return true
}

// other deals with what is no data.
func (l *loop) other(m *message, d []byte, now time.Time) {
	switch {
	case d[0] == relay.TypeControl && !l.probe:
		l.control(m, d, now)
	case isSTUN(d):
		l.stun(m, d)
	default:
		l.server.counts.unknown.Add(1)
	}
}

// stun answers a binding request, from the other port if it wants that and there is one.
func (l *loop) stun(m *message, d []byte) {
	var second netip.AddrPort
	from := l.udp
	if other := l.udp.other; other != nil {
		second = netip.AddrPortFrom(asked(m), other.port)
	}
	if changesPort(d) {
		if from = l.udp.other; from == nil {
			return
		}
	}
	if l.answer = answerSTUN(l.answer[:0], d, m.remote, second); len(l.answer) > 0 {
		l.server.counts.stun.Add(1)
		l.replyFrom(from, m, d)
	}
}

// asked is our address that a message came to. Where the system does not tell it is the unspecified one: who asks knows it
// better anyhow.
func asked(m *message) netip.Addr {
	switch {
	case m.local.IsValid():
		return m.local
	case m.remote.Addr().Is4():
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// reply sends l.answer to where a question came from. It is never longer.
func (l *loop) reply(m *message, question []byte) { l.replyFrom(l.udp, m, question) }

func (l *loop) replyFrom(u *udp, m *message, question []byte) {
	if len(l.answer) > len(question) {
		return
	}
	l.asker = endpoint{remote: m.remote, local: m.local}
	l.small.add(&l.asker, l.answer, len(l.answer), 0)
	u.send(&l.small)
}

// control deals with a bind. Everything else is not for a relay.
func (l *loop) control(m *message, d []byte, now time.Time) {
	s := l.server
	ask, ok := relay.ParseControl(d)
	if !ok || ask.Op != relay.OpBind {
		s.counts.unknown.Add(1)
		return
	}
	c := s.table.slot(ask.Slot, ask.Token)
	if c == nil || !relay.VerifyControl(d, &c.secret) {
		s.counts.unknown.Add(1)
		return
	}
	reply := relay.Control{Slot: c.theirs.Slot, Token: c.theirs.Token, ID: ask.ID, Observed: m.remote}
	here := endpoint{remote: m.remote, local: m.local}
	ep := c.udp.Load()
	switch {
	case ep != nil && *ep == here:
		reply.Op = relay.OpBound
	case ep != nil && ep.remote == here.remote, s.checkCookie(ask.Cookie, ask.Slot, m.remote, now):
		c.udp.Store(&here)
		reply.Op = relay.OpBound
	default:
		reply.Op = relay.OpChallenge
		reply.Cookie = s.cookie(ask.Slot, m.remote, now.UnixNano()/int64(cookieLife))
	}
	l.answer = reply.Append(l.answer[:0], &c.secret)
	l.reply(m, d)
}

// unbound tells a client that the address that its data comes from is not bound, so that it binds it at once.
func (l *loop) unbound(c *client, m *message, now time.Time) {
	last, n := c.unboundAt.Load(), now.UnixNano()
	if m.size < relay.ControlSize || n-last < int64(unboundPause) || !c.unboundAt.CompareAndSwap(last, n) {
		return
	}
	l.answer = relay.Control{Op: relay.OpUnbound, Slot: c.theirs.Slot, Token: c.theirs.Token}.Append(l.answer[:0], &c.secret)
	l.reply(m, m.data[:m.size])
}

// cookie is what somebody at an address must send back in order to be believed to be there.
func (s *Server) cookie(slot uint32, from netip.AddrPort, period int64) (cookie [16]byte) {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 32), uint64(period))
	b = binary.BigEndian.AppendUint32(b, slot)
	a := from.Addr().As16()
	b = append(b, a[:]...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	mac := hmac.New(sha256.New, s.cookies[:])
	mac.Write(b)
	copy(cookie[:], mac.Sum(nil))
	return cookie
}

func (s *Server) checkCookie(c [16]byte, slot uint32, from netip.AddrPort, now time.Time) bool {
	if c == [16]byte{} {
		return false
	}
	period := now.UnixNano() / int64(cookieLife)
	for _, p := range []int64{period, period - 1} {
		if want := s.cookie(slot, from, p); hmac.Equal(want[:], c[:]) {
			return true
		}
	}
	return false
}
