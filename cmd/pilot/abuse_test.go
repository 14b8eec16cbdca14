// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

// running is a program whose daemon is the fake one.
type running struct {
	*program
	out, err bytes.Buffer
	sys      *fakeSystem
	daemon   *fakeDaemon
}

// newRunning starts d, unless it is nil.
func newRunning(t *testing.T, d *fakeDaemon) *running {
	t.Helper()
	dir, err := os.MkdirTemp("", "p") // the path of a Unix socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &running{sys: &fakeSystem{dir: dir}, daemon: d}
	r.program = &program{sys: r.sys, look: inspect.Look, stdin: strings.NewReader(""), stdout: &r.out, stderr: &r.err}
	if d != nil {
		r.serve(t)
	}
	return r
}

// serve makes the daemon answer until the test ends.
func (r *running) serve(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	socket := r.sys.SocketPath(r.sys.dir)
	go func() { ended <- r.daemon.serve(ctx, socket) }()
	r.sys.answer(func(ctx context.Context, path string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	})
	for client := r.clientAt(socket); ; {
		if _, err := client.Status(ctx); err == nil {
			break
		}
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the fake daemon: %v", err)
		}
	})
}

// pilot runs a command line on empty outputs.
func (r *running) pilot(args ...string) int {
	r.out.Reset()
	r.err.Reset()
	return r.run(context.Background(), append([]string{"pilot"}, args...))
}

// The invite is a secret: what the daemon is started with can be seen by other users of the host.
func TestAbuse06InviteReachesTheDaemonBySocketOnly(t *testing.T) {
	invite, err := testInvite()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "invite")
	if err := os.WriteFile(file, []byte(invite), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"argument": {"up", invite}, "file": {"up", "--invite-file", file}, "standard input": {"up", "-"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRunning(t, nil)
			r.stdin = strings.NewReader(invite + "\n")
			r.daemon = &fakeDaemon{}
			r.sys.alive = true
			var seen []string
			r.sys.start = func(args []string, log string) (int, error) {
				seen = append(append(append(seen, args...), log), os.Environ()...)
				r.serve(t)
				return 1, nil
			}
			if status := r.pilot(args...); status != localapi.ExitOK {
				t.Fatalf("exit status %d: %s", status, r.err.String())
			}
			if len(seen) == 0 {
				t.Fatal("no daemon was started")
			}
			secret := strings.TrimPrefix(invite, inviteScheme)
			for _, s := range append(seen, r.out.String(), r.err.String()) {
				if strings.Contains(s, secret[:20]) {
					t.Errorf("the invite is seen in %q", s)
				}
			}
			if len(r.daemon.up) != 1 || r.daemon.up[0].Invite != invite {
				t.Errorf("the daemon was asked %v", r.daemon.up)
			}
			files, err := filepath.Glob(filepath.Join(r.sys.dir, "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				if raw, err := os.ReadFile(f); err == nil && bytes.Contains(raw, []byte(secret[:20])) {
					t.Errorf("the invite is in the file %s", f)
				}
			}
		})
	}
}

// An error that repeats what was typed must not repeat an invite.
func TestAbuse06InviteIsNotRepeatedInErrors(t *testing.T) {
	invite, err := testInvite()
	if err != nil {
		t.Fatal(err)
	}
	r := newRunning(t, &fakeDaemon{})
	for _, args := range [][]string{
		{invite}, {"status", invite}, {"up", invite, invite}, {"up", invite[:len(invite)-3]}, {"up", "--invite=" + invite}, {"invite", invite},
		{"up", "--invite-file", "x", invite}, {"help", invite}, {"whois", "a", invite, "--json"}, {"trust", "ls", invite},
	} {
		if status := r.pilot(args...); status != localapi.ExitUsage {
			t.Errorf("%.20q: exit status %d", args, status)
		}
		if strings.Contains(r.out.String()+r.err.String(), invite[10:30]) {
			t.Errorf("%.20q: the invite is repeated:\n%s%s", args, r.out.String(), r.err.String())
		}
	}
}

// Names, reasons and all other text may come from another agent, or from a coordinator that lies.
func TestAbuse18HostileTextNeverReachesTheTerminalRaw(t *testing.T) {
	evil := "\x1b]0;owned\x07\x1b[2J\r\nagent trusted\x00\x7f\u009b31m\u202egnp.exe\u2066\u200b\U000e0041\xff\t"
	commands := [][]string{
		{"up"}, {"status"}, {"netcheck"}, {"doctor", "--all"}, {"keys", "move", "--to", "system"}, {"bugreport", "-o", filepath.Join(t.TempDir(), "r")}, {"ping", "warehouse", "--count", "1"}, {"ping", "gone", "--count", "1"}, {"ping", "nobody"}, {"invite"}, {"agents"},
		{"whois", "warehouse"}, {"whois", "nobody"}, {"trust", "warehouse", "--reason", "x"}, {"trust", "approve", "auditor"}, {"trust", "reject", "stranger"},
		{"trust", "pending"}, {"trust", "ls"}, {"up", "--name", "taken"}, {"serve", "80"}, {"serve", "81"}, {"serve", "rm", "80"}, {"serve", "ls"},
		{"nc", "nobody", "22"}, {"nc", evil, "x"}, {"forward", "0=nobody:80"}, {"forward", evil}, {evil}, {"status", evil}, {"status", "--" + evil}, {"ping", evil, "--count", "1"},
	}
	r := newRunning(t, &fakeDaemon{state: localapi.StateUp, evil: evil})
	for _, args := range commands {
		for _, format := range []string{"text", "json"} {
			if format == "json" {
				args = append(append([]string{}, args...), "--json")
			}
			r.pilot(args...)
			if r.out.Len()+r.err.Len() == 0 {
				t.Errorf("%q printed nothing", args)
			}
			checkPlain(t, args, r.out.String())
			checkPlain(t, args, r.err.String())
		}
	}
	r.pilot("trust", "pending")
	if want := "  reason (theirs): " + strconv.Quote("quarterly audit"+strings.ToValidUTF8(evil, "\ufffd")) + "\n"; !strings.Contains(r.out.String(), want) {
		t.Errorf("the reason is not quoted as theirs:\n%s", r.out.String())
	}
	// Nor may a name that is none reach a shell that completes.
	r.pilot("ping", completeFlag)
	if got := r.out.String(); got != "planner\n" {
		t.Errorf("completion offers %q", got)
	}
}

func checkPlain(t *testing.T, args []string, text string) {
	t.Helper()
	for i, c := range text {
		if c == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd") || c != '\n' && !strconv.IsPrint(c) {
			t.Errorf("%q prints %q at %d of %q", args, c, i, text)
			return
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "agent trusted") {
			t.Errorf("%q lets a peer write a line of its own: %q", args, text)
		}
	}
}

// A socket that somebody else owns is not talked to.
func TestAbuse05SquattedSocketIsRefused(t *testing.T) {
	r := newRunning(t, nil)
	r.sys.answer(func(context.Context, string) (net.Conn, error) {
		return nil, &localapi.Error{Code: localapi.CodeInsecurePath, Message: "the socket is owned by user 1000"}
	})
	r.sys.start = func([]string, string) (int, error) { return 0, errors.New("a daemon was started") }
	for _, command := range []string{"up", "status", "down", "agents"} {
		if status := r.pilot(command); status != localapi.ExitState {
			t.Errorf("%s: exit status %d: %s", command, status, r.err.String())
		}
	}
}
