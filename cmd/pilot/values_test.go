// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "24h": day, "7d": 7 * day, "2w": 14 * day, "1d12h": 36 * time.Hour, "1w1d1h30m": 8*day + 90*time.Minute, "1ms": time.Millisecond,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; expected %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "0s", "-1h", "7", "d", "1.5d", "-1d", "1d-2h", "99999999w", "106752d", "1h1d", "1d1w", "9223372036854775808ns", "forever"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestParsePorts(t *testing.T) {
	for text, want := range map[string][]identity.PortRange{
		"":                              nil,
		"443":                           {{First: 443, Last: 443}},
		"tcp:443,udp:53,8000-8999":      {{Proto: 6, First: 443, Last: 443}, {Proto: 17, First: 53, Last: 53}, {First: 8000, Last: 8999}},
		"TCP:1-65535, 22":               {{Proto: 6, First: 1, Last: 65535}, {First: 22, Last: 22}},
		"udp:60000-61000,tcp:22,tcp:22": {{Proto: 17, First: 60000, Last: 61000}, {Proto: 6, First: 22, Last: 22}, {Proto: 6, First: 22, Last: 22}},
	} {
		if got, err := parsePorts(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; expected %v", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "65536", "http", "tcp:", "icmp:1", "9-1", "1-", "-1", "1,", ",", "tcp:1:2", "+1", "1_0"} {
		if got, err := parsePorts(text); codeOf(err) != localapi.CodeUsage {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"443", "tcp:443,udp:53,8000-8999", "0", "1-2-3", ",,", "tcp:tcp:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := parsePorts(s)
		if err != nil || ports == nil {
			return
		}
		again, err := parsePorts(formatPorts(ports))
		if err != nil || !slices.Equal(again, ports) {
			t.Errorf("%q: %v is shown as %q, which is read as %v, %v", s, ports, formatPorts(ports), again, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"7d", "1w1d1h", "1.5h", "-1d", "99999999999d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseDuration(s); err == nil && d <= 0 {
			t.Errorf("%q is taken for %v", s, d)
		}
	})
}
