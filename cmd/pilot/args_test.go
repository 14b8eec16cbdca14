// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

func TestArrange(t *testing.T) {
	for line, want := range map[string]string{
		"up --name x":                     "pilot up --name x --",
		"up pilot://a --name x":           "pilot up --name x -- pilot://a",
		"--json up - --name=x":            "pilot --json up --name=x -- -",
		"up - --json --name x":            "pilot --json up --name x -- -",
		"trust warehouse --reason y":      "pilot trust --reason y -- warehouse",
		"trust --ports 1 approve w":       "pilot trust approve --ports 1 -- w",
		"trust warehouse approve":         "pilot trust -- warehouse approve",
		"trust approve w --state d":       "pilot --state d trust approve -- w",
		"ping --count -1 w":               "pilot ping --count -1 -- w",
		"ping -count 1 w":                 "pilot ping -count 1 -- w",
		"ping -- --json":                  "pilot ping -- --json",
		"--version":                       "pilot version --",
		"--state d status":                "pilot --state d status --",
		"invite --tag a --uses 2 --tag b": "pilot invite --tag a --uses 2 --tag b --",
	} {
		inv, err := arrange((&program{}).app(), append([]string{"pilot"}, strings.Fields(line)...))
		if got := strings.Join(inv.args, " "); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%q becomes %q, %v; expected %q", line, got, err, want)
		}
	}
}

func TestArrangeFindsHelpAndJSON(t *testing.T) {
	for line, want := range map[string]struct {
		path       string
		help, json bool
	}{
		"":                        {"pilot", true, false},
		"--json":                  {"pilot", true, true},
		"--help":                  {"pilot", true, false},
		"up --help":               {"pilot up", true, false},
		"trust approve x -h":      {"pilot trust approve", true, false},
		"status --json":           {"pilot status", false, true},
		"status --json=false":     {"pilot status", false, false},
		"up --name --json":        {"pilot up", false, false},
		"wrong --json":            {"pilot", true, true},
		"status --wrong --json":   {"pilot status", false, true},
		"ping x -- --json":        {"pilot ping", false, false},
		"ping --count 1 --help x": {"pilot ping", true, false},
	} {
		inv, _ := arrange((&program{}).app(), append([]string{"pilot"}, strings.Fields(line)...)) // some are wrong on purpose
		if got := commandName(inv.path); got != want.path || inv.help != want.help || inv.json != want.json {
			t.Errorf("%q: %q, help %v, json %v; expected %v", line, got, inv.help, inv.json, want)
		}
	}
}

// Whatever is typed is either refused or kept: no argument gets lost, none is made up.
func FuzzArrange(f *testing.F) {
	for _, s := range []string{"up - --name x", "trust --reason a b -- --json", "--state", "ping - - -", "-- -- --", "--=", "-", "trust trust", "help help"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		inv, err := arrange((&program{}).app(), append([]string{"pilot"}, args...))
		if err != nil || inv.help {
			return
		}
		sorted := func(list []string, drop ...string) []string {
			list = slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(drop, s) })
			slices.Sort(list)
			return list
		}
		got, want := sorted(inv.args[1:], "--", "version", "--version"), sorted(args, "--", "version", "--version")
		if !slices.Equal(got, want) {
			t.Errorf("%q becomes %q", args, inv.args)
		}
	})
}
