// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// Agents besides a daemon's own, on a host with an interface, are reached by name, reach others by their proxies, and
// belong to the user who added them.
func TestAgentsOfOneDaemon(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "setpriv")
	m.a.must("groupadd", "--force", "--system", "pilot")
	planner := found(t, m.a, "planner")
	joinBy(t, m.b, "warehouse", planner.Invite)
	m.a.WriteFile("index.html", "the index", 0o644)
	serve(m.a)
	for _, name := range []string{"indexer", "researcher"} {
		a := pilot[localapi.LocalAgent](t, m.a, "agents", "add", name, "--socks5", "127.0.0.1:0", "--http-proxy", "127.0.0.1:0")
		if a.State != localapi.StateUp || a.Name != name || a.Address == planner.Address {
			t.Fatalf("%+v", a)
		}
	}
	pilot[localapi.ServeList](t, m.a, "serve", "http:80", "--agent", "indexer")

	// From another host, from the daemon's own agent, and from a neighbour.
	if r := tryPilot(m.b, "", "trust", "indexer"); !r.OK() {
		t.Fatal(r)
	}
	await(t, "indexer gets the request", func() bool { return tryPilot(m.a, "", "trust", "approve", "warehouse", "--agent", "indexer").OK() })
	await(t, "warehouse trusts indexer", func() bool { return trusts(t, m.b, "indexer") })
	get(t, m.b, "http://indexer/", "the index")
	get(t, m.a, "http://indexer/", "the index")
	fetch := `eval "$(` + Binary(t) + ` env --agent researcher)"; curl -sS --max-time 10 http://indexer/`
	if r := m.a.Run(ctx, "sh", "-c", fetch+" -o /dev/null -w '%{http_code}'"); r.Stdout != "502" && r.Stdout != "403" {
		t.Errorf("a neighbour without a consent: %v", r)
	}
	if r := tryPilot(m.a, "", "trust", "indexer", "--agent", "researcher"); !r.OK() {
		t.Fatal(r)
	}
	await(t, "indexer approves", func() bool { return tryPilot(m.a, "", "trust", "approve", "researcher", "--agent", "indexer").OK() })
	await(t, "the neighbours talk", func() bool {
		return m.a.Run(ctx, "sh", "-c", fetch).Stdout == "the index"
	})

	// Somebody else who may control the daemon.
	gid := strings.Split(strings.TrimSpace(m.a.Must(ctx, "getent", "group", "pilot")), ":")[2]
	u := m.a.user()
	other := func(args ...string) Result {
		return u.Run(ctx, append([]string{"setpriv", "--reuid", userID, "--regid", userID, "--groups", gid, "--inh-caps=-all",
			"env", "-C", u.home, "HOME=" + u.home, u.pilot, "--state", "/var/lib/pilot"}, append(args, "--json")...)...)
	}
	if r := other("status"); !r.OK() {
		t.Errorf("a member of the group may control the daemon: %v", r)
	}
	for _, args := range [][]string{{"status", "--agent", "indexer"}, {"ping", "warehouse", "--agent", "indexer"}, {"agents", "rm", "indexer"}, {"status", "--agent", "nobody"}} {
		if r := other(args...); r.OK() || refusal(t, r).Code != localapi.CodeForbidden {
			t.Errorf("%v by another user: %v", args, r)
		}
	}
	if r := other("agents", "add", "auditor"); !r.OK() {
		t.Errorf("an agent of the other user's: %v", r)
	}
	if r := other("status", "--agent", "auditor"); !r.OK() {
		t.Errorf("its owner: %v", r)
	}

	// Over a crash, and to the end.
	crash(t, m.a)
	pilot[localapi.UpResult](t, m.a, "up")
	await(t, "indexer is there again", func() bool {
		return m.b.Run(ctx, "curl", "-sS", "--max-time", "5", "http://indexer/").Stdout == "the index"
	})
	pilot[localapi.LocalAgent](t, m.a, "agents", "rm", "indexer")
	if list := pilot[localapi.LocalList](t, m.a, "agents", "--local"); len(list.Agents) != 2 {
		t.Errorf("%+v", list)
	}
	await(t, "indexer is gone", func() bool { return !m.b.Run(ctx, "curl", "-sS", "--max-time", "5", "http://indexer/").OK() })
}

// await looks again and again, for half a minute.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// What many agents in one daemon cost, the coordinator being in another one. PILOT_BENCH_AGENTS=200 measures what is aimed at:
// less than 1.5 MB for each, and less than half a percent of a core for all of them when they have nothing to say. That takes
// four minutes. With fewer than 100, as by itself, there is no waiting until all is quiet, and the figures mean little.
func BenchmarkManyAgents(b *testing.B) {
	count := 20
	if text := os.Getenv("PILOT_BENCH_AGENTS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			b.Fatalf("PILOT_BENCH_AGENTS=%s", text)
		}
		count = n
	}
	m := newTrio(New(b))
	found(b, m.a, "planner")
	invite := pilot[localapi.InviteResult](b, m.a, "invite", "--tag", "admin")
	joinBy(b, m.b, "warehouse", invite.Invite)
	daemon := func() int { return pilots(m.b)[0] }
	calm, quiet, idle := 20*time.Second, 90*time.Second, time.Minute // the first minute after traffic is not idle yet
	if count < 100 {
		calm, quiet, idle = time.Second, time.Second, time.Second
	}
	settle := func() { time.Sleep(calm) }
	settle()
	before, began := residentMB(b, daemon()), time.Now()
	if err := eachOf(count, 2, func(i int) error {
		for ; ; time.Sleep(time.Second) {
			r := tryPilot(m.b, "", "agents", "add", fmt.Sprintf("agent-%d", i))
			if r.OK() {
				return nil
			}
			// A coordinator lets one address make so many requests; the hint is to wait some seconds.
			if !strings.Contains(r.Stdout, localapi.CodeRateLimited) {
				return fmt.Errorf("%v", r)
			}
		}
	}); err != nil {
		b.Fatal(err)
	}
	added := time.Since(began)
	settle()
	after := residentMB(b, daemon())

	pilot[localapi.DownResult](b, m.b, "down")
	began = time.Now()
	pilot[localapi.UpResult](b, m.b, "up")
	await(b, "all agents are up", func() bool {
		up := 0
		for _, a := range pilot[localapi.LocalList](b, m.b, "agents", "--local").Agents {
			if a.State == localapi.StateUp && a.Error == nil {
				up++
			}
		}
		return up == count
	})
	started := time.Since(began)
	time.Sleep(quiet)
	used := -processorTime(b, daemon())
	time.Sleep(idle)
	used += processorTime(b, daemon())
	b.Logf("%d agents in one daemon: added one after another in %.1f s (%.0f ms each); all up %.1f s after a restart; %.1f MB before, %.1f MB after "+
		"(%.2f MB each), %.1f MB after the restart; idle: %.2f %% of a core for all", count, added.Seconds(), added.Seconds()*1000/float64(count),
		started.Seconds(), before, after, (after-before)/float64(count), residentMB(b, daemon()), used.Seconds()/idle.Seconds()*100)
	b.ReportMetric((after-before)/float64(count), "MB/agent")
	b.ReportMetric(used.Seconds()/idle.Seconds()*100, "%core-idle")
	b.ReportMetric(started.Seconds(), "s-to-start")
	b.ReportMetric(0, "ns/op")
}
