// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// Where a sandbox can't be had, the error says why and what helps, and no invite is used up.
func TestSandboxRemedies(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "setpriv", "unshare")
	found(t, m.a, "planner")
	b := m.b.user()
	invite := b.invite(t, m.a)
	run := []string{b.pilot, "run", "--json", "--name", "worker", "--invite-file", invite, "--", "true"}
	for _, c := range []struct {
		name, code, hint string
		command          []string
	}{
		{"no user namespaces", localapi.CodeNoNamespace, "sysctl -w user.max_user_namespaces=",
			b.as("unshare", "-Ur", "sh", "-c", `echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"`, "sh")},
		{"no network namespaces", localapi.CodeNoNamespace, "sysctl -w user.max_net_namespaces=",
			b.as("unshare", "-Ur", "sh", "-c", `echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"`, "sh")},
		{"no access to the TUN driver", localapi.CodeNoTUN, "chmod 0666 /dev/net/tun",
			[]string{"sh", "-c", `chmod 600 /dev/net/tun; "$@"; status=$?; chmod 666 /dev/net/tun; exit $status`, "sh"}},
		{"no TUN driver", localapi.CodeNoTUN, "modprobe tun",
			[]string{"sh", "-c", `mv /dev/net/tun /dev/net/away; "$@"; status=$?; mv /dev/net/away /dev/net/tun; exit $status`, "sh"}},
	} {
		command := append(c.command, run...)
		if c.command[0] == "sh" {
			command = append(c.command, b.as(run...)...)
		}
		r := m.b.Run(ctx, command...)
		if e := refusal(t, r); r.Code != 125 || e.Code != c.code || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%s: %v", c.name, r)
		}
	}
	if r := m.b.Run(ctx, b.as(run...)...); !r.OK() {
		t.Errorf("afterwards: %v", r)
	}
}

// An agent needs no invite where the daemon of the host gives one to this user, and none is seen by the program.
func TestSandboxInvites(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "setpriv")
	planner := found(t, m.a, "planner")
	a := m.a.user()
	r := m.a.Run(ctx, a.run("helper", "--json", "--", "true")...)
	if e := refusal(t, r); r.Code != 125 || e.Code != localapi.CodePermission || !strings.Contains(e.Hint, "--invite-file") {
		t.Errorf("a user whom the daemon doesn't know: %v", r)
	}
	// A member of the group pilot may ask.
	m.a.must("groupadd", "--gid", "4321", "pilot")
	pilot[localapi.DownResult](t, m.a, "down")
	pilot[localapi.UpResult](t, m.a, "up")
	member := func(args ...string) []string {
		return append([]string{"setpriv", "--reuid", userID, "--regid", userID, "--groups", "4321", "--inh-caps=-all",
			"env", "-C", a.home, "HOME=" + a.home, a.pilot, "run"}, args...)
	}
	out := m.a.Must(ctx, member("--name", "helper", "--", "curl", "-sS", "--max-time", "5", "http://pilot.internal/")...)
	if !strings.Contains(out, "helper") || !strings.Contains(out, planner.Address.String()) {
		t.Errorf("a member of the group: %s", out)
	}
	// The variable is for pilot alone.
	invite := pilot[localapi.InviteResult](t, m.a, "invite").Invite
	b := m.b.user()
	if out := m.b.Must(ctx, b.as("PILOT_INVITE="+invite, b.pilot, "run", "--name", "other", "--", "env")...); strings.Contains(out, "pilot://") || strings.Contains(out, "PILOT_INVITE") {
		t.Errorf("the program's environment: %s", out)
	}
	if r := m.b.RunInput(ctx, pilot[localapi.InviteResult](t, m.a, "invite").Invite, b.run("third", "--invite-file", "-", "--", "true")...); !r.OK() {
		t.Errorf("an invite on standard input: %v", r)
	}
}
