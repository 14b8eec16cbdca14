// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
)

// Control messages travel in records with noise.FlagControl. The first byte is the type; integers are big-endian:
//
//	(empty)                      keepalive: nothing is answered
//	1  ping     id[8]            answered by a pong with the same id
//	2  pong     id[8]
//	3  refused  code[1] quote    a packet was not allowed: a policy.Verdict, then the packet's first bytes, at most maxQuote
//	4  closed   reason[1]        the sender uses none of its sessions with the receiver any more
//
// Bytes after the listed ones, other types and other codes are ignored, so that the messages can grow.
const (
	messagePing    = 1
	messagePong    = 2
	messageRefused = 3
	messageClosed  = 4

	maxQuote   = 128
	maxMessage = 2 + maxQuote
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

func idMessage(typ byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{typ}, id)
}

// message is a control message on its way to control.
type message struct {
	session *session
	body    []byte
	at      time.Duration // when it came
}

// sendMessage seals and sends a control message. nil is a keepalive.
func (o *Overlay) sendMessage(s *session, body []byte, wantsAnswer bool, now moment) {
	record, err := s.noise.Seal(make([]byte, 0, len(body)+noise.Overhead), noise.FlagControl, body)
	if err != nil {
		o.counters.drop(DropSeal)
		return
	}
	if err := o.under.Send(*s.path.Load(), [][]byte{record}); err != nil {
		o.counters.drop(DropSend)
	}
	s.link.sent(now.at, wantsAnswer, false)
}

// receiveMessage is called by the loops: a ping is answered at once, all else is for control.
func (o *Overlay) receiveMessage(s *session, body []byte, now moment) {
	switch {
	case len(body) == 0:
	case body[0] == messagePing && len(body) >= 9:
		o.sendMessage(s, idMessage(messagePong, binary.BigEndian.Uint64(body[1:])), false, now)
	default:
		if len(body) > maxMessage {
			body = body[:maxMessage]
		}
		select {
		case o.messages <- message{s, bytes.Clone(body), now.at}:
		default:
			o.counters.drop(DropMessage)
		}
	}
}

// refuse tells the peer that its packet was not allowed, so that its program gets an error at once.
func (o *Overlay) refuse(s *session, v policy.Verdict, p []byte, info *packet.Info, now moment) {
	if !packet.MayAnswer(p, info) || !o.limiter.Allow(s.link.in.Source(), now.at) {
		return
	}
	body := append([]byte{messageRefused, byte(v)}, p[:min(len(p), maxQuote)]...)
	o.sendMessage(s, body, false, now)
}

// handleMessage is called by control.
func (o *Overlay) handleMessage(m message) {
	now := o.now()
	o.mu.Lock()
	defer o.mu.Unlock()
	l := m.session.link
	switch {
	case m.body[0] == messagePong && len(m.body) >= 9:
		o.pongLocked(l, m.session, binary.BigEndian.Uint64(m.body[1:]), m.at)
	case m.body[0] == messageRefused && len(m.body) >= 2:
		o.refusedLocked(l, m.body[1], m.body[2:], now)
	case m.body[0] == messageClosed && len(m.body) >= 2:
		o.closedLocked(l, m.session, m.body[1], now)
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
func (o *Overlay) closedLocked(l *link, s *session, code byte, now moment) {
	if s != l.current.Load() && s != l.pending && s != l.previous {
		return // an older one, or one that ended already
	}
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
