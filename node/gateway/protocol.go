// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// The wire format of SOCKS5 (RFC 1928) and of its passwords (RFC 1929). Readers take what belongs to a message and not a
// byte more: what follows may be the caller's data already.
const (
	socksVersion    = 5
	passwordVersion = 1

	methodPassword = 2
	methodNone     = 0xff // no acceptable one

	commandConnect   = 1
	commandAssociate = 3

	addressIPv4 = 1
	addressName = 3
	addressIPv6 = 4

	replySucceeded   = 0
	replyFailed      = 1
	replyForbidden   = 2 // not allowed by the rules
	replyNoNetwork   = 3
	replyNoHost      = 4
	replyRefused     = 5
	replyTimeout     = 6 // "TTL expired"
	replyCommand     = 7 // not supported
	replyAddressType = 8 // not supported
)

var (
	errVersion  = errors.New("not SOCKS5")
	errMethod   = errors.New("the caller offers no password")
	errAddress  = errors.New("an unknown type of address")
	errName     = errors.New("a name that can't be one")
	errFragment = errors.New("a part of a datagram")
)

// destination is where a caller wants to go.
type destination struct {
	host string // a name or an address
	port uint16
}

// readGreeting reads the methods by which a caller can show who it is, and reports whether a password is among them.
func readGreeting(r io.Reader) (password bool, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return false, err
	}
	if head[0] != socksVersion {
		return false, errVersion
	}
	var methods [255]byte
	if _, err := io.ReadFull(r, methods[:head[1]]); err != nil {
		return false, err
	}
	for _, m := range methods[:head[1]] {
		password = password || m == methodPassword
	}
	return password, nil
}

// readPassword reads what a caller shows.
func readPassword(r io.Reader) (user, password []byte, err error) {
	var version [1]byte
	if _, err := io.ReadFull(r, version[:]); err != nil {
		return nil, nil, err
	}
	if version[0] != passwordVersion {
		return nil, nil, errVersion
	}
	if user, err = readShort(r); err != nil {
		return nil, nil, err
	}
	password, err = readShort(r)
	return user, password, err
}

// readShort reads a string with its length in front.
func readShort(r io.Reader) ([]byte, error) {
	var length [1]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	text := make([]byte, length[0])
	_, err := io.ReadFull(r, text)
	return text, err
}

// readRequest reads what a caller wants. An address that can't be read is errAddress or errName.
func readRequest(r io.Reader) (command byte, d destination, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, d, err
	}
	if head[0] != socksVersion {
		return 0, d, errVersion
	}
	d, err = readDestination(r)
	return head[1], d, err
}

func readDestination(r io.Reader) (d destination, err error) {
	var kind [1]byte
	if _, err := io.ReadFull(r, kind[:]); err != nil {
		return d, err
	}
	switch kind[0] {
	case addressIPv4, addressIPv6:
		raw := make([]byte, 4)
		if kind[0] == addressIPv6 {
			raw = make([]byte, 16)
		}
		if _, err := io.ReadFull(r, raw); err != nil {
			return d, err
		}
		addr, _ := netip.AddrFromSlice(raw)
		d.host = addr.String()
	case addressName:
		name, err := readShort(r)
		if err != nil {
			return d, err
		}
		if !printable(name) {
			return d, errName
		}
		d.host = string(name)
	default:
		return d, errAddress
	}
	var port [2]byte
	_, err = io.ReadFull(r, port[:])
	d.port = binary.BigEndian.Uint16(port[:])
	return d, err
}

// printable keeps out what can't be a name, and what would be another thing in a log.
func printable(name []byte) bool {
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return len(name) > 0
}

// appendReply appends an answer to a request; from is where the caller's traffic comes from now.
func appendReply(b []byte, reply byte, from netip.AddrPort) []byte {
	return appendAddress(append(b, socksVersion, reply, 0), from)
}

func appendAddress(b []byte, a netip.AddrPort) []byte {
	addr := a.Addr().Unmap()
	if addr.Is6() {
		raw := addr.As16()
		b = append(append(b, addressIPv6), raw[:]...)
	} else {
		var raw [4]byte
		if addr.Is4() {
			raw = addr.As4()
		}
		b = append(append(b, addressIPv4), raw[:]...)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// parseDatagram takes a caller's datagram apart (RFC 1928, section 7). The data is not copied.
func parseDatagram(b []byte) (d destination, data []byte, err error) {
	r := sliceReader(b)
	var head [3]byte
	if _, err := io.ReadFull(&r, head[:]); err != nil {
		return d, nil, err
	}
	if head[0] != 0 || head[1] != 0 {
		return d, nil, fmt.Errorf("reserved bytes are %x: %w", head[:2], errVersion)
	}
	if head[2] != 0 {
		return d, nil, errFragment // it is for the proxy to choose not to put them together
	}
	d, err = readDestination(&r)
	return d, r, err
}

// appendDatagram appends the head of a datagram for a caller.
func appendDatagram(b []byte, from netip.AddrPort) []byte {
	return appendAddress(append(b, 0, 0, 0), from)
}

// sliceReader is what is left to be read.
type sliceReader []byte

func (r *sliceReader) Read(b []byte) (int, error) {
	if len(*r) == 0 {
		return 0, io.EOF
	}
	n := copy(b, *r)
	*r = (*r)[n:]
	return n, nil
}
