// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/underlay"
)

// Control messages travel in records with noise.FlagControl. The first byte is the type; integers are big-endian:
//
//	(empty)                        keepalive: nothing is answered
//	1  ping       id[8] …          answered by a pong with the same id, along the path on which it came
//	2  pong       id[8] from[18]   from: the address that the ping came from; zeros over a relay. It is cut to the ping's length
//	3  refused    code[1] quote    a packet was not allowed: a policy.Verdict, then the packet's first bytes, at most maxQuote
//	4  closed     reason[1]        the sender uses none of its sessions with the receiver any more
//	5  candidates n[1] m[1] n×address[18] m×relay[4] nat[1]
//	                               where the sender may be reached: addresses, identity.RelayIDs, and its paths.NAT
//	6  punch      flags[1] address[16]
//	                               asks to ping many ports of this address of the sender; flags are 0
//
// An address is 16 bytes, IPv4 mapped into IPv6, and a port of 2. Bytes after the listed ones, other types and other codes are
// ignored, so that the messages can grow.
const (
	messagePing       = 1
	messagePong       = 2
	messageRefused    = 3
	messageClosed     = 4
	messageCandidates = 5
	messagePunch      = 6

	addrPortSize = 18
	// pongSize is also that of our pings: an answer is not larger than its question.
	pongSize   = 1 + 8 + addrPortSize
	maxQuote   = 128
	maxMessage = 3 + 12*addrPortSize + 4*4 + 1
)

// Reasons in a closed message.
const (
	closedOther      = 0
	closedEnded      = 1
	closedNotTrusted = 2
	closedRevoked    = 3
)

func closedMessage(r Reason) []byte {
	switch r {
	case ReasonClosed:
		return []byte{messageClosed, closedEnded}
	case ReasonNotTrusted:
		return []byte{messageClosed, closedNotTrusted}
	case ReasonRevoked:
		return []byte{messageClosed, closedRevoked}
	}
	return []byte{messageClosed, closedOther}
}

func pingMessage(id uint64) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{messagePing}, id), make([]byte, addrPortSize)...)
}

// pongMessage answers a ping that came along a path.
func pongMessage(ping []byte, path *underlay.Path) []byte {
	b := append(make([]byte, 0, pongSize), messagePong)
	b = append(b, ping[1:9]...)
	if path.Relay == 0 {
		b = appendAddrPort(b, path.Remote)
	} else {
		b = append(b, make([]byte, addrPortSize)...)
	}
	return b[:min(len(b), len(ping))]
}

func punchMessage(a netip.Addr) []byte {
	b := a.As16()
	return append([]byte{messagePunch, 0}, b[:]...)
}

// message is a control message on its way to control. Without a body it says that the newest record came along the path.
type message struct {
	session *session
	path    underlay.Path
	body    []byte
	at      time.Duration // when it came
}

// letter is a sealed control message on its way out.
type letter struct {
	path   underlay.Path
	record []byte
}

// sealMessage seals a control message; false if that can't be. nil is a keepalive.
func (o *Overlay) sealMessage(s *session, path *underlay.Path, body []byte, wantsAnswer bool, now moment) (letter, bool) {
	record, err := s.noise.Seal(make([]byte, 0, len(body)+noise.Overhead), noise.FlagControl, body)
	if err != nil {
		o.counters.drop(DropSeal)
		return letter{}, false
	}
	s.link.sent(now.at, wantsAnswer, false)
	return letter{*path, record}, true
}

func (o *Overlay) post(l letter) {
	if err := o.under.Send(l.path, [][]byte{l.record}); err != nil {
		o.counters.drop(DropSend)
	}
}

// sendMessage is how the loops send a control message: at once.
func (o *Overlay) sendMessage(s *session, path *underlay.Path, body []byte, now moment) {
	if l, ok := o.sealMessage(s, path, body, false, now); ok {
		o.post(l)
	}
}

// writeLocked is how control does it: the message leaves when the lock is released, so that nobody waits for the kernel.
func (o *Overlay) writeLocked(s *session, path *underlay.Path, body []byte, wantsAnswer bool, now moment) {
	if l, ok := o.sealMessage(s, path, body, wantsAnswer, now); ok {
		o.control.letters = append(o.control.letters, l)
	}
}

// unlock releases the lock and sends what was written under it.
func (o *Overlay) unlock() {
	letters := o.control.letters
	o.control.letters = nil
	o.mu.Unlock()
	for _, l := range letters {
		o.post(l)
	}
}

// receiveMessage is called by the loops: a ping is answered at once, all else is for control.
func (o *Overlay) receiveMessage(s *session, path *underlay.Path, body []byte, now moment) {
	switch {
	case len(body) == 0:
		return
	case body[0] == messagePing && len(body) < 9:
		return
	case body[0] == messagePing:
		o.sendMessage(s, path, pongMessage(body, path), now)
		if sameWay(s.path.Load(), path) {
			return
		}
		body = body[:9] // that somebody asks from there is for control
	case len(body) > maxMessage:
		body = body[:maxMessage]
	}
	select {
	case o.messages <- message{session: s, path: *path, body: bytes.Clone(body), at: now.at}:
	default:
		o.counters.drop(DropMessage)
	}
}

// sameWay is paths.Same in few instructions; an address in another form counts as another.
func sameWay(a, b *underlay.Path) bool {
	return a.Remote == b.Remote && a.Relay == b.Relay && a.Socket == b.Socket
}

// refuse tells the peer that its packet was not allowed, so that its program gets an error at once.
func (o *Overlay) refuse(s *session, v policy.Verdict, p []byte, info *packet.Info, now moment) {
	if !packet.MayAnswer(p, info) || !o.limiter.Allow(s.link.in.Source(), now.at) {
		return
	}
	body := append([]byte{messageRefused, byte(v)}, p[:min(len(p), maxQuote)]...)
	o.sendMessage(s, s.path.Load(), body, now)
}

// handleMessage is called by control.
func (o *Overlay) handleMessage(m message) {
	now := o.now()
	o.mu.Lock()
	defer o.unlock()
	l := m.session.link
	if m.session != l.current.Load() && m.session != l.pending && m.session != l.previous {
		return // it ended meanwhile
	}
	switch {
	case len(m.body) == 0:
		l.paths.Heard(now.at, m.path)
		o.actLocked(l, now)
	case m.body[0] == messagePing:
		l.paths.Pinged(now.at, m.path)
		o.actLocked(l, now)
	case m.body[0] == messagePong && len(m.body) >= 9:
		o.pongLocked(l, &m, now)
	case m.body[0] == messageCandidates:
		o.toldLocked(l, m.body, now)
	case m.body[0] == messagePunch && len(m.body) >= 18:
		o.punchedLocked(l, netip.AddrFrom16([16]byte(m.body[2:])), now)
	case m.body[0] == messageRefused && len(m.body) >= 2:
		o.refusedLocked(l, m.body[1], m.body[2:], now)
	case m.body[0] == messageClosed && len(m.body) >= 2:
		o.closedLocked(l, m.body[1], now)
	}
}

// refusedLocked gives the program that sent the quoted packet its error, in the name of the peer. The quote comes from
// the peer: only its own refusals of our packets to it count.
func (o *Overlay) refusedLocked(l *link, code byte, quote []byte, now moment) {
	l.refusal.code, l.refusal.at = refusalCode(code), now.at
	if len(quote) < packet.HeaderSize+8 || packet.AddressesOf(quote) != l.out {
		o.counters.drop(DropMessage)
		return
	}
	whole := bytes.Clone(quote)
	binary.BigEndian.PutUint16(whole[4:], uint16(len(whole)-packet.HeaderSize)) // as if it had not been cut
	var info packet.Info
	if packet.Parse(whole, &info) != nil {
		o.counters.drop(DropMessage)
		return
	}
	o.control.answers.deny(quote, &info, l.in.Source(), now)
}

// closedLocked ends the sessions that the peer has ended.
func (o *Overlay) closedLocked(l *link, code byte, now moment) {
	reason := ReasonClosed
	if code == closedNotTrusted || code == closedRevoked {
		reason = ReasonNotTrusted
		l.refused = now.at + refusedFor
		l.refusal.code, l.refusal.at = string(ReasonNotTrusted), now.at
		if code == closedRevoked {
			l.refusal.code = string(ReasonRevoked)
		}
	}
	o.downLocked(l, reason)
	o.scheduleLocked(l, now.at)
}
