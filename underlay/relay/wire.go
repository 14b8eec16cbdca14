// SPDX-License-Identifier: Apache-2.0

// Package relay is how a node uses a relay: the bytes on the wire, and a client. A relay forwards sealed datagrams between
// members of a network that can't reach each other directly. It can drop them; it can't read or change them, because they
// are sealed end to end.
//
// A client holds a TLS connection to the relay, by which the relay knows who it is. Datagrams travel over UDP once its way
// there and back was proved, and over the TLS connection otherwise.
package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
)

// ALPN is the protocol's name in the TLS handshake (RFC 7301).
const ALPN = "pilot-relay/1"

// Version of the protocol, in each datagram, in hello and in welcome.
const Version = 1

// First bytes of UDP datagrams between a client and a relay. Handshakes and records have smaller ones, STUN has 0 to 3.
const (
	TypeData    = 0x25 // a Header, then a sealed datagram
	TypeControl = 0x26 // a Control
)

const (
	// HeaderSize is the length of a Header, in bytes.
	HeaderSize = 32
	// ControlSize is the length of a Control, in bytes: of questions and of answers, so that none is larger.
	ControlSize = 80
	// MaxDatagram is the length of the longest sealed datagram that a relay forwards, in bytes.
	MaxDatagram = 4096
)

// Token proves that a datagram belongs to a slot. The relay chooses one for what a client sends to it, and the client one
// for what the relay sends back. It crosses the underlay in the clear: it keeps strangers out, not those on the way.
type Token [8]byte

// Equal compares in constant time.
func (t Token) Equal(u Token) bool { return subtle.ConstantTimeCompare(t[:], u[:]) == 1 }

// Secret authenticates controls. The relay makes one for each connection; it only ever travels inside TLS.
type Secret [32]byte

// Header is what stands before a sealed datagram on its way to a relay and from it:
//
//	 1  type: 0x25
//	 1  version: 1
//	 2  reserved: 0
//	 4  slot      of the receiver's choice: the relay's to it, the client's from it
//	 8  token     likewise
//	16  address   overlay address: of the destination to the relay, of the source from it
//
// Both directions have the same length, so that a relay writes the one over the other.
type Header struct {
	Slot    uint32
	Token   Token
	Address netip.Addr // IPv6
}

// Append appends the header's 32 bytes to b.
func (h Header) Append(b []byte) []byte {
	b = append(b, TypeData, Version, 0, 0)
	b = binary.BigEndian.AppendUint32(b, h.Slot)
	b = append(b, h.Token[:]...)
	a := h.Address.As16()
	return append(b, a[:]...)
}

// Put writes the header over the first 32 bytes of b.
func (h Header) Put(b []byte) { h.Append(b[:0:HeaderSize]) }

// ParseHeader reads the header of a datagram, which must have at least one byte more.
func ParseHeader(d []byte) (h Header, ok bool) {
	if len(d) <= HeaderSize || d[0] != TypeData || d[1] != Version || d[2] != 0 || d[3] != 0 {
		return h, false
	}
	h.Slot = binary.BigEndian.Uint32(d[4:])
	h.Token = Token(d[8:16])
	h.Address = netip.AddrFrom16([16]byte(d[16:32]))
	return h, true
}

// Op is what a Control says.
type Op uint8

// A client sends OpBind. The relay answers with OpChallenge until the client has shown that it receives where it sends
// from, and with OpBound from then on. OpUnbound is its answer to data from an address that is not bound.
const (
	OpBind Op = 1 + iota
	OpChallenge
	OpBound
	OpUnbound
)

// Control is a message about the UDP path itself:
//
//	 1  type: 0x26
//	 1  version: 1
//	 1  op: 1 bind, 2 challenge, 3 bound, 4 unbound
//	 1  reserved: 0
//	 4  slot     of the receiver's choice, as in Header
//	 8  token    likewise
//	 8  id       the client's choice, repeated in the answer; 0 in unbound
//	16  cookie   in challenge, and in the bind that answers it; otherwise 0
//	16  address  in challenge and bound: where the bind came from (IPv4 as ::ffff:a.b.c.d); otherwise 0
//	 2  port     likewise
//	 6  reserved: 0
//	16  mac: first 16 bytes of HMAC-SHA256(secret of the connection, all before)
type Control struct {
	Op       Op
	Slot     uint32
	Token    Token
	ID       uint64
	Cookie   [16]byte
	Observed netip.AddrPort // invalid stands for zeros
}

const macSize = 16

// Append appends the control's 80 bytes to b.
func (c Control) Append(b []byte, secret *Secret) []byte {
	start := len(b)
	b = append(b, TypeControl, Version, byte(c.Op), 0)
	b = binary.BigEndian.AppendUint32(b, c.Slot)
	b = append(b, c.Token[:]...)
	b = binary.BigEndian.AppendUint64(b, c.ID)
	b = append(b, c.Cookie[:]...)
	b = appendAddrPort(b, c.Observed)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, controlMAC(b[start:], secret)...)
}

// ParseControl reads a control without its MAC, which VerifyControl looks at once it is known whose it is.
func ParseControl(d []byte) (c Control, ok bool) {
	if len(d) != ControlSize || d[0] != TypeControl || d[1] != Version || d[3] != 0 ||
		d[2] < byte(OpBind) || d[2] > byte(OpUnbound) || [6]byte(d[58:64]) != [6]byte{} {
		return c, false
	}
	c.Op = Op(d[2])
	c.Slot = binary.BigEndian.Uint32(d[4:])
	c.Token = Token(d[8:16])
	c.ID = binary.BigEndian.Uint64(d[16:])
	c.Cookie = [16]byte(d[24:40])
	c.Observed = parseAddrPort(d[40:58])
	return c, true
}

// VerifyControl reports whether a control that ParseControl has read was made with the secret.
func VerifyControl(d []byte, secret *Secret) bool {
	n := ControlSize - macSize
	return len(d) == ControlSize && hmac.Equal(d[n:], controlMAC(d[:n], secret))
}

func controlMAC(b []byte, secret *Secret) []byte {
	m := hmac.New(sha256.New, secret[:])
	m.Write(b)
	return m.Sum(nil)[:macSize]
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	var ip [16]byte
	if a.IsValid() {
		ip = a.Addr().As16()
	}
	b = append(b, ip[:]...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// parseAddrPort is the inverse; zeros give the invalid one.
func parseAddrPort(b []byte) netip.AddrPort {
	a := netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[16:]))
	if a.Port() == 0 && a.Addr() == netip.IPv6Unspecified() {
		return netip.AddrPort{}
	}
	return a
}
