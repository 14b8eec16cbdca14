// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"testing"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// The second agent that wishes for a name is told so, with one that is free; the invite is not used up by that.
func TestNameTaken(t *testing.T) {
	m := openTrio(t)
	planner := found(t, m.a, "planner")
	r := tryPilot(m.b, planner.Invite, "up", "--name", "planner", "-")
	if r.Code != localapi.ExitConflict {
		t.Errorf("a taken name: %v", r)
	}
	e := refusal(t, r)
	if e.Code != localapi.CodeNameTaken || e.Hint == "" || e.Suggestion == "" || e.Suggestion == "planner" {
		t.Fatalf("the error for a taken name: %+v", e)
	}
	joinBy(t, m.b, e.Suggestion, planner.Invite)

	for invite, want := range map[string]string{
		planner.Invite:      localapi.CodeInviteUsed,
		planner.Invite[:60]: localapi.CodeInviteInvalid,
		"http://planner/":   localapi.CodeInviteInvalid,
	} {
		r := tryPilot(m.c, invite, "up", "--name", "auditor", "-")
		if e := refusal(t, r); e.Code != want || r.Code != localapi.ExitStatus(want) {
			t.Errorf("an invite that must fail with %s: %v", want, r)
		}
	}
	join(t, m.a, m.c, "auditor")
	if r := tryPilot(m.c, "", "invite"); refusal(t, r).Code != localapi.CodeForbidden {
		t.Errorf("an agent that is no admin made an invite: %v", r)
	}
}
