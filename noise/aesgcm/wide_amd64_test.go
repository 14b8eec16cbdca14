// SPDX-License-Identifier: Apache-2.0

//go:build !purego

package aesgcm

import (
	"math/rand/v2"
	"reflect"
	"testing"
)

// TestWide fails where the processor has what it takes and the standard library's code is used all the same.
func TestWide(t *testing.T) {
	if !supported() {
		t.Skip("this processor has no VAES or no VPCLMULQDQ for 512 bits: the tests of this package tried the standard library")
	}
	if a := ours(t, make([]byte, KeySize)); reflect.TypeOf(a) != reflect.TypeFor[*wide]() {
		t.Errorf("New returned %T", a)
	}
}

// TestWrongProcessor shows that a key whose results differ from the standard library's is not used.
func TestWrongProcessor(t *testing.T) {
	w, ok := ours(t, make([]byte, KeySize)).(*wide)
	if !ok {
		t.Skip("this processor has no VAES or no VPCLMULQDQ for 512 bits")
	}
	for i := range w.key.rounds {
		w.key.rounds[i] ^= 1
		if w.agrees() {
			t.Errorf("byte %d of the round keys is wrong, and it was not noticed", i)
		}
		w.key.rounds[i] ^= 1
	}
	for i := range powers {
		w.key.powers[i][3] ^= 1
		if w.agrees() {
			t.Errorf("power %d of H is wrong, and it was not noticed", powers-i)
		}
		w.key.powers[i][3] ^= 1
	}
	if !w.agrees() {
		t.Error("a right key does not agree")
	}
}

// TestField compares the field's multiplication with laws that it has to obey.
func TestField(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	element1 := element{high: 1 << 63} // the number 1
	for range 1000 {
		a, b, c := element{random.Uint64(), random.Uint64()}, element{random.Uint64(), random.Uint64()}, element{random.Uint64(), random.Uint64()}
		switch {
		case a.times(element1) != a:
			t.Fatal("a * 1 is not a")
		case a.times(b) != b.times(a):
			t.Fatal("a * b is not b * a")
		case a.times(b).times(c) != a.times(b.times(c)):
			t.Fatal("(a * b) * c is not a * (b * c)")
		case a.timesX().divideByX() != a:
			t.Fatal("a * x / x is not a")
		case a.times(element{high: 1 << 62}) != a.timesX():
			t.Fatal("multiplying by the element x is not timesX")
		}
	}
}
