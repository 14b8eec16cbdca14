// SPDX-License-Identifier: Apache-2.0

// Package aesgcm is AES-256-GCM (NIST SP 800-38D) for records: that of the standard library, or, on processors that have
// AES and carry-less multiplication for 512-bit registers (VAES and VPCLMULQDQ: Intel since Ice Lake, AMD since Zen 4),
// code of its own that takes 16 blocks at a time. Both give the same bytes. The build tag purego leaves the second out.
package aesgcm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
)

// KeySize, NonceSize and TagSize are in bytes.
const (
	KeySize   = 32
	NonceSize = 12
	TagSize   = 16
)

// New returns the AEAD under a key of KeySize bytes. It is safe for concurrent use; Seal and Open don't allocate if dst
// has room. Plaintext and ciphertext may be the same memory, at the same place, and may not overlap otherwise. The tag is
// compared in constant time, and what was decrypted is cleared if it doesn't match.
// The error is that of a key of another size.
func New(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	standard, err := cipher.NewGCM(block)
	if err != nil || len(key) != KeySize || fips140.Enabled() {
		return standard, err
	}
	return widen((*[KeySize]byte)(key), block, standard), nil
}
