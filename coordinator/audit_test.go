// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
)

func trail(t *testing.T, p *place) (entries []audited) {
	t.Helper()
	raw, err := p.registry.store.AuditTrail(t.Context(), 1000)
	noError(t, err)
	for _, r := range raw {
		var e audited
		noError(t, json.Unmarshal(r, &e))
		entries = append(entries, e)
	}
	return entries
}

// Who hangs up after something was done doesn't keep it out of the audit trail.
func TestAuditOfOneWhoHangsUp(t *testing.T) {
	p := start(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.registry.audit(ctx, caller{}, "join", "somebody", "", nil); err != nil {
		t.Error(err)
	}
	if all := trail(t, p); len(all) != 1 || all[0].Subject != "somebody" {
		t.Errorf("%+v", all)
	}
}

// Strangers with join keys of their own making don't fill the disk, and what was left out is counted.
func TestAuditOfRefusalsIsBounded(t *testing.T) {
	p := start(t, Options{})
	p.registry.refusals.limiter.SetBurst(3)
	a := p.newAgent(t)
	try := func() {
		_, err := a.Join(t.Context(), a.request("late", must(identity.NewJoinKey(rand.Reader))))
		wantCode(t, err, api.CodeJoinKeyUnknown)
	}
	for range 10 {
		try()
	}
	if all := trail(t, p); len(all) > 5 || len(all) < 3 {
		t.Fatalf("%d entries", len(all))
	}
	p.clock.advance(time.Minute)
	try()
	var missed, entries uint64
	for _, e := range trail(t, p) {
		missed, entries = missed+e.Missed, entries+1
	}
	if missed+entries != 11 {
		t.Errorf("%d entries, %d missed", entries, missed)
	}
}

// The path of a request is its caller's: it doesn't get into the audit trail at its full length.
func TestAuditOfLongPaths(t *testing.T) {
	p := start(t, Options{})
	a := p.enter(t, "plain")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "/v1/invites/"+strings.Repeat("x", 8000), nil)
	noError(t, err)
	req.Pattern = "DELETE /v1/invites/{join}"
	s := newServer(p.registry, newHub(func(identity.AgentPublic, uint64) {}), nil)
	_, err = s.admins(s.deleteInviteRequest)(req, caller{agent: a.public()})
	wantCode(t, err, api.CodeForbidden)
	for _, e := range trail(t, p) {
		if len(e.Subject) > 200 {
			t.Errorf("a subject of %d bytes", len(e.Subject))
		}
	}
}
