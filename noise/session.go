// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"crypto/cipher"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// A session's lifetime.
const (
	// RekeyAfter is the age at which the initiator makes a new session.
	RekeyAfter = 120 * time.Second
	// ExpireAfter is the age at which neither side uses the session any more.
	ExpireAfter = 180 * time.Second
	// rekeyAfterRecords and maxRecords keep AES-GCM far inside its bounds: 2^40 records of 1500 bytes leave a
	// distinguisher less than 2^-33.
	rekeyAfterRecords = 1 << 36
	maxRecords        = 1 << 40
)

// Flags are the bits in a record's header. They are authenticated but not secret.
type Flags uint8

const (
	// FlagControl marks a plaintext that is a control message of the overlay and not an IP packet.
	FlagControl Flags = 1 << iota
	// FlagPartial marks an IP packet whose TCP or UDP checksum was left to the receiver: what stands there means nothing.
	// The tag vouches for all bytes up to there; whoever takes the packet out of the tunnel completes it.
	FlagPartial
	// FlagPart marks a plaintext that is a part of an IP packet, as package overlay/parts has it.
	FlagPart
)

// Session is one end of a tunnel between two agents. All its methods are safe for concurrent use: many may Seal and
// many may Open at once, and neither allocates, nor touches a lock of the Machine.
type Session struct {
	keys      atomic.Pointer[sessionKeys] // nil: wiped
	confirmed atomic.Bool

	local, remote uint32
	initiator     bool
	carried       int
	created       time.Time
	agent         identity.AgentPublic
	certificate   identity.Certificate
	statement     identity.TunnelStatement

	_    [64]byte // senders and receivers write to cache lines of their own
	sent atomic.Uint64
	_    [64]byte

	mu   sync.Mutex // guards seen; held for the look-up only, never while decrypting
	seen window
}

type sessionKeys struct{ send, receive cipher.AEAD }

// LocalIndex returns the receiver index of the records that this end opens. It is unique in the Machine until Release.
func (s *Session) LocalIndex() uint32 { return s.local }

// Local returns the agent at this end.
func (s *Session) Local() identity.AgentPublic { return s.agent }

// Remote returns the verified membership certificate of the other end. The caller may not change its slices.
func (s *Session) Remote() identity.Certificate { return s.certificate }

// RemoteTunnel returns the verified tunnel statement of the other end.
func (s *Session) RemoteTunnel() identity.TunnelStatement { return s.statement }

// Initiator reports whether this end sent the first message.
func (s *Session) Initiator() bool { return s.initiator }

// Carried is the length of the longest handshake datagram that this end sent, in bytes: once the session is confirmed, the other
// end has had it.
func (s *Session) Carried() int { return s.carried }

// Created returns when the session began: at the initiator when it sent its first message, at the responder when it
// answered. So the initiator always stops first.
func (s *Session) Created() time.Time { return s.created }

// Confirmed reports whether this end may send: an initiator always, a responder after the first valid record came,
// which proves that the initiation was not a replay. An initiator without data to send should send an empty record at once.
func (s *Session) Confirmed() bool { return s.initiator || s.confirmed.Load() }

// NeedsRekey reports whether it is time for this end to initiate a new session. Only the initiator's end says so.
func (s *Session) NeedsRekey(now time.Time) bool {
	return s.initiator && (now.Sub(s.created) >= RekeyAfter || s.sent.Load() >= rekeyAfterRecords)
}

// Expired reports whether the session may no longer be used, by age or because its counter is spent. Seal and Open have
// no clock: the caller asks this often enough (once a second is enough).
func (s *Session) Expired(now time.Time) bool {
	return now.Sub(s.created) >= ExpireAfter || s.sent.Load() >= maxRecords
}

// Wipe drops the keys. Later calls of Seal and Open fail with ErrWiped; those in progress end normally. The expanded keys
// lie inside the standard library's ciphers, which can't be overwritten: they go with the next garbage collection.
func (s *Session) Wipe() { s.keys.Store(nil) }

// Seal appends a record with the plaintext to dst: HeaderSize bytes of header, ciphertext, TagSize bytes of tag. It does
// not allocate if dst has room for len(plaintext)+Overhead more. plaintext may be empty, and may lie in dst's spare room
// exactly HeaderSize bytes behind its end; any other overlap panics.
// Errors: ErrUnconfirmed, ErrExhausted, ErrWiped; dst is returned unchanged then.
func (s *Session) Seal(dst []byte, flags Flags, plaintext []byte) ([]byte, error) {
	keys := s.keys.Load()
	switch {
	case keys == nil:
		return dst, ErrWiped
	case !s.Confirmed():
		return dst, ErrUnconfirmed
	case s.sent.Load() >= maxRecords:
		return dst, ErrExhausted
	}
	counter := s.sent.Add(1) - 1 // passes maxRecords by the number of sealers at most
	start := len(dst)
	dst = append(dst, typeRecord, byte(flags), 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, s.remote)
	dst = binary.BigEndian.AppendUint64(dst, counter)
	header := dst[start : start+HeaderSize]
	return keys.send.Seal(dst, header[4:], plaintext, header), nil
}

// Open authenticates a record and appends its plaintext to dst. It does not allocate if dst has room for
// len(record)-Overhead more. To open in place pass record[HeaderSize:HeaderSize] as dst; any other overlap panics.
// A record is accepted once, in any order, unless windowSize (16,320) newer ones came before it.
// Errors: ErrMalformed, ErrUnknownIndex, ErrAuth, ErrReplay, ErrWiped; dst is returned unchanged then, and what lies
// in its spare room is undefined.
func (s *Session) Open(dst []byte, record []byte) ([]byte, Flags, error) {
	if len(record) < Overhead || record[0] != typeRecord || record[2]|record[3] != 0 {
		return dst, 0, ErrMalformed
	}
	header := record[:HeaderSize]
	counter := binary.BigEndian.Uint64(header[8:])
	keys := s.keys.Load()
	switch {
	case binary.BigEndian.Uint32(header[4:]) != s.local:
		return dst, 0, ErrUnknownIndex
	case counter >= 2*maxRecords: // sealers that raced for the last counters may pass maxRecords a little
		return dst, 0, ErrMalformed
	case keys == nil:
		return dst, 0, ErrWiped
	}
	opened, err := keys.receive.Open(dst, header[4:], record[HeaderSize:], header)
	if err != nil {
		return dst, 0, ErrAuth
	}
	// Only now: a forged record must not move the window.
	s.mu.Lock()
	fresh := s.seen.accept(counter)
	s.mu.Unlock()
	if !fresh {
		clear(opened[len(dst):])
		return dst, 0, ErrReplay
	}
	if !s.confirmed.Load() {
		s.confirmed.Store(true)
	}
	return opened, Flags(header[1]), nil
}
