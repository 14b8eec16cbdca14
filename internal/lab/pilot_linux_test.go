// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// What the tests of this folder share: the words of a person at a prompt, and three hosts to say them on.

// commandLimit bounds one pilot command. It is generous: a test machine may be busy.
const commandLimit = 40 * time.Second

// pilot runs a command with --json and decodes its answer; a failure ends the test.
func pilot[T any](t testing.TB, h *Host, args ...string) T {
	t.Helper()
	return pilotInput[T](t, h, "", args...)
}

func pilotInput[T any](t testing.TB, h *Host, input string, args ...string) T {
	t.Helper()
	r := tryPilot(h, input, args...)
	if !r.OK() {
		t.Fatalf("%s: %v", h.Name(), r)
	}
	var answer T
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil {
		t.Fatalf("%s: the answer is no JSON of the expected form: %v\n%v", h.Name(), err, r)
	}
	return answer
}

// tryPilot runs a command with --json that may fail.
func tryPilot(h *Host, input string, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	return h.RunInput(ctx, input, append([]string{"pilot"}, append(args, "--json")...)...)
}

// refusal decodes the error of a command that failed.
func refusal(t testing.TB, r Result) localapi.Error {
	t.Helper()
	var body struct{ Error localapi.Error }
	text := r.Stdout
	if strings.TrimSpace(text) == "" {
		text = r.Stderr
	}
	if err := json.Unmarshal([]byte(text), &body); err != nil || body.Error.Code == "" {
		t.Fatalf("no error in JSON (%v): %v", err, r)
	}
	return body.Error
}

// found makes a new network on a host, with the coordinator inside.
func found(t testing.TB, h *Host, name string) localapi.UpResult {
	t.Helper()
	up := pilot[localapi.UpResult](t, h, "up", "--name", name)
	if !up.Created || !up.Hosted || up.Name != name || up.Invite == "" {
		t.Fatalf("the answer of a first up: %+v", up)
	}
	return up
}

// join takes a host into the network by an invite of another.
func join(t testing.TB, inviter, h *Host, name string) localapi.UpResult {
	t.Helper()
	invite := pilot[localapi.InviteResult](t, inviter, "invite")
	return joinBy(t, h, name, invite.Invite)
}

// joinBy takes a host into the network by an invite, which goes in on standard input.
func joinBy(t testing.TB, h *Host, name, invite string) localapi.UpResult {
	t.Helper()
	up := pilotInput[localapi.UpResult](t, h, invite, "up", "--name", name, "-")
	if !up.Joined || up.Created || up.Name != name {
		t.Fatalf("the answer of a join: %+v", up)
	}
	return up
}

// trio is the lab of most tests: an office with three hosts on one bridge, and no network of pilots yet.
type trio struct {
	*Lab
	wan     *Bridge
	a, b, c *Host
	link    map[string]*Link
}

func openTrio(t *testing.T, programs ...string) *trio {
	t.Helper()
	l := open(t)
	Programs(t, append(programs, "curl", "python3", "nft")...)
	return newTrio(l)
}

func newTrio(l *Lab) *trio {
	m := &trio{Lab: l, wan: l.Bridge("wan"), link: map[string]*Link{}}
	m.a, m.b, m.c = l.Host("a"), l.Host("b"), l.Host("c")
	for i, h := range []*Host{m.a, m.b, m.c} {
		m.link[h.Name()] = h.Connect(m.wan, fmt.Sprintf("192.0.2.%d/24", 10+i))
	}
	return m
}

// serve publishes the host's home folder on port 80, as the README does it.
func serve(h *Host) *Process {
	h.lab.tb.Helper()
	p := h.Start("python3", "-m", "http.server", "--bind", "::", "80")
	h.lab.wait("Serving HTTP", p)
	return p
}

// get fetches a page and ends the test unless it has this content.
func get(t testing.TB, h *Host, url, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if got := h.Must(ctx, "curl", "-sS", "--fail", "--max-time", "10", url); got != want {
		t.Fatalf("%s: curl %s: %q instead of %q", h.Name(), url, got, want)
	}
}

// pilots returns the process ids of the pilots on a host.
func pilots(h *Host) []int {
	binary := Binary(h.lab.tb)
	all := h.Processes()
	maps.DeleteFunc(all, func(_ int, command string) bool {
		program, _, _ := strings.Cut(command, " ")
		return program != binary && program != "pilot"
	})
	return slices.Sorted(maps.Keys(all))
}

// crash ends all pilots of a host as a power cut would, and waits until they are gone.
func crash(t testing.TB, h *Host) {
	t.Helper()
	for _, pid := range pilots(h) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	Eventually(t, 10*time.Second, func(context.Context) error {
		if left := pilots(h); len(left) > 0 {
			return fmt.Errorf("still there: %v", left)
		}
		return nil
	})
}

// trusts tells whether both consents between the host's agent and the named one are known to the host.
func trusts(t testing.TB, h *Host, name string) bool {
	t.Helper()
	for _, e := range pilot[localapi.TrustList](t, h, "trust", "ls").Entries {
		if e.Name == name {
			return e.State == localapi.TrustMutual
		}
	}
	return false
}

// untouched ends the test unless the host is as it was.
func untouched(t testing.TB, h *Host, before Snapshot) {
	t.Helper()
	Eventually(t, 10*time.Second, func(context.Context) error {
		var left []string
		for line := range strings.Lines(before.Diff(h.Snapshot())) {
			// The empty folder for the socket is no change that anybody meets.
			if line = strings.TrimSpace(line); !strings.HasSuffix(line, " /run/pilot") {
				left = append(left, line)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("%s is not as it was:\n%s", h.Name(), strings.Join(left, "\n"))
		}
		return nil
	})
}
