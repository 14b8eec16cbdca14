// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"crypto/mlkem"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"time"

	flynn "github.com/flynn/noise"

	"github.com/pilot-protocol/pilot/identity"
)

// initiation is a first message of ours that waits for its answer. All but answer and cookied is immutable.
type initiation struct {
	index     uint32
	suite     suite
	born      time.Time
	local     *localKey
	to        Target
	static    flynn.DHKey
	state     *flynn.HandshakeState
	kem       *mlkem.DecapsulationKey768
	answerKey [keySize]byte
	mac1s     [][macSize]byte // of the fragments, for cookie replies
	longest   int             // length of the longest fragment, which is the first
	bore      bool            // it bore a cookie

	answer  *partial // guarded by Machine.mu
	cookied bool     // guarded by Machine.mu: a cookie came
}

func (in *initiation) pair() pair { return pair{in.local.agent, in.to.Agent} }

func (in *initiation) old(now time.Time) bool {
	age := now.Sub(in.born)
	return age >= initiationLifetime || age < -initiationLifetime
}

// wipe clears what secrets can be reached; Noise and ML-KEM keep others until they are collected.
func (in *initiation) wipe() {
	clear(in.static.Private)
	clear(in.state.LocalEphemeral().Private)
	clear(in.answerKey[:])
}

// Initiate makes a first message from a local agent to another agent. Each call makes a fresh one, with a higher
// timestamp, and the one before for the same pair of agents is forgotten: to retry is to call again.
// Errors: ErrUnknownKey if local is not among the locals; ErrKeyMismatch if it would talk to itself; ErrSuite if there
// is no suite in common.
func (m *Machine) Initiate(now time.Time, local identity.AgentPublic, to Target) (Initiation, error) {
	key := m.locals.Load().newest[local]
	if key == nil {
		return Initiation{}, fmt.Errorf("%w: %v", ErrUnknownKey, local)
	}
	if local == to.Agent {
		return Initiation{}, fmt.Errorf("%w: an agent can't call itself", ErrKeyMismatch)
	}
	in := &initiation{suite: suiteChaCha, born: now, local: key, to: to}
	if m.aes && suiteAES.in(key.suites) && suiteAES.in(to.Suites) {
		in.suite = suiteAES
	}
	if !in.suite.in(key.suites) || !in.suite.in(to.Suites) {
		return Initiation{}, ErrSuite
	}
	stamp, cookie, err := m.reserve(now, in)
	if err != nil {
		return Initiation{}, err
	}
	message, err := m.write(in, stamp)
	if err != nil {
		m.Release(in.index)
		return Initiation{}, err
	}
	in.bore = cookie != nil
	out := Initiation{ID: in.index}
	macKey := labelKey(mac1Tag, to.Tunnel)
	count := fragments(len(message))
	if to.Small {
		count = maxFragments
	}
	for part := range count {
		d := appendFragment(make([]byte, 0, MaxDatagram), typeInitiation, in.suite, part, count, in.index, 0, message)
		d = appendMACs(d, 0, macKey[:], cookie)
		in.mac1s = append(in.mac1s, [macSize]byte(d[len(d)-2*macSize:]))
		out.Datagrams = append(out.Datagrams, d)
	}
	in.longest = len(out.Datagrams[0])
	m.mu.Lock()
	defer m.mu.Unlock()
	if older := m.pending[m.newest[in.pair()]]; older != nil {
		m.dropLocked(older)
	}
	m.pending[in.index], m.newest[in.pair()] = in, in.index
	return out, nil
}

// reserve gives the initiation its index, and returns its timestamp and the responder's cookie, if we have one.
func (m *Machine) reserve(now time.Time, in *initiation) (stamp uint64, cookie []byte, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if in.index, err = m.takeIndexLocked(); err != nil {
		return 0, nil, err
	}
	// Higher than the last even if the clock was set back meanwhile.
	m.stamp = max(m.stamp+1, uint64(max(0, now.UnixNano())))
	if c, ok := m.given[in.to.Tunnel]; ok && c.fresh(now) {
		cookie = c.cookie[:]
	}
	return m.stamp, cookie, nil
}

// write makes message 1.
func (m *Machine) write(in *initiation, stamp uint64) ([]byte, error) {
	var seed [mlkem.SeedSize]byte
	defer clear(seed[:])
	if _, err := io.ReadFull(m.rand, seed[:]); err != nil {
		return nil, fmt.Errorf("noise: ml-kem key: %w", err)
	}
	if _, err := io.ReadFull(m.rand, in.answerKey[:]); err != nil {
		return nil, fmt.Errorf("noise: answer key: %w", err)
	}
	var err error
	if in.kem, err = mlkem.NewDecapsulationKey768(seed[:]); err != nil {
		return nil, fmt.Errorf("noise: ml-kem key: %w", err)
	}
	in.static = keyPair(in.local.key)
	p := prologue(in.suite, m.network, in.to.Agent)
	if in.state, err = handshake(in.suite, m.rand, p, in.static, in.to.Tunnel[:]); err != nil {
		return nil, fmt.Errorf("noise: %w", err)
	}
	payload := initiationPayload{
		sender: in.index, timestamp: stamp, answerKey: in.answerKey,
		kemKey: in.kem.EncapsulationKey().Bytes(), credentials: in.local.credentials,
	}
	message, _, _, err := in.state.WriteMessage(make([]byte, 0, maxInitiation), payload.append(make([]byte, 0, maxInitiation)))
	if err != nil {
		return nil, fmt.Errorf("noise: message 1: %w", err)
	}
	return message, nil
}

// receiveAnswer takes in a fragment of message 2. Its mac1 is keyed by a secret that only the responder can have read
// in message 1: nobody else can make us work, or spoil the initiation.
func (m *Machine) receiveAnswer(now time.Time, f *fragment) (Result, error) {
	sum := digest(f.signed)
	in, whole, err := m.collectAnswer(now, f, sum)
	if err != nil {
		return Result{}, err
	}
	result := Result{ID: in.index, Initiator: true}
	if whole == nil {
		return result, ErrIncomplete
	}
	if result.Session, err = m.finish(now, in, whole); err != nil {
		m.Release(in.index)
	}
	return result, err
}

// collectAnswer returns the initiation, and the whole message if this fragment was the last; the initiation has left the
// tables then.
func (m *Machine) collectAnswer(now time.Time, f *fragment, sum [32]byte) (*initiation, *partial, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in := m.pending[f.receiver]
	if in == nil || in.old(now) {
		return nil, nil, ErrUnknownIndex
	}
	var none [macSize]byte
	if want := mac(in.answerKey[:], sum); !equal(want[:], f.mac1) || !equal(none[:], f.mac2) {
		return nil, nil, ErrMAC
	}
	if f.suite != in.suite {
		return nil, nil, ErrSuite
	}
	if in.answer == nil || !in.answer.fits(f, netip.AddrPort{}, nil) {
		in.answer = newPartial(f, netip.AddrPort{}, nil, now)
	}
	if !in.answer.add(f) {
		return in, nil, nil
	}
	m.forgetLocked(in)
	return in, in.answer, nil
}

// finish reads message 2 and makes the session.
func (m *Machine) finish(now time.Time, in *initiation, whole *partial) (*Session, error) {
	defer in.wipe()
	text, message := whole.body[:kemTextSize], whole.body[kemTextSize:]
	shared, err := in.kem.Decapsulate(text)
	if err != nil {
		return nil, fmt.Errorf("%w: ml-kem: %w", ErrAuth, err)
	}
	defer clear(shared)
	if err := setPSK(in.state, shared, in.kem.EncapsulationKey().Bytes(), text); err != nil {
		return nil, err
	}
	plain, send, receive, err := in.state.ReadMessage(nil, message)
	if err != nil {
		return nil, fmt.Errorf("%w: message 2: %w", ErrAuth, err)
	}
	sender, c, err := parseAnswerPayload(plain)
	if err != nil {
		return nil, err
	}
	if sender != whole.sender {
		return nil, fmt.Errorf("%w: message 2: sender index", ErrAuth)
	}
	p, err := m.verify(now, c, in.to.Tunnel[:], in.suite)
	if err != nil {
		return nil, err
	}
	if p.certificate.Agent != in.to.Agent {
		return nil, fmt.Errorf("%w: the answer is from %v", ErrKeyMismatch, p.certificate.Agent)
	}
	if err := m.admitted(in.local.agent, p); err != nil {
		return nil, err
	}
	s := &Session{
		local: in.index, remote: sender, initiator: true, carried: in.longest, created: in.born,
		agent: in.local.agent, certificate: p.certificate, statement: p.statement,
	}
	return s, s.setKeys(in.suite, send, receive)
}

// setPSK derives the psk and gives it to Noise.
func setPSK(state *flynn.HandshakeState, shared, kemKey, kemText []byte) error {
	key, err := psk(shared, kemKey, kemText)
	if err != nil {
		return fmt.Errorf("noise: psk: %w", err)
	}
	defer clear(key)
	if err := state.SetPresharedKey(key); err != nil {
		return fmt.Errorf("noise: psk: %w", err)
	}
	return nil
}

// setKeys takes the keys out of the finished Noise states.
func (s *Session) setKeys(suite suite, send, receive *flynn.CipherState) error {
	var keys sessionKeys
	var err error
	if keys.send, err = suite.aead(send); err != nil {
		return err
	}
	if keys.receive, err = suite.aead(receive); err != nil {
		return err
	}
	s.keys.Store(&keys)
	return nil
}

// receiveCookie keeps the cookie for the next initiation to the same tunnel key. It does not answer: that would make a
// large message of a small one.
func (m *Machine) receiveCookie(now time.Time, d []byte) (Result, error) {
	if len(d) != cookieReply || d[2]|d[3] != 0 {
		return Result{}, fmt.Errorf("%w: cookie reply", ErrMalformed)
	}
	m.mu.Lock()
	in := m.pending[binary.BigEndian.Uint32(d[4:])]
	m.mu.Unlock()
	if in == nil || in.old(now) {
		return Result{}, ErrUnknownIndex
	}
	key := labelKey(cookieTag, in.to.Tunnel)
	for _, mac1 := range in.mac1s {
		cookie, err := openCookie(d, key, mac1[:])
		if err != nil {
			continue
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		first := !in.cookied
		if first {
			in.cookied = true
			m.given[in.to.Tunnel] = givenCookie{cookie, now}
		}
		// One that bore a cookie already waits for its ordinary turn: whoever saw it can make cookies, and would draw a
		// first message with each.
		return Result{ID: in.index, Retry: first && !in.bore}, nil
	}
	return Result{}, ErrAuth
}
