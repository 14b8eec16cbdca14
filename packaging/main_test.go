// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"
)

func TestVersions(t *testing.T) {
	for text, want := range map[string][4]string{ // semantic, deb, rpm, apk
		"v1.0.0":                  {"1.0.0", "1.0.0", "1.0.0", "1.0.0"},
		"v1.2.3-rc.1":             {"1.2.3-rc.1", "1.2.3~rc.1", "1.2.3~rc.1", "1.2.3_rc1"},
		"v1.0.0-5-gdeadbeef":      {"1.0.0+5.gdeadbeef", "1.0.0+5.gdeadbeef", "1.0.0+5.gdeadbeef", "1.0.0_p5"},
		"v1.0.0-rc.1-5-gdeadbeef": {"1.0.0-rc.1+5.gdeadbeef", "1.0.0~rc.1+5.gdeadbeef", "1.0.0~rc.1+5.gdeadbeef", "1.0.0_rc1_p5"},
	} {
		v, err := parseVersion(text)
		if err != nil {
			t.Error(err)
			continue
		}
		got := [4]string{v.String()}
		for i, format := range []string{"deb", "rpm", "apk"} {
			got[i+1], _ = v.of(format)
		}
		if got != want {
			t.Errorf("%s: %q, expected %q", text, got, want)
		}
	}
	for _, text := range []string{"", "1.0", "v1.0.0-dirty", "v1.0.0; rm", "v1.0.0-5", "v1.0.0\n"} {
		if v, err := parseVersion(text); err == nil {
			t.Errorf("%q is taken for %v", text, v)
		}
	}
}

func TestManualPage(t *testing.T) {
	help := "pilot trust - say who may talk\n\nusage:\n  pilot trust NAME\n\nTrust isn't\n.hidden by a \\ dot.\n\ncommands:\n" +
		"  pilot trust ls            list\n  pilot trust approve NAME  yes\n\nexit statuses:\n  0    done\n"
	got := roff("pilot-trust", help, "1.0.0", time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
	want := `.TH PILOT\-TRUST 1 2026-01-02 "pilot 1.0.0"
.SH NAME
pilot\-trust \- say who may talk
.SH SYNOPSIS
.nf
  pilot trust NAME
.fi
.SH DESCRIPTION
Trust isn\(aqt
\&.hidden by a \e dot.
.SH COMMANDS
.nf
  pilot trust ls            list
  pilot trust approve NAME  yes
.fi
.SH EXIT STATUSES
.nf
  0    done
.fi
`
	if got != want {
		t.Errorf("got\n%s\nexpected\n%s", got, want)
	}
	if names := subcommands(help, []string{"trust"}); strings.Join(names, " ") != "ls approve" {
		t.Errorf("commands %q", names)
	}
}
