// SPDX-License-Identifier: Apache-2.0

package aesgcm

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStaysInside puts text, header and destination against the end and the beginning of a page beside which nothing may
// be touched: reading or writing one byte too much ends the program.
func TestStaysInside(t *testing.T) {
	page := unix.Getpagesize()
	room := func() []byte {
		m, err := unix.Mmap(-1, 0, 3*page, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(m) })
		if err := unix.Mprotect(m[page:2*page], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			t.Fatal(err)
		}
		return m[page : 2*page : 2*page]
	}
	source, target, header := room(), room(), room()
	random := rand.NewChaCha8([32]byte{5})
	for n := range 600 {
		for _, atEnd := range []bool{false, true} {
			place := func(memory []byte, n int) []byte {
				if atEnd {
					return memory[page-n:]
				}
				return memory[:n:n]
			}
			s := newSample(random, n, 1+n%16)
			a := ours(t, s.key)
			text, associated, sealed := place(source, n), place(header, len(s.associated)), place(target, n+TagSize)
			copy(text, s.text)
			copy(associated, s.associated)
			a.Seal(sealed[:0], s.nonce, text, associated)
			if !bytes.Equal(sealed, standard(t, s.key).Seal(nil, s.nonce, s.text, s.associated)) {
				t.Fatalf("%d bytes were sealed wrongly", n)
			}
			clear(text)
			if _, err := a.Open(text[:0], s.nonce, sealed, associated); err != nil || !bytes.Equal(text, s.text) {
				t.Fatalf("%d bytes were opened wrongly: %v", n, err)
			}
		}
	}
}
