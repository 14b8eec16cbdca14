// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// What a command is told reaches the daemon, no less and no more.
func TestRequests(t *testing.T) {
	r := newRunning(t, &fakeDaemon{state: localapi.StateUp})
	for _, args := range [][]string{
		{"up", "--name", "planner", "--network", "lab", "--coordinator-listen", "192.0.2.1:7000"},
		{"up", "--avoid-jurisdiction", "us", "--avoid-jurisdiction", "cn"},
		{"up", "--avoid-jurisdiction", ""},
		{"up", "--relay-name", "eu-1", "--relay-region", "eu", "--relay-jurisdiction", "eu-de"},
		{"up", "--no-relay"},
		{"invite"},
		{"invite", "--uses", "3", "--expires", "1d", "--tag", "a", "--tag", "b", "--jurisdiction", "DE", "--no-trust"},
		{"trust", "w", "--reason", "because", "--ports", "tcp:443", "--expires", "2h"},
		{"trust", "approve", "w", "--accept-key", identity.AgentPublic{7}.String()},
		{"trust", "revoke", "w"},
		{"serve", "8080"},
		{"serve", "http:80=unix:/run/app.sock"},
		{"serve", "rm", "udp:53"},
	} {
		if status := r.pilot(args...); status != localapi.ExitOK {
			t.Fatalf("%v: exit status %d: %s", args, status, r.err.String())
		}
	}
	expect(t, r.daemon.up, []localapi.UpRequest{
		{Name: "planner", Network: "lab", CoordinatorListen: "192.0.2.1:7000"},
		{AvoidJurisdictions: []string{"us", "cn"}}, {AvoidJurisdictions: []string{""}},
		{Relay: &localapi.HostedRelay{Name: "eu-1", Region: "eu", Jurisdiction: "eu-de"}}, {Relay: &localapi.HostedRelay{Off: true}},
	})
	expect(t, r.daemon.invite, []localapi.InviteRequest{
		{Uses: 1, Expires: 24 * time.Hour},
		{Uses: 3, Expires: 24 * time.Hour, Tags: []string{"a", "b"}, Jurisdiction: "DE", NoTrust: true},
	})
	expect(t, r.daemon.trust, []localapi.TrustRequest{
		{Action: "request", Target: "w", Reason: "because", Ports: []identity.PortRange{{Proto: 6, First: 443, Last: 443}}, Expires: 2 * time.Hour},
		{Action: "approve", Target: "w", AcceptKey: identity.AgentPublic{7}},
		{Action: "revoke", Target: "w"},
	})
	expect(t, r.daemon.serves, []localapi.ServeRequest{
		{Action: "publish", Port: 8080},
		{Action: "publish", Protocol: "http", Port: 80, Target: "unix:/run/app.sock"},
		{Action: "remove", Protocol: "udp", Port: 53},
	})
}

func expect[T any](t *testing.T, got, want []T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nexpected\n%+v", got, want)
	}
}

// What --json prints is the type that the command's help names.
func TestJSONIsTheDocumentedType(t *testing.T) {
	r := newRunning(t, &fakeDaemon{state: localapi.StateUp})
	for line, into := range map[string]any{
		"up": new(localapi.UpResult), "status": new(localapi.Status), "invite": new(localapi.InviteResult), "agents": new(localapi.AgentList),
		"whois w": new(localapi.Agent), "trust w": new(localapi.TrustEntry), "trust approve w": new(localapi.TrustEntry), "trust reject w": new(localapi.TrustEntry),
		"trust revoke w": new(localapi.TrustEntry), "trust ls": new(localapi.TrustList), "trust pending": new(localapi.TrustList),
		"serve 80": new(localapi.ServeList), "serve rm 80": new(localapi.ServeList), "serve ls": new(localapi.ServeList),
		"version": new(versionResult), "completion bash": new(completionResult), "help up": new(helpResult), "ping w --count 1 --interval 1ms": nil,
	} {
		words := append(strings.Fields(line), "--json")
		if status := r.pilot(words...); status != localapi.ExitOK || r.err.Len() > 0 {
			t.Errorf("%s: exit status %d: %s", line, status, r.err.String())
			continue
		}
		if into == nil {
			continue // lines, compared in a script
		}
		d := json.NewDecoder(bytes.NewReader(r.out.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil || d.More() {
			t.Errorf("%s: %v in\n%s", line, err, r.out.String())
		}
		name := reflect.TypeOf(into).Elem().Name()
		help := slices.DeleteFunc(strings.Fields(line), func(w string) bool { return w == "w" || w == "bash" || w == "80" })
		if help[0] == "help" {
			help = help[:1]
		}
		if r.pilot(append([]string{"help"}, help...)...); !strings.Contains(r.out.String(), "\nwith --json ("+name+"):\n") {
			t.Errorf("the help of %s doesn't name %s", line, name)
		}
	}
}

// Help needs no other document: each command has all parts, and each error has its exit status in the list.
func TestEveryCommandIsDocumented(t *testing.T) {
	var walk func(path []string, c *cli.Command)
	walk = func(path []string, c *cli.Command) {
		path = append(slices.Clone(path), c.Name)
		r := newRunning(t, nil)
		if status := r.pilot(append(slices.Clone(path), "--help")...); status != localapi.ExitOK {
			t.Errorf("%v: exit status %d", path, status)
		}
		for _, part := range []string{"\nusage:\n  pilot " + strings.Join(path, " "), "\nexamples:\n  ", "\nexit statuses:\n  0 ", "\n  130 ", "--json ", "--state DIR"} {
			if !strings.Contains(r.out.String(), part) {
				t.Errorf("the help of %v lacks %q", path, part)
			}
		}
		if !c.Hidden && !strings.Contains(r.out.String(), "\nwith --json (") {
			t.Errorf("the help of %v lacks its JSON", path)
		}
		for _, f := range c.Flags {
			if d, ok := f.(cli.DocGenerationFlag); !ok || d.GetUsage() == "" || d.TakesValue() != strings.Contains(d.GetUsage(), "`") {
				t.Errorf("%v: the flag %v has no usage, or no word for its value", path, f.Names())
			}
		}
		for line := range strings.Lines(r.out.String()) {
			if len([]rune(line)) > 150 {
				t.Errorf("%v: a line is too long: %q", path, line)
			}
		}
		for _, sub := range c.Subcommands {
			walk(path, sub)
		}
	}
	for _, c := range (&program{}).app().Commands {
		walk(nil, c)
	}
}

// findShell leaves a test out where the shell is not installed. CI installs all: there it fails.
func findShell(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
	return path
}

func TestCompletionScriptsAreValid(t *testing.T) {
	for shell, script := range map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion} {
		t.Run(shell, func(t *testing.T) {
			path := findShell(t, shell)
			cmd := exec.Command(path, "-n")
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// The script must not run what stands on the line, nor what pilot answers.
func TestBashCompletes(t *testing.T) {
	bash := findShell(t, "bash")
	const typed = `
pilot() { printf '%s\n' "$*" >&3; printf '%s\n' approve 'auditor$(touch hacked)' warehouse; }
COMP_WORDS=(pilot trust '$(touch hacked)' a); COMP_CWORD=3
_pilot 3>&1
printf '[%s]\n' "${COMPREPLY[@]}"
COMP_WORDS=(pilot up --n); COMP_CWORD=2
_pilot 3>&1
ls`
	cmd := exec.Command(bash, "-c", bashCompletion+typed)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"[approve]\n", "[auditor$(touch hacked)]\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	for _, bad := range []string{"\nhacked\n", "[warehouse]"} {
		if strings.Contains(string(out), bad) {
			t.Errorf("%q is in\n%s", bad, out)
		}
	}
}
