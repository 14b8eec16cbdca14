// SPDX-License-Identifier: Apache-2.0

package aesgcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
)

// standard is the judge of everything here.
func standard(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ours(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	a, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectors are test cases 13 to 16 of McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B.
func TestVectors(t *testing.T) {
	const (
		key  = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"
		text = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
			"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
		cipher = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
			"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
	)
	for _, v := range []struct{ name, key, nonce, text, associated, sealed string }{
		{"13", fmt.Sprintf("%064x", 0), fmt.Sprintf("%024x", 0), "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
		{"14", fmt.Sprintf("%064x", 0), fmt.Sprintf("%024x", 0), fmt.Sprintf("%032x", 0), "",
			"cea7403d4d606b6e074ec5d3baf39d18" + "d0d1c8a799996bf0265b98b5d48ab919"},
		{"15", key, "cafebabefacedbaddecaf888", text, "", cipher + "b094dac5d93471bdec1a502270e3cc6c"},
		{"16", key, "cafebabefacedbaddecaf888", text[:120], "feedfacedeadbeeffeedfacedeadbeefabaddad2",
			cipher[:120] + "76fc6ece0f4e1768cddf8853bb2d551b"},
	} {
		t.Run(v.name, func(t *testing.T) {
			a, nonce, text, associated := ours(t, unhex(t, v.key)), unhex(t, v.nonce), unhex(t, v.text), unhex(t, v.associated)
			sealed := a.Seal(nil, nonce, text, associated)
			if got := hex.EncodeToString(sealed); got != v.sealed {
				t.Fatalf("sealed to %s, want %s", got, v.sealed)
			}
			opened, err := a.Open(nil, nonce, sealed, associated)
			if err != nil || !bytes.Equal(opened, text) {
				t.Fatalf("opened to %x, %v", opened, err)
			}
		})
	}
}

// sample is a random message.
type sample struct{ key, nonce, associated, text []byte }

func newSample(random *rand.ChaCha8, text, associated int) sample {
	s := sample{make([]byte, KeySize), make([]byte, NonceSize), make([]byte, associated), make([]byte, text)}
	for _, b := range [][]byte{s.key, s.nonce, s.associated, s.text} {
		random.Read(b)
	}
	return s
}

// check seals and opens a sample in memory of its own and in place, with other bytes before and behind.
func (s sample) check(t *testing.T) {
	t.Helper()
	a := ours(t, s.key)
	want := standard(t, s.key).Seal(nil, s.nonce, s.text, s.associated)
	const before, behind = 7, 70
	for _, inPlace := range []bool{false, true} {
		room := bytes.Repeat([]byte{0xa5}, before+len(want)+behind)
		from := bytes.Clone(s.text)
		if inPlace {
			from = append(room[before:before], s.text...)
		}
		got := a.Seal(room[:before], s.nonce, from, s.associated)
		if &got[0] != &room[0] || !bytes.Equal(got[before:], want) {
			t.Fatalf("%d bytes (in place: %t) were sealed to\n%x, want\n%x", len(s.text), inPlace, got[before:], want)
		}
		s.untouched(t, room, before, len(want))
		if !inPlace && !bytes.Equal(from, s.text) {
			t.Fatal("Seal changed the plaintext")
		}

		room = bytes.Repeat([]byte{0xa5}, before+len(want)+behind)
		from = bytes.Clone(want)
		if inPlace {
			from = append(room[before:before], want...)
		}
		opened, err := a.Open(room[:before], s.nonce, from, s.associated)
		if err != nil || !bytes.Equal(opened[before:], s.text) {
			t.Fatalf("%d bytes (in place: %t) were opened to\n%x, %v, want\n%x", len(s.text), inPlace, opened, err, s.text)
		}
		if inPlace {
			s.untouched(t, room, before, len(want))
		} else {
			s.untouched(t, room, before, len(s.text))
		}
	}
}

func (s sample) untouched(t *testing.T, room []byte, before, n int) {
	t.Helper()
	for i, c := range room {
		if (i < before || i >= before+n) && c != 0xa5 {
			t.Fatalf("byte %d of the room for %d bytes was overwritten", i-before, n)
		}
	}
}

// TestSameAsStandard tries every length up to more than two strides with a rest, the lengths around 64 KiB and those that are
// left to the standard library.
func TestSameAsStandard(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	for n := range 800 {
		newSample(random, n, 1+n%16).check(t)
		newSample(random, n, 16).check(t)
	}
	for _, n := range []int{1280, 1420, 1500, 9000, 65519, 65535, 65536, 65537, 1 << 20, 1<<20 + 1} {
		newSample(random, n, 16).check(t)
	}
	for _, associated := range []int{0, 17, 100} {
		newSample(random, 700, associated).check(t)
	}
}

// TestManyKeys shows powers and round keys to be right whatever the key is.
func TestManyKeys(t *testing.T) {
	random := rand.NewChaCha8([32]byte{2})
	for range 3000 {
		newSample(random, 16*(1+int(random.Uint64()%33)), 16).check(t)
	}
	for _, c := range []byte{0, 0xff} {
		s := newSample(random, 600, 16)
		for _, b := range [][]byte{s.key, s.nonce, s.associated, s.text} {
			for i := range b {
				b[i] = c
			}
		}
		s.check(t)
	}
}

// TestForged changes each bit of a message, its nonce and its header in turn.
func TestForged(t *testing.T) {
	random := rand.NewChaCha8([32]byte{3})
	for _, n := range []int{0, 1, 16, 63, 64, 255, 256, 257, 600} {
		s := newSample(random, n, 16)
		a := ours(t, s.key)
		sealed := a.Seal(nil, s.nonce, s.text, s.associated)
		dst := make([]byte, n)
		for _, part := range [][]byte{sealed, s.nonce, s.associated} {
			for bit := range len(part) * 8 {
				part[bit/8] ^= 1 << (bit % 8)
				opened, err := a.Open(dst[:0], s.nonce, sealed, s.associated)
				if err == nil || opened != nil {
					t.Fatalf("%d bytes with bit %d changed were opened", n, bit)
				}
				if !bytes.Equal(dst, make([]byte, n)) {
					t.Fatal("what did not match its tag was left in dst")
				}
				part[bit/8] ^= 1 << (bit % 8)
			}
		}
		for cut := range sealed {
			if _, err := a.Open(dst[:0], s.nonce, sealed[:cut], s.associated); err == nil {
				t.Fatalf("%d of %d bytes were opened", cut, len(sealed))
			}
		}
		if _, err := a.Open(dst[:0], s.nonce, sealed, s.associated); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMisuse(t *testing.T) {
	if _, err := New(make([]byte, KeySize+1)); err == nil {
		t.Error("a key of 33 bytes was taken")
	}
	a := ours(t, make([]byte, KeySize))
	if a.NonceSize() != NonceSize || a.Overhead() != TagSize {
		t.Errorf("nonces have %d bytes, tags %d", a.NonceSize(), a.Overhead())
	}
	room, nonce, associated := make([]byte, 400), make([]byte, NonceSize), make([]byte, 16)
	for name, f := range map[string]func(){
		"short nonce":                     func() { a.Seal(nil, nonce[1:], room, associated) },
		"text one byte on":                func() { a.Seal(room[:0], nonce, room[1:100], associated) },
		"text one byte before":            func() { a.Seal(room[:1], nonce, room[:100], associated) },
		"tag on the associated data":      func() { a.Seal(room[:0], nonce, room[:100], room[110:126]) },
		"sealed text one byte on":         func() { _, _ = a.Open(room[:0], nonce, room[1:100], associated) },
		"opened over associated data":     func() { _, _ = a.Open(room[:0], nonce, room[:100], room[50:66]) },
		"opened with a nonce of 13 bytes": func() { _, _ = a.Open(nil, make([]byte, 13), room, associated) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("did not panic")
				}
			}()
			f()
		})
	}
}

func TestNoAllocation(t *testing.T) {
	random := rand.NewChaCha8([32]byte{4})
	s := newSample(random, 1420, 16)
	a := ours(t, s.key)
	sealed, opened := make([]byte, 0, 1500), make([]byte, 0, 1500)
	if n := testing.AllocsPerRun(100, func() {
		sealed = a.Seal(sealed[:0], s.nonce, s.text, s.associated)
		var err error
		if opened, err = a.Open(opened[:0], s.nonce, sealed, s.associated); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzSameAsStandard(f *testing.F) {
	f.Add(make([]byte, 32), make([]byte, 12), make([]byte, 16), []byte("text"))
	f.Add([]byte("key"), []byte("nonce"), []byte{}, bytes.Repeat([]byte{1}, 256))
	f.Add([]byte{}, []byte{}, []byte("seventeen bytes!!"), bytes.Repeat([]byte{2}, 1000))
	f.Fuzz(func(t *testing.T, key, nonce, associated, text []byte) {
		key = append(key, make([]byte, KeySize)...)[:KeySize]
		nonce = append(nonce, make([]byte, NonceSize)...)[:NonceSize]
		sample{key, nonce, associated, text}.check(t)
		// What it takes for a sealed message has to be one for the other, too.
		got, gotErr := ours(t, key).Open(nil, nonce, text, associated)
		want, wantErr := standard(t, key).Open(nil, nonce, text, associated)
		if (gotErr == nil) != (wantErr == nil) || !bytes.Equal(got, want) {
			t.Errorf("opened to %x, %v, want %x, %v", got, gotErr, want, wantErr)
		}
	})
}
