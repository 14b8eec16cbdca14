// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"strconv"
	"testing"
	"time"
	"unicode/utf8"
)

func TestSafe(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "",
		`plain "quotes" \ ok`:   `plain "quotes" \ ok`,
		"Grüße, 世界":             "Grüße, 世界",
		"a\x1b[31mb":            `a\x1b[31mb`,
		"a\nb\tc\r":             `a\nb\tc\r`,
		"\u202egnp.exe\u2066":   `\u202egnp.exe\u2066`,
		"\u009b\x7f\x00":        `\u009b\x7f\x00`,
		"cut \xe4\xb8":          `cut \xe4\xb8`,
		"tag \U000e0041":        `tag \U000e0041`,
		"no-break\u00a0space":   `no-break\u00a0space`,
		"a replaced \ufffd one": "a replaced \ufffd one",
	} {
		if got := safe(text); got != want {
			t.Errorf("safe(%q) = %q, expected %q", text, got, want)
		}
	}
}

func FuzzSafe(f *testing.F) {
	for _, s := range []string{"plain", "\x1b[2J", "\xff\xfe", "\u202e", "a\ufffdb", "\U000e0041"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		shown := safe(s)
		if !utf8.ValidString(shown) {
			t.Fatalf("safe(%q) = %q is no UTF-8", s, shown)
		}
		for _, c := range shown {
			if !strconv.IsPrint(c) {
				t.Fatalf("safe(%q) = %q has %q", s, shown, c)
			}
		}
		var b bytes.Buffer
		if err := writeJSON(&b, s, ""); err != nil {
			t.Fatal(err)
		}
		var back, reference string
		plain, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(plain, &reference); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || back != reference {
			t.Fatalf("%q is written as %s, which is read as %q, %v", s, b.Bytes(), back, err)
		}
		for _, c := range b.String() {
			if c != '\n' && !strconv.IsPrint(c) {
				t.Fatalf("%q is written as %q", s, b.String())
			}
		}
	})
}

func TestUnits(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 1_234_567: "1.2 MB", 999_950: "1.0 MB", 999_949: "999.9 kB", 1<<64 - 1: "18.4 EB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, expected %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 s", 59 * time.Second: "59 s", 90 * time.Second: "1 min", time.Hour: "1 h", 24 * time.Hour: "24 h", 7 * 24 * time.Hour: "7 days",
	} {
		if got := period(d); got != want {
			t.Errorf("period(%v) = %q, expected %q", d, got, want)
		}
	}
	for ms, want := range map[float64]string{0: "", -1: "", 0.01234: "0.012 ms", 0.1234: "0.123 ms", 1.234: "1.23 ms", 12.34: "12.3 ms", 123.4: "123 ms", 1234: "1234 ms"} {
		if got := millis(ms); got != want {
			t.Errorf("millis(%v) = %q, expected %q", ms, got, want)
		}
	}
	now := time.Now()
	for got, want := range map[string]string{
		ago(time.Time{}, now): "", ago(now.Add(time.Minute), now): "now", ago(now.Add(-12*time.Second), now): "12 s ago",
		until(now.Add(-1), now): "expired", until(now.Add(24*time.Hour-1), now): "in 24 h",
	} {
		if got != want {
			t.Errorf("%q, expected %q", got, want)
		}
	}
}
