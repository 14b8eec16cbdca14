// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/pilot-protocol/pilot/identity"
)

// FrameType says what a frame on the TLS connection is.
type FrameType uint8

// The frames. Those of types that a reader doesn't know are skipped.
const (
	FrameHello   FrameType = 1 + iota // client, first: Hello
	FrameWelcome                      // relay, first: Welcome
	FrameData                         // 16 of overlay address (of the destination, or from the relay of the source), a sealed datagram
	FramePing                         // client: id (8)
	FramePong                         // relay: the same id (8)
	FrameGone                         // relay: 16 of overlay address: it is not connected here
	FramePass                         // client: its new pass
	FrameBye                          // relay, last: reason (1)
)

// Frame is what travels on the TLS connection, in both directions:
//
//	2  length of the body
//	1  type
//	…  body
const (
	FrameHeaderSize = 3
	addressSize     = 16
	maxBody         = addressSize + MaxDatagram
	// FrameBuffer is how many bytes of buffer ReadFrame wants of its reader.
	FrameBuffer = 16 << 10
)

// ErrFrame is returned for bytes that are no frame of this protocol.
var ErrFrame = errors.New("relay: malformed frame")

// AppendFrame appends a frame to b.
func AppendFrame(b []byte, t FrameType, body ...[]byte) []byte {
	n := 0
	for _, p := range body {
		n += len(p)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, byte(t))
	for _, p := range body {
		b = append(b, p...)
	}
	return b
}

// AppendData appends a frame of data, of at most MaxDatagram bytes, to b.
func AppendData(b []byte, addr netip.Addr, datagram []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(addressSize+len(datagram)))
	b = append(b, byte(FrameData))
	a := addr.As16()
	b = append(b, a[:]...)
	return append(b, datagram...)
}

// ReadFrame waits for the next frame. The body stays in r's buffer, of FrameBuffer bytes or more: it may be used, and
// written to, until the next call. It returns ErrFrame for one that is longer than any may be.
func ReadFrame(r *bufio.Reader) (FrameType, []byte, error) {
	head, err := r.Peek(FrameHeaderSize)
	if err != nil {
		return 0, nil, endOf(err, len(head))
	}
	n, t := int(binary.BigEndian.Uint16(head)), FrameType(head[2])
	if n > maxBody {
		return 0, nil, fmt.Errorf("%w: %d bytes", ErrFrame, n)
	}
	whole, err := r.Peek(FrameHeaderSize + n)
	if err != nil {
		return 0, nil, endOf(err, len(whole))
	}
	if _, err := r.Discard(len(whole)); err != nil {
		return 0, nil, err
	}
	return t, whole[FrameHeaderSize:], nil
}

// FrameWaits reports whether ReadFrame would return without waiting.
func FrameWaits(r *bufio.Reader) bool {
	if r.Buffered() < FrameHeaderSize {
		return false
	}
	head, err := r.Peek(FrameHeaderSize)
	return err != nil || r.Buffered() >= FrameHeaderSize+int(binary.BigEndian.Uint16(head))
}

// endOf tells an end between frames from one within.
func endOf(err error, got int) error {
	if got > 0 && errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ParseData reads the body of a frame of data.
func ParseData(body []byte) (addr netip.Addr, datagram []byte, ok bool) {
	if len(body) <= addressSize || len(body) > maxBody {
		return addr, nil, false
	}
	return netip.AddrFrom16([16]byte(body)), body[addressSize:], true
}

// ParseAddress reads the body of FrameGone.
func ParseAddress(body []byte) (netip.Addr, bool) {
	if len(body) != addressSize {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(body)), true
}

// Hello is the client's first frame:
//
//	1  version: 1
//	3  reserved: 0
//	4  slot    that the relay shall write into what it sends over UDP
//	8  token   likewise
//	…  pass, of at most 256 bytes: that of the authority for relays, which has no name
type Hello struct {
	Slot  uint32
	Token Token
	Pass  []byte // identity.RelayPass
}

const helloSize = 16

// Append appends the frame to b.
func (h Hello) Append(b []byte) []byte {
	fixed := append(make([]byte, 0, helloSize), Version, 0, 0, 0)
	fixed = binary.BigEndian.AppendUint32(fixed, h.Slot)
	fixed = append(fixed, h.Token[:]...)
	return AppendFrame(b, FrameHello, fixed, h.Pass)
}

// ParseHello reads the body of the frame. The pass lies in it.
func ParseHello(body []byte) (h Hello, err error) {
	if len(body) <= helloSize || len(body) > helloSize+identity.MaxRelayPass {
		return h, fmt.Errorf("%w: a hello of %d bytes", ErrFrame, len(body))
	}
	if body[0] != Version || body[1] != 0 || body[2] != 0 || body[3] != 0 {
		return h, fmt.Errorf("%w: a hello of version %d", ErrFrame, body[0])
	}
	h.Slot = binary.BigEndian.Uint32(body[4:])
	h.Token = Token(body[8:16])
	h.Pass = body[helloSize:]
	return h, nil
}

// Welcome is the relay's first frame:
//
//	 1  version: 1
//	 1  reserved: 0
//	 2  UDP port; 0: none
//	 4  slot     that the client shall write into what it sends over UDP
//	 8  token    likewise
//	32  secret   for controls
//	16  address  where the client's TLS connection comes from (IPv4 as ::ffff:a.b.c.d)
//	 2  port     likewise
//	 4  rate     in kilobytes (1000) per second that the relay forwards for the client; 0: no limit
//	 2  longest datagram that it forwards, in bytes
//
// Bytes after these are ignored.
type Welcome struct {
	UDP         uint16
	Slot        uint32
	Token       Token
	Secret      Secret
	Observed    netip.AddrPort
	Rate        uint32
	MaxDatagram uint16
}

const welcomeSize = 72

// Append appends the frame to b.
func (w Welcome) Append(b []byte) []byte {
	body := append(make([]byte, 0, welcomeSize), Version, 0)
	body = binary.BigEndian.AppendUint16(body, w.UDP)
	body = binary.BigEndian.AppendUint32(body, w.Slot)
	body = append(body, w.Token[:]...)
	body = append(body, w.Secret[:]...)
	body = appendAddrPort(body, w.Observed)
	body = binary.BigEndian.AppendUint32(body, w.Rate)
	body = binary.BigEndian.AppendUint16(body, w.MaxDatagram)
	return AppendFrame(b, FrameWelcome, body)
}

// ParseWelcome reads the body of the frame.
func ParseWelcome(body []byte) (w Welcome, err error) {
	if len(body) < welcomeSize {
		return w, fmt.Errorf("%w: a welcome of %d bytes", ErrFrame, len(body))
	}
	if body[0] != Version {
		return w, fmt.Errorf("%w: a welcome of version %d", ErrFrame, body[0])
	}
	w.UDP = binary.BigEndian.Uint16(body[2:])
	w.Slot = binary.BigEndian.Uint32(body[4:])
	w.Token = Token(body[8:16])
	w.Secret = Secret(body[16:48])
	w.Observed = parseAddrPort(body[48:66])
	w.Rate = binary.BigEndian.Uint32(body[66:])
	w.MaxDatagram = binary.BigEndian.Uint16(body[70:])
	return w, nil
}

// Reason is why a relay ends a connection.
type Reason uint8

// The reasons.
const (
	ReasonClosing   Reason = 1 + iota // the relay ends; others may be up
	ReasonReplaced                    // the same agent connected anew
	ReasonMember                      // the pass is not a valid one of this network, or not the caller's
	ReasonExpired                     // the pass expired and no new one came
	ReasonRevoked                     // the agent is no member any more
	ReasonBusy                        // the relay takes no more clients
	ReasonMalformed                   // a frame could not be read
)

// String says the reason as people read it.
func (r Reason) String() string {
	switch r {
	case ReasonClosing:
		return "the relay ends"
	case ReasonReplaced:
		return "this agent connected from elsewhere too"
	case ReasonMember:
		return "the pass is not valid here"
	case ReasonExpired:
		return "the pass expired"
	case ReasonRevoked:
		return "the agent was revoked"
	case ReasonBusy:
		return "the relay is full"
	case ReasonMalformed:
		return "the relay could not read a frame"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// ByeError is the error of a connection that the relay ended.
type ByeError struct{ Reason Reason }

// Error says the reason.
func (e *ByeError) Error() string { return "relay: " + e.Reason.String() }
