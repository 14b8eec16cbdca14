// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// TestAbuse09LyingCoordinator: a coordinator that holds the real authority key certifies another key for a name that this
// daemon knows, with consents and all. A dial by that name fails with KEY_MISMATCH before anything is sent, whatever is asked.
func TestAbuse09LyingCoordinator(t *testing.T) {
	ctx := t.Context()
	dir := stateDir(t)
	log := slog.New(slog.DiscardHandler)
	system := &memorySystem{socket: filepath.Join(t.TempDir(), "s"), log: log, dns: &memoryDNS{}}
	n, err := New(Options{StateDir: dir, Log: log, System: system, Caller: func(net.Conn) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	run, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- n.Run(run) }()
	t.Cleanup(func() { cancel(); <-ended })
	made, err := n.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.Load(filepath.Join(dir, coordinatorDir, "authority.key"), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, authority: authority, now: time.Now()}
	honest, evil := w.agent(2), w.agent(66)
	tell := func(key identity.AgentKey) {
		p := w.peer(key, "warehouse")
		c := w.consent(key, identity.Consent{To: made.Key, Serial: 1})
		n.take(n.member, []api.Event{{Type: api.EventPeer, Peer: &p}, {Type: api.EventConsent, Consent: &c}})
	}
	tell(honest)
	if _, err := n.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionApprove, Target: "warehouse"}); err != nil {
		t.Fatal(err)
	}
	tell(evil)
	for what, err := range map[string]error{
		"ping":  second(n.Ping(ctx, localapi.PingRequest{Target: "warehouse"})),
		"fqdn":  second(n.Ping(ctx, localapi.PingRequest{Target: "warehouse.pilot.internal"})),
		"whois": second(n.WhoIs(ctx, "warehouse")),
		"trust": second(n.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionApprove, Target: "warehouse"})),
	} {
		if code(err) != localapi.CodeKeyMismatch || !strings.Contains(err.Error(), evil.Public().String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, p := range n.member.engine.overlay.Status().Peers {
		if p.Agent == evil.Public() {
			t.Error("the data path knows the other key")
		}
	}
	s, err := n.Status(ctx)
	if err != nil || len(s.Problems) == 0 || s.Problems[0].Code != localapi.CodeKeyMismatch {
		t.Errorf("status says %+v %v", s.Problems, err)
	}
	// A person asks the owner, and accepts.
	if e, err := n.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionApprove, Target: "warehouse", AcceptKey: evil.Public()}); err != nil || e.Key != evil.Public() {
		t.Errorf("accepting: %+v %v", e, err)
	}
	if a, err := n.WhoIs(ctx, "warehouse"); err != nil || a.Key != evil.Public() {
		t.Errorf("afterwards: %+v %v", a, err)
	}
}
