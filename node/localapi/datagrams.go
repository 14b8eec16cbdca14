// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// MaxDatagram is how many bytes a datagram may have on a stream.
const MaxDatagram = 65535

// errDatagramTooLong is that of a Write, or of a Read into a buffer that is too small.
var errDatagramTooLong = errors.New("localapi: the datagram is too long")

// Datagrams carries datagrams over a stream: each is two bytes with its length, the higher one first, then the datagram.
// Reading is for one goroutine at a time.
func Datagrams(stream net.Conn) net.Conn { return &datagrams{Conn: stream} }

type datagrams struct {
	net.Conn
	mu  sync.Mutex // held by Write
	out []byte
}

// Read returns one datagram. One that doesn't fit into b breaks the stream.
func (d *datagrams) Read(b []byte) (int, error) {
	var head [2]byte
	if _, err := io.ReadFull(d.Conn, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > len(b) {
		return 0, errDatagramTooLong
	}
	if _, err := io.ReadFull(d.Conn, b[:n]); err != nil {
		return 0, unexpected(err)
	}
	return n, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write sends one datagram.
func (d *datagrams) Write(b []byte) (int, error) {
	if len(b) > MaxDatagram {
		return 0, errDatagramTooLong
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out = append(binary.BigEndian.AppendUint16(d.out[:0], uint16(len(b))), b...)
	if _, err := d.Conn.Write(d.out); err != nil {
		return 0, err
	}
	return len(b), nil
}
