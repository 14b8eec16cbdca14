// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"crypto/mlkem"
	"fmt"
	"net/netip"
	"time"

	flynn "github.com/flynn/noise"

	"github.com/pilot-protocol/pilot/identity"
)

// receiveInitiation takes in a fragment of message 1. Nothing is computed for a fragment without a right mac1, and
// under load nothing for a source that did not prove its address.
func (m *Machine) receiveInitiation(now time.Time, f *fragment, from netip.AddrPort) (Result, error) {
	key := m.locals.Load().find(f)
	if key == nil {
		return Result{}, ErrMAC
	}
	whole, reply, err := m.collectInitiation(now, f, from, key)
	if err != nil {
		return Result{Reply: reply}, err
	}
	if whole == nil {
		return Result{}, ErrIncomplete
	}
	return m.respond(now, whole)
}

// collectInitiation returns the whole message if this fragment was the last, or a cookie reply with ErrCookie.
func (m *Machine) collectInitiation(now time.Time, f *fragment, from netip.AddrPort, key *localKey) (*partial, [][]byte, error) {
	if !f.suite.in(key.suites) {
		return nil, nil, ErrSuite
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.load.arrive(now) {
		if err := m.cookies.turn(now); err != nil {
			return nil, nil, err
		}
		if !m.cookies.proves(f, from) {
			reply, err := m.cookies.appendReply(make([]byte, 0, cookieReply), f, from, key.cookie)
			if err != nil {
				return nil, nil, err
			}
			return nil, [][]byte{reply}, ErrCookie
		}
		if !m.load.share(now, from) {
			return nil, nil, ErrBusy
		}
	}
	return m.partials.add(f, from, key, now), nil, nil
}

// caller is what a first message told, all of it verified.
type caller struct {
	initiationPayload
	peer
	state *flynn.HandshakeState // ready to write message 2, but for the psk
	who   stampKey
}

// respond reads message 1 and, if nothing speaks against its sender, makes the session and the answer.
func (m *Machine) respond(now time.Time, whole *partial) (Result, error) {
	local := whole.key
	static := keyPair(local.key)
	defer clear(static.Private)
	c, err := m.readInitiation(now, whole, static)
	if err != nil {
		return Result{}, err
	}
	kemKey, err := mlkem.NewEncapsulationKey768(c.kemKey)
	if err != nil {
		return Result{}, fmt.Errorf("%w: ml-kem key: %w", ErrMalformed, err)
	}
	shared, text := kemKey.Encapsulate()
	defer clear(shared)
	if err := setPSK(c.state, shared, c.kemKey, text); err != nil {
		return Result{}, err
	}
	index, err := m.claim(c.who, stamp{c.timestamp, c.peer.statement.NotAfter.Add(ClockSkew), c.peer.statement.Agent})
	if err != nil {
		return Result{}, err
	}
	message, receive, send, err := c.state.WriteMessage(text, appendAnswerPayload(nil, index, local.credentials))
	clear(c.state.LocalEphemeral().Private)
	if err != nil {
		m.Release(index)
		return Result{}, fmt.Errorf("noise: message 2: %w", err)
	}
	reply := answerDatagrams(whole, index, message, c.answerKey[:])
	s := &Session{
		local: index, remote: whole.sender, carried: len(reply[0]), created: now,
		agent: local.agent, certificate: c.peer.certificate, statement: c.peer.statement,
	}
	if err := s.setKeys(whole.suite, send, receive); err != nil {
		m.Release(index)
		return Result{}, err
	}
	return Result{Session: s, Reply: reply}, nil
}

// readInitiation decrypts message 1 and checks all that can speak against it.
func (m *Machine) readInitiation(now time.Time, whole *partial, static flynn.DHKey) (c caller, err error) {
	local := whole.key
	if c.state, err = handshake(whole.suite, m.rand, prologue(whole.suite, m.network, local.agent), static, nil); err != nil {
		return c, fmt.Errorf("noise: %w", err)
	}
	plain, _, _, err := c.state.ReadMessage(nil, whole.body)
	if err != nil {
		return c, fmt.Errorf("%w: message 1: %w", ErrAuth, err)
	}
	if c.initiationPayload, err = parseInitiationPayload(plain); err != nil {
		return c, err
	}
	if c.sender != whole.sender {
		return c, fmt.Errorf("%w: message 1: sender index", ErrAuth)
	}
	// Before the signatures are looked at: replays are cheap to make. It is looked at again when all else is done.
	c.who = stampKey{local.agent, identity.TunnelPublic(c.state.PeerStatic())}
	if !m.fresh(c.who, c.timestamp) {
		return c, fmt.Errorf("%w: message 1", ErrReplay)
	}
	if c.peer, err = m.verify(now, c.credentials, c.state.PeerStatic(), whole.suite); err != nil {
		return c, err
	}
	if c.peer.certificate.Agent == local.agent {
		return c, fmt.Errorf("%w: message 1 is from the agent itself", ErrKeyMismatch)
	}
	return c, m.admitted(local.agent, c.peer)
}

// answerDatagrams cuts message 2. A question in three parts gets an answer in three: the path may be narrow.
func answerDatagrams(whole *partial, index uint32, message, key []byte) [][]byte {
	var out [][]byte
	count := fragments(len(message))
	if whole.count == maxFragments {
		count = maxFragments
	}
	for part := range count {
		d := appendFragment(make([]byte, 0, MaxDatagram), typeAnswer, whole.suite, part, count, index, whole.sender, message)
		out = append(out, appendMACs(d, 0, key, nil))
	}
	return out
}

// fresh reports whether a timestamp is newer than the last one accepted.
func (m *Machine) fresh(who stampKey, timestamp uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	last, known := m.stamps[who]
	return !known || timestamp > last.value
}

// claim accepts a timestamp and gives the session its index. Of two copies of a message handled at once, one gets ErrReplay.
func (m *Machine) claim(who stampKey, s stamp) (uint32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last, known := m.stamps[who]
	if known && s.value <= last.value {
		return 0, fmt.Errorf("%w: message 1", ErrReplay)
	}
	index, err := m.takeIndexLocked()
	if err != nil {
		return 0, err
	}
	if known && last.expiry.After(s.expiry) {
		s.expiry = last.expiry
	}
	if !known {
		m.makeStampRoomLocked(who.local, s.agent)
	}
	m.stamps[who] = s
	return index, nil
}

// makeStampRoomLocked forgets the tunnel key of an agent that was silent for longest, if there are too many of them.
func (m *Machine) makeStampRoomLocked(local, agent identity.AgentPublic) {
	var oldest stampKey
	count := 0
	for k, s := range m.stamps {
		if k.local != local || s.agent != agent {
			continue
		}
		if count++; count == 1 || s.value < m.stamps[oldest].value {
			oldest = k
		}
	}
	if count >= maxStampsOfPeer {
		delete(m.stamps, oldest)
	}
}
