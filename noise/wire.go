// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"crypto/mlkem"
	"encoding/binary"
	"fmt"

	"github.com/pilot-protocol/pilot/identity"
)

// Version is the protocol version in every handshake datagram and in the prologue.
const Version = 1

// First byte of each kind of datagram. Values 0 to 3 would collide with STUN (RFC 8489 section 5), which may share the port.
const (
	typeInitiation = 0x21
	typeAnswer     = 0x22
	typeCookie     = 0x23
	typeRecord     = 0x24
)

// Sizes in bytes.
const (
	// MaxDatagram is the largest handshake datagram, MaxSmallDatagram the largest of a message that was cut into as many
	// as there may be: see Target.Small.
	MaxDatagram      = 1200
	MaxSmallDatagram = (maxInitiation+maxFragments-1)/maxFragments + fragmentFrame
	// HeaderSize is the length of a record's header.
	HeaderSize = 16
	// TagSize is the length of the AEAD tag of both suites.
	TagSize = 16
	// Overhead is what a record adds to its plaintext.
	Overhead = HeaderSize + TagSize

	fragmentHeader = 16
	macSize        = 16
	fragmentFrame  = fragmentHeader + 2*macSize
	fragmentBody   = MaxDatagram - fragmentFrame
	maxFragments   = 3
	cookieReply    = 64
	keySize        = 32
	kemKeySize     = mlkem.EncapsulationKeySize768
	kemTextSize    = mlkem.CiphertextSize768
	initiationHead = 4 + 8 + keySize + kemKeySize + 4
	answerHead     = 4 + 4

	// initiationFrame is what Noise adds to the payload of message 1 (ephemeral, sealed static, tag), answerFrame
	// what message 2 has besides its payload (ML-KEM ciphertext, ephemeral, tag).
	initiationFrame = keySize + keySize + TagSize + TagSize
	answerFrame     = kemTextSize + keySize + TagSize

	maxCredentials = identity.MaxTunnelStatement + identity.MaxCertificate
	maxInitiation  = initiationFrame + initiationHead + maxCredentials
	minAnswer      = answerFrame + answerHead
	maxAnswer      = answerFrame + answerHead + maxCredentials
	// minInitiation fills two datagrams: as much as the largest answer, so that no answer exceeds its question.
	minInitiation = 2 * fragmentBody
)

// MessageKind says which function a datagram is for.
type MessageKind uint8

const (
	// KindInvalid: nothing of ours.
	KindInvalid MessageKind = iota
	// KindRecord: find the session by RecordIndex, then Session.Open.
	KindRecord
	// KindHandshake: for Machine.Handle; an initiation, an answer or a cookie reply.
	KindHandshake
)

// Kind tells the kind of a datagram by its first bytes and its length. It authenticates nothing.
func Kind(datagram []byte) MessageKind {
	if len(datagram) < Overhead {
		return KindInvalid
	}
	switch datagram[0] {
	case typeRecord:
		return KindRecord
	case typeInitiation, typeAnswer, typeCookie:
		if datagram[1] == Version && len(datagram) <= MaxDatagram {
			return KindHandshake
		}
	}
	return KindInvalid
}

// RecordIndex returns the receiver index of a datagram of KindRecord, and 0, which is never a session's, of others.
func RecordIndex(datagram []byte) uint32 {
	if Kind(datagram) != KindRecord {
		return 0
	}
	return binary.BigEndian.Uint32(datagram[4:])
}

// fragment is a parsed handshake datagram that carries a part of a message. Its slices point into the datagram.
type fragment struct {
	kind     byte
	suite    suite
	part     int // 0-based
	count    int
	total    int // length of the whole message
	sender   uint32
	receiver uint32
	body     []byte
	mac1     []byte
	mac2     []byte
	signed   []byte // what mac1 covers
	proved   []byte // what mac2 covers
}

// parseFragment checks everything that can be checked without a key. The way in which a message is cut is part of
// the format, so that a fragment can't have any other length than the one that its header implies.
func parseFragment(d []byte) (fragment, error) {
	if len(d) <= fragmentFrame || len(d) > MaxDatagram {
		return fragment{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(d))
	}
	end := len(d) - 2*macSize
	f := fragment{
		kind: d[0], suite: suite(d[2]), part: int(d[3] >> 4), count: int(d[3] & 15),
		sender: binary.BigEndian.Uint32(d[4:]), receiver: binary.BigEndian.Uint32(d[8:]),
		total: int(binary.BigEndian.Uint16(d[12:])),
		body:  d[fragmentHeader:end], mac1: d[end : end+macSize], mac2: d[end+macSize:],
		signed: d[:end], proved: d[:end+macSize],
	}
	low, high := minInitiation, maxInitiation
	if f.kind == typeAnswer {
		low, high = minAnswer, maxAnswer
	}
	switch {
	case f.kind != typeInitiation && f.kind != typeAnswer, d[1] != Version, d[14] != 0, d[15] != 0, !f.suite.known():
		return fragment{}, fmt.Errorf("%w: header", ErrMalformed)
	case f.sender == 0, (f.receiver == 0) != (f.kind == typeInitiation):
		return fragment{}, fmt.Errorf("%w: indexes", ErrMalformed)
	case f.total < low, f.total > high, f.count < fragments(f.total), f.count > maxFragments, f.part >= f.count:
		return fragment{}, fmt.Errorf("%w: length of message", ErrMalformed)
	}
	if start, stop := cut(f.total, f.count, f.part); len(f.body) != stop-start {
		return fragment{}, fmt.Errorf("%w: length of fragment", ErrMalformed)
	}
	return f, nil
}

// fragments is the least number of datagrams that a message of total bytes travels in. It may travel in more, up to
// maxFragments.
func fragments(total int) int { return (total + fragmentBody - 1) / fragmentBody }

// cut returns the range of the message that a part carries. The parts are of equal length, the first ones longer by a
// byte where it does not divide: so even the last is longer than a cookie reply.
func cut(total, count, part int) (start, stop int) {
	size, rest := total/count, total%count
	start = part*size + min(part, rest)
	stop = start + size
	if part < rest {
		stop++
	}
	return start, stop
}

// appendFragment appends the header and the body of one of count parts; the MACs follow.
func appendFragment(dst []byte, kind byte, s suite, part, count int, sender, receiver uint32, message []byte) []byte {
	start, stop := cut(len(message), count, part)
	dst = append(dst, kind, Version, byte(s), byte(part<<4|count))
	dst = binary.BigEndian.AppendUint32(dst, sender)
	dst = binary.BigEndian.AppendUint32(dst, receiver)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(message)))
	dst = append(dst, 0, 0)
	return append(dst, message[start:stop]...)
}

// credentials are the two signed statements that each side shows.
type credentials struct{ statement, certificate []byte }

// initiationPayload is the plaintext of message 1. Slices of a parsed one point into its source.
type initiationPayload struct {
	sender    uint32
	timestamp uint64
	answerKey [keySize]byte
	kemKey    []byte
	credentials
}

// append appends the payload with its padding.
func (p *initiationPayload) append(dst []byte) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, p.sender)
	dst = binary.BigEndian.AppendUint64(dst, p.timestamp)
	dst = append(dst, p.answerKey[:]...)
	dst = append(dst, p.kemKey...)
	dst = p.credentials.append(dst)
	if short := minInitiation - initiationFrame - (len(dst) - start); short > 0 {
		dst = append(dst, make([]byte, short)...)
	}
	return dst
}

func parseInitiationPayload(b []byte) (p initiationPayload, err error) {
	if len(b) < initiationHead {
		return p, fmt.Errorf("%w: payload", ErrMalformed)
	}
	p.sender = binary.BigEndian.Uint32(b)
	p.timestamp = binary.BigEndian.Uint64(b[4:])
	copy(p.answerKey[:], b[12:])
	p.kemKey = b[12+keySize:][:kemKeySize]
	var rest []byte
	if p.credentials, rest, err = parseCredentials(b[12+keySize+kemKeySize:]); err != nil {
		return p, err
	}
	for _, c := range rest {
		if c != 0 {
			return p, fmt.Errorf("%w: padding", ErrMalformed)
		}
	}
	return p, nil
}

func (c credentials) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(c.statement)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(c.certificate)))
	dst = append(dst, c.statement...)
	return append(dst, c.certificate...)
}

func parseCredentials(b []byte) (c credentials, rest []byte, err error) {
	if len(b) < 4 {
		return c, nil, fmt.Errorf("%w: payload", ErrMalformed)
	}
	n, m := int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	if b = b[4:]; n > identity.MaxTunnelStatement || m > identity.MaxCertificate || n+m > len(b) {
		return c, nil, fmt.Errorf("%w: credentials", ErrMalformed)
	}
	return credentials{b[:n], b[n : n+m]}, b[n+m:], nil
}

func appendAnswerPayload(dst []byte, sender uint32, c credentials) []byte {
	return c.append(binary.BigEndian.AppendUint32(dst, sender))
}

func parseAnswerPayload(b []byte) (sender uint32, c credentials, err error) {
	if len(b) < answerHead {
		return 0, c, fmt.Errorf("%w: payload", ErrMalformed)
	}
	c, rest, err := parseCredentials(b[4:])
	if err == nil && len(rest) != 0 {
		err = fmt.Errorf("%w: padding", ErrMalformed)
	}
	return binary.BigEndian.Uint32(b), c, err
}
