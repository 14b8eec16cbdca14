// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// user is somebody without privileges on a host.
type user struct {
	*Host
	home, pilot string
}

// userID is that of all of them.
const userID = "1234"

// User lets somebody without privileges use a host, whose /dev/net/tun everybody may open as on most systems.
func (h *Host) user() *user {
	h.lab.tb.Helper()
	u := &user{Host: h, home: "/var/lib/user", pilot: "/var/lib/bin/pilot"}
	h.must("mkdir", "-p", u.home, "/var/lib/bin")
	h.must("chown", userID+":"+userID, u.home)
	h.must("cp", Binary(h.lab.tb), u.pilot)
	h.must("mkdir", "-p", "/dev/net")
	h.must("mount", "-t", "tmpfs", "tmpfs", "/dev/net")
	h.must("mknod", "-m", "666", "/dev/net/tun", "c", "10", "200")
	return u
}

// as is the command line by which the user runs something.
func (u *user) as(args ...string) []string {
	return append([]string{"setpriv", "--reuid", userID, "--regid", userID, "--clear-groups", "--inh-caps=-all",
		"env", "-C", u.home, "HOME=" + u.home}, args...)
}

// run is the command line by which the user runs a program as an agent of its own.
func (u *user) run(name string, args ...string) []string {
	return u.as(append([]string{u.pilot, "run", "--name", name}, args...)...)
}

// state is where the state of the user's agent is.
func (u *user) state(name string) string { return u.home + "/.local/state/pilot/run/" + name }

// invite puts a fresh invite where the user can read it.
func (u *user) invite(t testing.TB, by *Host) string {
	t.Helper()
	made := pilot[localapi.InviteResult](t, by, "invite")
	if err := os.WriteFile(u.Path(u.home+"/invite"), []byte(made.Invite), 0o644); err != nil {
		t.Fatal(err)
	}
	return u.home + "/invite"
}

// trusts lets two agents that a user runs consent to each other.
func (u *user) trusts(t testing.TB, name, other string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	u.Must(ctx, u.as(u.pilot, "trust", other, "--state", u.state(name))...)
}

// Two programs in sandboxes talk by name, on one host and across two, and to an agent with an interface of its own.
func TestSandboxTalks(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "setpriv")
	found(t, m.a, "planner")
	b, c := m.b.user(), m.c.user()
	m.a.WriteFile("index.html", "the plan", 0o644)
	serve(m.a)
	if out := m.b.Must(ctx, b.run("researcher", "--invite-file", b.invite(t, m.a), "--", "curl", "-sS", "--max-time", "10", "http://planner/")...); out != "the plan" {
		t.Errorf("curl in a sandbox: %q", out)
	}
	// It is a member now, and serves; so does another one on this host and one on the next.
	m.b.must("mkdir", b.home+"/site")
	m.b.must("sh", "-c", "printf findings > "+b.home+"/site/index.html")
	web := b.Start(b.run("researcher", "--", "python3", "-m", "http.server", "--bind", "::", "--directory", "site", "80")...)
	m.wait("Serving HTTP", web)
	get(t, m.a, "http://researcher/", "findings")
	for _, u := range []*user{b, c} {
		name := "reader-" + u.Name()
		p := u.Start(u.run(name, "--invite-file", u.invite(t, m.a), "--", "sh", "-c",
			"echo ready; until curl -sS --fail --max-time 3 http://researcher/; do sleep 0.2; done")...)
		m.wait("ready", p)
		u.trusts(t, name, "researcher")
		b.trusts(t, "researcher", name)
		m.wait("findings", p)
	}
}
