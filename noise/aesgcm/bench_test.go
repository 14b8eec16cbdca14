// SPDX-License-Identifier: Apache-2.0

package aesgcm

import (
	"crypto/cipher"
	"fmt"
	"testing"
)

// BenchmarkSeal and BenchmarkOpen compare New's with the standard library's.
func BenchmarkSeal(b *testing.B) {
	each(b, func(b *testing.B, a cipher.AEAD, n int) {
		text, nonce, header := make([]byte, n, n+TagSize), make([]byte, NonceSize), make([]byte, 16)
		for b.Loop() {
			a.Seal(text[:0], nonce, text, header)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	each(b, func(b *testing.B, a cipher.AEAD, n int) {
		nonce, header := make([]byte, NonceSize), make([]byte, 16)
		sealed := a.Seal(nil, nonce, make([]byte, n), header)
		dst := make([]byte, 0, n)
		for b.Loop() {
			if _, err := a.Open(dst, nonce, sealed, header); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func each(b *testing.B, f func(*testing.B, cipher.AEAD, int)) {
	secret := make([]byte, KeySize)
	for _, n := range []int{64, 256, 576, 1420, 8192} {
		for _, a := range []struct {
			name string
			cipher.AEAD
		}{{"standard", standard(b, secret)}, {"New", ours(b, secret)}} {
			b.Run(fmt.Sprintf("%d/%s", n, a.name), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				f(b, a, n)
			})
		}
	}
}
