// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/sandbox"
)

func newInvite(t *testing.T) string {
	t.Helper()
	text, err := testInvite()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// runs starts a pilot run whose program ends with a status, and returns what it was started with.
func runs(t *testing.T, d *fakeDaemon) (r *running, got *sandbox.Options) {
	t.Helper()
	r, got = newRunning(t, d), new(sandbox.Options)
	t.Setenv("XDG_STATE_HOME", r.sys.dir)
	t.Setenv("XDG_RUNTIME_DIR", r.sys.dir)
	t.Setenv(inviteVariable, "")
	r.sys.run = func(o sandbox.Options) (int, localapi.Egress, error) {
		*got = o
		return 7, localapi.Egress{}, nil
	}
	return r, got
}

func TestRun(t *testing.T) {
	r, got := runs(t, nil)
	inviteText := newInvite(t)
	t.Setenv(inviteVariable, inviteText)
	if status := r.pilot("run", "--name", "worker", "--egress", "Example.test:443,10.0.0.0/8", "--egress", "all:80", "--", "sh", "-c", "exit 7"); status != 7 {
		t.Fatalf("status %d: %s", status, r.err.String())
	}
	if r.out.Len() > 0 || r.err.Len() > 0 {
		t.Errorf("output: %q, %q", r.out.String(), r.err.String())
	}
	if !slices.Equal(got.Program, []string{"sh", "-c", "exit 7"}) || got.Name != "worker" || got.Ephemeral ||
		got.StateDir != filepath.Join(r.sys.dir, "pilot", "run", "worker") || !slices.Contains(got.Hide, filepath.Join(r.sys.dir, "pilot")) {
		t.Errorf("%+v", got)
	}
	if rules := got.Egress.Rules(); !slices.Equal(rules, []string{"example.test:443", "10.0.0.0/8", "all:80"}) {
		t.Errorf("rules: %q", rules)
	}
	if slices.ContainsFunc(got.Env, func(v string) bool { return strings.Contains(v, inviteText) }) || !slices.Contains(got.Env, "XDG_STATE_HOME="+r.sys.dir) {
		t.Error("the environment of the program")
	}
	if text, err := got.Invite(t.Context()); err != nil || text != inviteText {
		t.Errorf("%q, %v", text, err)
	}
}

func TestRunEphemeral(t *testing.T) {
	r, got := runs(t, nil)
	if status := r.pilot("run", "--ephemeral", "--", "true"); status != 7 {
		t.Fatalf("status %d: %s", status, r.err.String())
	}
	first := *got
	if !first.Ephemeral || !strings.HasPrefix(first.Name, "run-") || filepath.Dir(first.StateDir) != r.sys.dir {
		t.Errorf("%+v", first)
	}
	if r.pilot("run", "--ephemeral", "--", "true"); got.Name == first.Name || got.StateDir == first.StateDir {
		t.Error("two are the same")
	}
}

func TestRunIsRefused(t *testing.T) {
	r, got := runs(t, nil)
	text := filepath.Join(r.sys.dir, "text")
	if err := os.WriteFile(text, []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		status int
		code   string
	}{
		{"run", 2, localapi.CodeUsage},
		{"run --name worker", 2, localapi.CodeUsage},
		{"run -- true", 125, localapi.CodeUsage},
		{"run --name Worker -- true", 125, localapi.CodeNameInvalid},
		{"run --name worker --egress example -- true", 2, localapi.CodeUsage},
		{"run --name worker --egress none,all -- true", 2, localapi.CodeUsage},
		{"run --ephemeral --state x -- true", 125, localapi.CodeUsage},
		{"run --name worker -- /nowhere/at/all", 127, localapi.CodeNotFound},
		{"run --name worker -- no-such-program-anywhere", 127, localapi.CodeNotFound},
		{"run --name worker -- " + text, 126, localapi.CodePermission},
	} {
		words := strings.Fields(c.args)
		words = append(words[:1:1], append([]string{"--json"}, words[1:]...)...)
		status := r.pilot(words...)
		var body struct{ Error localapi.Error }
		if err := json.Unmarshal([]byte(r.err.String()+r.out.String()), &body); err != nil || status != c.status || body.Error.Code != c.code || body.Error.Message == "" {
			t.Errorf("%s: status %d, %q, %q, %v", c.args, status, r.out.String(), r.err.String(), err)
		}
	}
	if got.Name != "" {
		t.Errorf("it ran: %+v", got)
	}
	r.sys.run = func(sandbox.Options) (int, localapi.Egress, error) {
		return 0, localapi.Egress{}, &localapi.Error{Code: localapi.CodeNoNamespace, Message: "not\x1bhere", Hint: "do that"}
	}
	if status := r.pilot("run", "--name", "worker", "--", "true"); status != 125 || r.err.String() != "pilot: not\\x1bhere\nhint: do that\n" {
		t.Errorf("status %d, %q", status, r.err.String())
	}
}

// What was refused is said in one line, unless that is not wanted; with --json all of it.
func TestRunTellsWhatWasRefused(t *testing.T) {
	r, _ := runs(t, nil)
	outside := localapi.Egress{Rules: []string{}, Refused: 12, Last: []localapi.Refusal{
		{Kind: "dns", Target: "a.test", Count: 9, Time: time.Unix(1, 0).UTC()}, {Kind: "tcp", Target: "8.8.8.8:443"}, {Kind: "udp", Target: "[2a00::1]:53"}, {Kind: "dns", Target: "b.test"},
	}}
	r.sys.run = func(sandbox.Options) (int, localapi.Egress, error) { return 0, outside, nil }
	if r.pilot("run", "--name", "worker", "--", "true"); r.err.String() != "pilot: refused 12 times by --egress: dns a.test, tcp 8.8.8.8:443, udp [2a00::1]:53, …\n" {
		t.Errorf("%q", r.err.String())
	}
	if r.pilot("run", "--name", "worker", "--quiet", "--", "true"); r.err.Len() > 0 {
		t.Errorf("%q", r.err.String())
	}
	var result localapi.RunResult
	if r.pilot("run", "--name", "worker", "--json", "--", "true"); json.Unmarshal(r.err.Bytes(), &result) != nil || result.Name != "worker" || len(result.Egress.Last) != 4 {
		t.Errorf("%q", r.err.String())
	}
}

func TestRunInvites(t *testing.T) {
	r, got := runs(t, &fakeDaemon{state: localapi.StateUp})
	inviteText := newInvite(t)
	file := filepath.Join(r.sys.dir, "invite")
	if err := os.WriteFile(file, []byte("pilot up "+inviteText+"   (one use, 24 h)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) (string, error) {
		t.Helper()
		if status := r.pilot(append(append([]string{"run", "--name", "worker"}, args...), "--", "true")...); status != 7 {
			t.Fatalf("status %d: %s", status, r.err.String())
		}
		return got.Invite(t.Context())
	}
	if text, err := ask("--invite-file", file); err != nil || text != inviteText {
		t.Errorf("from a file: %q, %v", text, err)
	}
	r.program.stdin = strings.NewReader(inviteText + "\n")
	if text, err := ask("--invite-file", "-"); err != nil || text != inviteText {
		t.Errorf("from standard input: %q, %v", text, err)
	}
	if text, err := ask(); err != nil || !strings.HasPrefix(text, "pilot://") {
		t.Errorf("from the daemon: %q, %v", text, err)
	}
	r, got = runs(t, nil)
	if _, err := ask(); codeOf(err) != localapi.CodeNotRunning || !strings.Contains(asError(err).Hint, "--invite-file") {
		t.Errorf("from nobody: %v", err)
	}
	t.Setenv(inviteVariable, "nonsense")
	if _, err := ask(); codeOf(err) != localapi.CodeInviteInvalid {
		t.Errorf("nonsense: %v", err)
	}
}

// The commands that pilot has for itself are not for people.
func TestSandboxCommands(t *testing.T) {
	r, _ := runs(t, nil)
	if status := r.pilot(sandbox.CommandInit, "--", "true"); status != 42 {
		t.Errorf("status %d", status)
	}
	if status := r.pilot(sandbox.CommandStage, "--", "true"); status == 0 || !strings.Contains(r.err.String(), `staged ["true"]`) {
		t.Errorf("status %d, %q", status, r.err.String())
	}
	if r.pilot("help"); strings.Contains(r.out.String(), "sandbox-") {
		t.Error("help shows them")
	}
}
