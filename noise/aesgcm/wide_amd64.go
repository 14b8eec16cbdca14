// SPDX-License-Identifier: Apache-2.0

//go:build !purego

package aesgcm

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"slices"
	"unsafe"

	"golang.org/x/sys/cpu"
)

const (
	blockSize = 16
	// maxWide is the longest text that is taken at once; no record comes near. The counter of 32 bits can't wrap within it.
	maxWide = 1 << 20
	// powers is how many powers of H are kept: one for each of the 16 blocks of a stride, and one for the lengths.
	powers = 17
	// padding is room behind the powers, so that four can be loaded from each.
	padding = 3
)

// key and message are read and written by wide_amd64.s.
type (
	key struct {
		rounds [15 * blockSize]byte
		// powers are H^17/x, H^16/x, … H/x, each with its bytes turned round, then zeros.
		powers [powers + padding][blockSize]byte
	}
	message struct {
		counter    [blockSize]byte // the nonce, then 1 in little-endian
		associated [blockSize]byte // the associated data, one block
		lengths    [blockSize]byte // bits of associated data and of text, in big-endian
		tag        [TagSize]byte   // written
	}
)

// wide is the AEAD by 512-bit registers. What is unusual for a record, it leaves to the standard library's.
type wide struct {
	standard cipher.AEAD
	key      key
}

//go:noescape
func sealWide(k *key, m *message, dst, src *byte, n int)

//go:noescape
func openWide(k *key, m *message, dst, src *byte, n int)

//go:noescape
func expandKey(secret *[KeySize]byte, rounds *[15 * blockSize]byte)

// supported reports whether the processor has the instructions and the system keeps their registers.
// GODEBUG=cpu.avx512f=off says no.
func supported() bool {
	x := &cpu.X86
	return x.HasAES && x.HasAVX2 && x.HasBMI2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL &&
		x.HasAVX512VAES && x.HasAVX512VPCLMULQDQ
}

func widen(secret *[KeySize]byte, block cipher.Block, standard cipher.AEAD) cipher.AEAD {
	if !supported() {
		return standard
	}
	w := &wide{standard: standard}
	expandKey(secret, &w.key.rounds)
	var h [blockSize]byte
	block.Encrypt(h[:], h[:])
	w.key.powers = powersOf(h)
	if !w.agrees() {
		return standard
	}
	return w
}

// agrees compares a message of each part of the code with what the standard library makes of it: a processor, or a
// machine that only pretends to be one, that gets this wrong is not used. The nonce is none that a record can have, and
// nothing of the message leaves this function.
func (w *wide) agrees() bool {
	const stride = 16 * blockSize // two of them and the longest rest use each power
	nonce := bytes.Repeat([]byte{0xff}, NonceSize)
	text := make([]byte, 2*stride+15*blockSize+1)
	for i := range text {
		text[i] = byte(i)
	}
	sealed := w.Seal(nil, nonce, text, text[:blockSize])
	opened, err := w.Open(nil, nonce, sealed, text[:blockSize])
	return err == nil && bytes.Equal(opened, text) &&
		bytes.Equal(sealed, w.standard.Seal(nil, nonce, text, text[:blockSize]))
}

func (w *wide) NonceSize() int { return NonceSize }
func (w *wide) Overhead() int  { return TagSize }

// fits reports whether a text of n bytes and its associated data are of the kind that records have.
func fits(n int, associated []byte) bool {
	return n <= maxWide && len(associated) > 0 && len(associated) <= blockSize
}

// set fills in everything but the tag. Copies of known lengths are single instructions, and this is done for each record.
func (m *message) set(nonce, associated []byte, n int) {
	*(*[NonceSize]byte)(m.counter[:]) = [NonceSize]byte(nonce)
	binary.LittleEndian.PutUint32(m.counter[NonceSize:], 1)
	if len(associated) == blockSize {
		m.associated = [blockSize]byte(associated)
	} else {
		copy(m.associated[:], associated)
	}
	binary.BigEndian.PutUint64(m.lengths[:], uint64(len(associated))*8)
	binary.BigEndian.PutUint64(m.lengths[8:], uint64(n)*8)
}

// same compares tags in constant time.
func same(a, b [TagSize]byte) bool {
	x := binary.NativeEndian.Uint64(a[:8]) ^ binary.NativeEndian.Uint64(b[:8])
	y := binary.NativeEndian.Uint64(a[8:]) ^ binary.NativeEndian.Uint64(b[8:])
	return x|y == 0
}

func (w *wide) Seal(dst, nonce, plaintext, associated []byte) []byte {
	if len(nonce) != NonceSize || !fits(len(plaintext), associated) {
		return w.standard.Seal(dst, nonce, plaintext, associated)
	}
	head, out := extend(dst, len(plaintext)+TagSize)
	if inexact(out, plaintext) || overlap(out, associated) {
		panic("aesgcm: buffers overlap")
	}
	var m message
	m.set(nonce, associated, len(plaintext))
	sealWide(&w.key, &m, unsafe.SliceData(out), unsafe.SliceData(plaintext), len(plaintext))
	*(*[TagSize]byte)(out[len(plaintext):]) = m.tag
	return head
}

var errOpen = errors.New("aesgcm: message authentication failed")

func (w *wide) Open(dst, nonce, ciphertext, associated []byte) ([]byte, error) {
	if len(nonce) != NonceSize || len(ciphertext) < TagSize || !fits(len(ciphertext)-TagSize, associated) {
		return w.standard.Open(dst, nonce, ciphertext, associated)
	}
	n := len(ciphertext) - TagSize
	head, out := extend(dst, n)
	if inexact(out, ciphertext) || overlap(out, associated) {
		panic("aesgcm: buffers overlap")
	}
	var m message
	m.set(nonce, associated, n)
	openWide(&w.key, &m, unsafe.SliceData(out), unsafe.SliceData(ciphertext), n)
	if !same(m.tag, [TagSize]byte(ciphertext[n:])) {
		clear(out)
		return nil, errOpen
	}
	return head, nil
}

// extend returns dst with n more bytes, and these.
func extend(dst []byte, n int) (head, more []byte) {
	head = slices.Grow(dst, n)[:len(dst)+n]
	return head, head[len(dst):]
}

// overlap reports whether two slices share memory.
func overlap(a, b []byte) bool {
	return len(a) > 0 && len(b) > 0 &&
		uintptr(unsafe.Pointer(&a[0])) <= uintptr(unsafe.Pointer(&b[len(b)-1])) &&
		uintptr(unsafe.Pointer(&b[0])) <= uintptr(unsafe.Pointer(&a[len(a)-1]))
}

// inexact reports whether two slices share memory and don't begin at the same place.
func inexact(a, b []byte) bool {
	return len(a) > 0 && len(b) > 0 && &a[0] != &b[0] && overlap(a, b)
}

// element is one of GF(2^128) as GCM has them, its bytes turned round: bit 63-k of high is the coefficient of x^k.
type element struct{ high, low uint64 }

// powersOf returns H^17/x … H/x as the key keeps them. It takes the same time whatever h is.
func powersOf(h [blockSize]byte) (table [powers + padding][blockSize]byte) {
	one := element{binary.BigEndian.Uint64(h[:]), binary.BigEndian.Uint64(h[8:])}
	power := one.divideByX()
	for i := powers - 1; i >= 0; i-- {
		binary.LittleEndian.PutUint64(table[i][:], power.low)
		binary.LittleEndian.PutUint64(table[i][8:], power.high)
		power = power.times(one)
	}
	return table
}

// divideByX uses that 1/x = x^127 + x^6 + x + 1 modulo x^128 + x^7 + x^2 + x + 1.
func (a element) divideByX() element {
	carry := -(a.high >> 63)
	return element{(a.high<<1 | a.low>>63) ^ carry&0xc2<<56, a.low<<1 ^ carry&1}
}

// timesX uses that x^128 = x^7 + x^2 + x + 1.
func (a element) timesX() element {
	carry := -(a.low & 1)
	return element{a.high>>1 ^ carry&(0xe1<<56), a.low>>1 | a.high<<63}
}

func (a element) times(b element) (product element) {
	for i := range 128 {
		bit := -(b.high >> 63)
		b = element{b.high<<1 | b.low>>63, b.low << 1}
		product.high ^= a.high & bit
		product.low ^= a.low & bit
		if i < 127 {
			a = a.timesX()
		}
	}
	return product
}
