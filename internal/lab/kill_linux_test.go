// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// scribble makes a daemon write to its state as fast as it can until ctx ends: consents, and where it is the
// coordinator, invites. Commands fail while the daemon is down, as they should.
func scribble(ctx context.Context, h *Host, invites bool) {
	for n := 0; ctx.Err() == nil; n++ {
		args := []string{"trust", "ghost", "--reason", fmt.Sprint("try ", n)}
		if invites && n%2 == 0 {
			args = []string{"invite", "--no-trust"}
		}
		h.Run(ctx, append([]string{"pilot"}, args...)...)
	}
}

// A daemon that is killed fifty times at random moments, with writes in progress, always starts again with its
// identity and its consents, whether it carries the coordinator or not; and nothing stays behind on the host.
func TestKilledFiftyTimes(t *testing.T) {
	ctx := deadline(t, 170*time.Second)
	m := openTrio(t)
	snapshot := m.b.Snapshot()
	planner := found(t, m.a, "planner")
	warehouse := joinBy(t, m.b, "warehouse", planner.Invite)
	join(t, m.a, m.c, "ghost")
	m.a.WriteFile("index.html", "the plan", 0o644)
	serve(m.a)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const rounds = 50
	for round := range rounds {
		h, self, other := m.a, planner, "warehouse"
		if round%2 == 1 {
			h, self, other = m.b, warehouse, "planner"
		}
		killAtRandom(ctx, t, h, random)
		up := pilot[localapi.UpResult](t, h, "up")
		if up.Address != self.Address || up.Key != self.Key || up.Name != self.Name || up.Created || up.Joined {
			t.Fatalf("round %d: %s came back as %+v instead of %+v", round, h.Name(), up, self)
		}
		if !trusts(t, h, other) {
			t.Fatalf("round %d: %s forgot that it and %s trust each other", round, h.Name(), other)
		}
		if ctx.Err() != nil {
			t.Fatalf("only %d rounds in time", round)
		}
	}
	m.b.Probe(20*time.Second, "curl", "-sS", "--fail", "--max-time", "5", "-o", "/dev/null", "http://planner/")
	get(t, m.b, "http://planner/", "the plan")

	crash(t, m.b)
	pilot[localapi.UpResult](t, m.b, "up")
	pilot[localapi.DownResult](t, m.b, "down")
	untouched(t, m.b, snapshot)
}

// killAtRandom kills a host's daemon while it writes; every third time also while it starts.
func killAtRandom(ctx context.Context, t *testing.T, h *Host, random *rand.Rand) {
	t.Helper()
	writing, stop := context.WithCancel(ctx)
	var writers sync.WaitGroup
	writers.Go(func() { scribble(writing, h, h.Name() == "a") })
	time.Sleep(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
	for _, pid := range pilots(h) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	stop()
	writers.Wait()
	crash(t, h)
	if random.IntN(3) == 0 {
		starting := h.Start("pilot", "up")
		time.Sleep(time.Duration(random.Int64N(int64(400 * time.Millisecond))))
		crash(t, h)
		_ = starting.Wait(ctx)
	}
}
