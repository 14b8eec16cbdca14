// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// as is a client that acts as an agent of the daemon's.
func (d *daemon) as(name string) *localapi.Client {
	return localapi.NewClient(localapi.ClientOptions{Acting: name, Dial: func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.system.socket)
	}})
}

// members is a network with a daemon that has agents besides its own, and one with its own alone.
func members(t *testing.T, names ...string) (home, away *daemon) {
	t.Helper()
	home, away = startDaemon(t, stateDir(t)), startDaemon(t, stateDir(t))
	made, err := home.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if a, err := home.AddLocal(t.Context(), localapi.LocalRequest{Name: name}); err != nil || a.State != localapi.StateUp || a.Name != name {
			t.Fatalf("%+v %v", a, err)
		}
	}
	if _, err := away.Up(t.Context(), localapi.UpRequest{Name: "warehouse", Invite: made.Invite, TUN: localapi.TUNUserspace}); err != nil {
		t.Fatal(err)
	}
	return home, away
}

// befriend makes two agents trust each other.
func befriend(t *testing.T, a *localapi.Client, aName string, b *localapi.Client, bName string) {
	t.Helper()
	if _, err := a.Trust(t.Context(), localapi.TrustRequest{Action: localapi.ActionRequest, Target: bName}); err != nil {
		t.Fatal(err)
	}
	eventually(t, aName+"'s request reaches "+bName, func() bool {
		e, err := b.Trust(t.Context(), localapi.TrustRequest{Action: localapi.ActionApprove, Target: aName})
		return err == nil && e.State == localapi.TrustMutual
	})
	eventually(t, bName+"'s consent reaches "+aName, func() bool {
		who, err := a.WhoIs(t.Context(), bName)
		return err == nil && who.Trust == localapi.TrustMutual
	})
}

// get asks a web server over the network.
func get(ctx context.Context, from *Node, name string) (string, error) {
	client := http.Client{Transport: &http.Transport{DialContext: from.DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+name+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// answerWho answers with who asks, as the network knows it.
func answerWho(t *testing.T, n *Node) {
	t.Helper()
	l, err := n.Listen(t.Context(), "tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := net.ResolveTCPAddr("tcp", r.RemoteAddr)
		if err != nil {
			t.Error(err)
			return
		}
		caller, err := n.Caller(from.AddrPort().Addr())
		fmt.Fprint(w, caller.Name, err)
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-ended })
}

// Each agent of a daemon has a name, a trust and connections of its own: with other daemons' and with its neighbours.
func TestLocalAgents(t *testing.T) {
	home, away := members(t, "indexer", "researcher")
	indexer, researcher := home.node.locals.get("indexer").node, home.node.locals.get("researcher").node
	answerWho(t, indexer)
	answerWho(t, away.node)
	ctx := t.Context()

	if _, err := get(ctx, researcher, "indexer"); err == nil {
		t.Error("neighbours talk without a consent")
	}
	befriend(t, home.as("researcher"), "researcher", home.as("indexer"), "indexer")
	if text, err := get(ctx, researcher, "indexer"); err != nil || text != "researcher<nil>" {
		t.Errorf("between neighbours: %q %v", text, err)
	}
	befriend(t, home.as("researcher"), "researcher", away.Client, "warehouse")
	if text, err := get(ctx, researcher, "warehouse"); err != nil || text != "researcher<nil>" {
		t.Errorf("to another daemon: %q %v", text, err)
	}
	if _, err := get(ctx, indexer, "warehouse"); err == nil {
		t.Error("one agent has its neighbour's trust")
	}
	befriend(t, away.Client, "warehouse", home.as("indexer"), "indexer")
	if text, err := get(ctx, away.node, "indexer.pilot.internal"); err != nil || text != "warehouse<nil>" {
		t.Errorf("from another daemon: %q %v", text, err)
	}
	if r, err := home.as("indexer").Ping(ctx, localapi.PingRequest{Target: "warehouse"}); err != nil || r.PathKind != localapi.PathDirect {
		t.Errorf("%+v %v", r, err)
	}

	list, err := home.Locals(ctx)
	if err != nil || len(list.Agents) != 2 || list.Agents[0].Name != "indexer" || list.Agents[1].Name != "researcher" {
		t.Fatalf("%+v %v", list, err)
	}
	for _, a := range list.Agents {
		if a.State != localapi.StateUp || a.Peers != 3 || a.Sessions < 2 || a.RxBytes == 0 || a.TxBytes == 0 || a.Error != nil {
			t.Errorf("%+v", a)
		}
	}
	s, err := home.as("indexer").Status(ctx)
	if err != nil || s.Self.Name != "indexer" || s.Self.TUN != localapi.TUNUserspace || len(s.Peers) != 3 {
		t.Errorf("%+v %v", s, err)
	}
	// One registration at a relay is enough for all: the others are found by the daemon's own agent there.
	peer := func() (carrier string) {
		away.node.mu.Lock()
		defer away.node.mu.Unlock()
		return away.node.member.book.peers[indexer.key.Public()].record.Carrier.String()
	}
	if peer() != home.node.key.Public().String() {
		t.Errorf("the carrier is %s", peer())
	}

	// After a restart all are there again, each as it was.
	home.end()
	again := startDaemon(t, home.dir)
	eventually(t, "the agents are up again", func() bool {
		list, err := again.Locals(ctx)
		return err == nil && len(list.Agents) == 2 && list.Agents[0].State == localapi.StateUp && list.Agents[1].State == localapi.StateUp
	})
	eventually(t, "and reach others", func() bool {
		text, err := get(ctx, again.node.locals.get("researcher").node, "warehouse")
		return err == nil && text == "researcher<nil>"
	})

	// One that is removed leaves nothing.
	if a, err := again.RemoveLocal(ctx, "researcher"); err != nil || a.State != localapi.StateDown {
		t.Errorf("%+v %v", a, err)
	}
	if _, err := os.Stat(again.node.localDir("researcher")); !os.IsNotExist(err) {
		t.Error(err)
	}
	eventually(t, "the membership has ended", func() bool {
		s, err := away.Status(ctx)
		return err == nil && slices.ContainsFunc(s.Peers, func(p localapi.PeerStatus) bool {
			return p.Name == "researcher" && p.Problem != nil && p.Problem.Code == localapi.CodeRevoked
		})
	})
	if list, err := again.Locals(ctx); err != nil || len(list.Agents) != 1 {
		t.Errorf("%+v %v", list, err)
	}
}

func TestLocalAgentsAreRefused(t *testing.T) {
	home, away := members(t, "indexer")
	ctx := t.Context()
	for name, c := range map[string]struct {
		request localapi.LocalRequest
		want    string
	}{
		"no name":         {localapi.LocalRequest{}, localapi.CodeNameInvalid},
		"a path":          {localapi.LocalRequest{Name: "../agent"}, localapi.CodeNameInvalid},
		"here already":    {localapi.LocalRequest{Name: "indexer"}, localapi.CodeConflict},
		"taken elsewhere": {localapi.LocalRequest{Name: "warehouse"}, localapi.CodeNameTaken},
		"a bad invite":    {localapi.LocalRequest{Name: "x", Invite: "pilot://x"}, localapi.CodeInviteInvalid},
	} {
		if _, err := home.AddLocal(ctx, c.request); code(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := away.AddLocal(ctx, localapi.LocalRequest{Name: "guest"}); code(err) != localapi.CodeForbidden {
		t.Errorf("who may not invite adds an agent: %v", err)
	}
	for _, d := range []*daemon{home, away} {
		left, _ := filepath.Glob(filepath.Join(d.dir, localsDir, "*"))
		left = slices.DeleteFunc(left, func(s string) bool { return filepath.Base(s) == "indexer" })
		if len(left) > 0 {
			t.Errorf("failed ones leave %v", left)
		}
	}
	if _, err := home.as("indexer").Down(ctx); code(err) != localapi.CodeUsage {
		t.Errorf("down: %v", err)
	}
	if _, err := home.as("indexer").Up(ctx, localapi.UpRequest{}); code(err) != localapi.CodeUsage {
		t.Errorf("up: %v", err)
	}

	// A damaged one is told of, and harms nobody else.
	home.end()
	file := filepath.Join(home.dir, localsDir, "indexer", nodeFile)
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := startDaemon(t, home.dir)
	eventually(t, "the damage is told", func() bool {
		list, err := again.Locals(ctx)
		return err == nil && len(list.Agents) == 1 && list.Agents[0].Error != nil && list.Agents[0].Error.Code == localapi.CodeStateDamaged
	})
	if _, err := again.as("indexer").Status(ctx); code(err) != localapi.CodeStateDamaged {
		t.Errorf("acting as it: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "{" {
		t.Errorf("the file became %q, %v", text, err)
	}
}

// TestAbuse04ActingAsAnother: who is not the owner of an agent can't act as it, nor learn whether there is such a one.
func TestAbuse04ActingAsAnother(t *testing.T) {
	const alice, mallory = 4000001, 4000002
	var uid atomic.Uint32
	dir := stateDir(t)
	system := &memorySystem{}
	d := startDaemonAs(t, dir, system, func(net.Conn) (platform.Caller, error) {
		return platform.Caller{Known: true, UID: uid.Load()}, nil
	})
	ctx := t.Context()
	if _, err := d.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	uid.Store(alice)
	if a, err := d.AddLocal(ctx, localapi.LocalRequest{Name: "hers"}); err != nil || a.Owner != alice {
		t.Fatalf("%+v %v", a, err)
	}
	if s, err := d.as("hers").Status(ctx); err != nil || s.Self.Name != "hers" {
		t.Errorf("the owner: %+v %v", s, err)
	}
	uid.Store(mallory)
	if _, err := d.AddLocal(ctx, localapi.LocalRequest{Name: "his"}); err != nil {
		t.Fatal(err)
	}
	refused := func(name string) {
		t.Helper()
		c := d.as(name)
		_, ping := c.Ping(ctx, localapi.PingRequest{Target: "planner"})
		_, trust := c.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRequest, Target: "planner"})
		_, status := c.Status(ctx)
		_, invite := c.Invite(ctx, localapi.InviteRequest{})
		_, remove := d.RemoveLocal(ctx, name)
		for what, err := range map[string]error{"ping": ping, "trust": trust, "status": status, "invite": invite, "remove": remove} {
			want := fmt.Sprintf("%q is no agent of this daemon that you may act as", name)
			if code(err) != localapi.CodeForbidden || err.Error() != want {
				t.Errorf("%s as %s: %v", what, name, err)
			}
		}
	}
	refused("hers")
	refused("nobodys")
	refused("../planner")
	uid.Store(0)
	if s, err := d.as("hers").Status(ctx); err != nil || s.Self.Name != "hers" {
		t.Errorf("root: %+v %v", s, err)
	}
	d.end()

	// Owners are remembered.
	uid.Store(mallory)
	d = startDaemonAs(t, dir, &memorySystem{}, func(net.Conn) (platform.Caller, error) {
		return platform.Caller{Known: true, UID: uid.Load()}, nil
	})
	eventually(t, "his is up", func() bool { _, err := d.as("his").Status(ctx); return err == nil })
	refused("hers")
	uid.Store(alice)
	eventually(t, "hers is up", func() bool { _, err := d.as("hers").Status(ctx); return err == nil })
	uid.Store(0)
	// A caller that nobody knows is nobody.
	d.node.opts.Who = func(net.Conn) (platform.Caller, error) { return platform.Caller{}, syscall.EINVAL }
	refused("hers")
}

// Many that come and go at once.
func TestManyLocalAgents(t *testing.T) {
	home, _ := members(t)
	var group sync.WaitGroup
	for i := range 12 {
		group.Go(func() {
			name := fmt.Sprintf("agent-%d", i)
			if _, err := home.AddLocal(t.Context(), localapi.LocalRequest{Name: name}); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if _, err := home.RemoveLocal(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	list, err := home.Locals(t.Context())
	if err != nil || len(list.Agents) != 6 {
		t.Errorf("%+v %v", list, err)
	}
	home.node.member.engine.mu.Lock()
	defer home.node.member.engine.mu.Unlock()
	if n := len(home.node.member.engine.seats); n != 7 {
		t.Errorf("%d seats", n)
	}
}

// A plan of one agent that can't be applied leaves the others theirs.
func TestPlanOfOneIsRefused(t *testing.T) {
	home, _ := members(t, "indexer")
	m := home.node.locals.get("indexer").node
	m.mu.Lock()
	bad := m.member.seat.plan
	bad.overlay.Locals = append(slices.Clone(bad.overlay.Locals), bad.overlay.Locals...) // an agent twice
	err := m.member.seat.set(bad)
	m.mu.Unlock()
	if err == nil {
		t.Fatal("an agent that is there twice is taken")
	}
	if err := home.node.change(func(*membership) error { return nil }); err != nil {
		t.Errorf("the first agent's plan: %v", err)
	}
}
