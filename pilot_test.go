// SPDX-License-Identifier: Apache-2.0

package pilot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

func TestMain(m *testing.M) {
	// The NATS server keeps one clock for the whole process, and lets it run on when it is ended while it starts.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"))
}

// options are those of a node that leaves this host's network alone.
func options(t *testing.T, name string) Options {
	t.Helper()
	return Options{Name: name, StateDir: filepath.Join(t.TempDir(), name), NoPortMapping: true}
}

func founder(t *testing.T, o Options) *Node {
	t.Helper()
	o.NewNetwork, o.CoordinatorListen = "pilot", "127.0.0.1:0"
	return up(t, o)
}

func up(t *testing.T, o Options) *Node {
	t.Helper()
	n, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		select {
		case <-n.Done():
		default:
			t.Error("not done after Close")
		}
	})
	return n
}

// joined is a node that joins by an invite of another's.
func joined(t *testing.T, by *Node, name string) *Node {
	t.Helper()
	o := options(t, name)
	var err error
	if o.Invite, err = by.Invite(t.Context()); err != nil {
		t.Fatal(err)
	}
	return up(t, o)
}

// eventually waits until ok, or fails the test after ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// Three agents in one process talk both ways, over TCP and UDP, know each other, and are refused where trust is missing.
func TestAgents(t *testing.T) {
	ctx := t.Context()
	planner := founder(t, options(t, "planner"))
	indexer, auditor := joined(t, planner, "indexer"), joined(t, planner, "auditor")
	if a := planner.Self(); a.Name != "planner" || a.FQDN != "planner.pilot.internal" || a.Address != planner.Addr() || !strings.HasPrefix(a.Key, "agent:") {
		t.Errorf("%+v", a)
	}
	for _, pair := range [][2]*Node{{planner, indexer}, {indexer, planner}, {planner, auditor}} {
		talk(t, pair[0], pair[1])
		talkUDP(t, pair[0], pair[1])
	}
	if _, err := indexer.Dial("tcp", "planner:81"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v", err)
	}
	if _, err := indexer.Dial("tcp", "auditor:80"); !errors.Is(err, syscall.EACCES) || ErrorCode(err) != localapi.CodeNotTrusted || ErrorHint(err) == "" {
		t.Errorf("a stranger: %v", err)
	}
	if err := indexer.Trust(ctx, "auditor", "to index what was found"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the auditor is asked", func() bool { return state(t, auditor, "indexer") == localapi.PeerPending })
	if err := auditor.Trust(ctx, "indexer", ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "trust is mutual", func() bool { return state(t, indexer, "auditor") != localapi.PeerPending })
	talk(t, auditor, indexer)
	if err := auditor.Revoke(ctx, "indexer"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended", func() bool {
		_, err := indexer.Dial("tcp", "auditor:80")
		return errors.Is(err, syscall.EACCES)
	})
	s, err := planner.Status(ctx)
	if err != nil || s.Network != "pilot" || s.Zone != "pilot.internal" || !s.Coordinator || len(s.Peers) != 2 || s.Self.Tags[0] != "admin" || len(s.Problems) > 0 {
		t.Errorf("%+v %v", s, err)
	}
	for _, p := range s.Peers {
		if p.State != localapi.PeerConnected || p.Path == "" || p.Key == "" || p.LastHandshake.IsZero() || p.Problem != "" {
			t.Errorf("%+v", p)
		}
	}
}

// state is a peer's as a node sees it.
func state(t *testing.T, n *Node, name string) string {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Peers {
		if p.Name == name {
			return p.State
		}
	}
	return ""
}

// talk lets one serve a page and the other fetch it, each knowing who the other is.
func talk(t *testing.T, server, client *Node) {
	t.Helper()
	l, err := server.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	site := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := server.WhoIsAddr(r.RemoteAddr)
		fmt.Fprint(w, caller.Name, " ", caller.Key == client.Self().Key, " ", err)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = site.Serve(l) })
	defer wg.Wait()
	defer site.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	resp, err := client.HTTPClient().Get("http://" + net.JoinHostPort(server.Self().Name, port))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != client.Self().Name+" true <nil>" {
		t.Errorf("%q %v", text, err)
	}
}

func talkUDP(t *testing.T, server, client *Node) {
	t.Helper()
	p, err := server.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, port, _ := net.SplitHostPort(p.LocalAddr().String())
	c, err := client.Dial("udp", net.JoinHostPort(server.Self().FQDN, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := p.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := server.WhoIsAddr(from.String()); string(buf[:n]) != "hello" || err != nil || a.Name != client.Self().Name {
		t.Errorf("%q from %+v %v", buf[:n], a, err)
	}
	if a, err := client.WhoIs(c); err != nil || a.Name != server.Self().Name {
		t.Errorf("the other end is %+v %v", a, err)
	}
}

// A program starts again with the same options, the used invite among them, and is the same agent.
func TestRestart(t *testing.T) {
	planner := founder(t, options(t, "planner"))
	o := options(t, "indexer")
	var err error
	if o.Invite, err = planner.Invite(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := first.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after Close: %v", err)
	}
	if _, err := first.Dial("tcp", "planner:80"); ErrorCode(err) != localapi.CodeNotUp {
		t.Errorf("dial after Close: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	again := up(t, o)
	if again.Addr() != first.Addr() || again.Self().Key != first.Self().Key {
		t.Errorf("%+v was %+v", again.Self(), first.Self())
	}
	talk(t, planner, again)
	o.Name = ""
	if _, err := Up(t.Context(), o); ErrorCode(err) != localapi.CodeStateLocked {
		t.Errorf("a second one on the same state: %v", err)
	}
	o = options(t, "other")
	o.Invite, _ = planner.Invite(t.Context())
	o.NewNetwork = "other"
	if _, err := Up(t.Context(), o); ErrorCode(err) != localapi.CodeUsage {
		t.Errorf("an invite and a new network: %v", err)
	}
	o.NewNetwork, o.Invite = "", "pilot://nothing"
	if _, err := Up(t.Context(), o); ErrorCode(err) != localapi.CodeInviteInvalid {
		t.Errorf("an invite that is none: %v", err)
	}
}

// What was written before Close arrives, though the other end is slow to read.
func TestCloseSendsWhatWasWritten(t *testing.T) {
	planner := founder(t, options(t, "planner"))
	o := options(t, "indexer")
	var err error
	if o.Invite, err = planner.Invite(t.Context()); err != nil {
		t.Fatal(err)
	}
	indexer, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := planner.Listen("tcp", ":9")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(got)
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	c, err := indexer.Dial("tcp", "planner:9")
	if err != nil {
		t.Fatal(err)
	}
	const size = 300_000 // less than a socket's buffer
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := indexer.Close(); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != size {
		t.Errorf("%d bytes of %d arrived", n, size)
	}
}

// Up gives up with its context, and leaves nothing running.
func TestUpIsInterrupted(t *testing.T) {
	planner := founder(t, options(t, "planner"))
	o := options(t, "indexer")
	var err error
	if o.Invite, err = planner.Invite(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Up(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Where the agent's state is, if nobody says so.
func TestStateDir(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_STATE_HOME", "")
	base := platform.UserStateDir()
	if base == "" {
		base = platform.DefaultStateDir()
	}
	if dir, err := (Options{Name: "indexer"}).stateDir(); err != nil || dir != filepath.Join(base, "sdk", "indexer") {
		t.Errorf("%s %v", dir, err)
	}
	for _, name := range []string{"", "../planner", "No"} {
		if _, err := (Options{Name: name}).stateDir(); ErrorCode(err) != localapi.CodeUsage {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// The CLI finds an embedded node by its state folder, if it is to.
func TestLocalAPI(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "pilot") // the path of a Unix socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := Options{Name: "planner", StateDir: dir, NoPortMapping: true, LocalAPI: true}
	founder(t, o)
	client := localapi.NewClient(localapi.ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) { return platform.DialLocal(ctx, platform.SocketPath(dir)) }})
	s, err := client.Status(t.Context())
	if err != nil || s.Self == nil || s.Self.Name != "planner" || s.Self.TUN != localapi.TUNUserspace || s.Self.HTTPProxy != "" {
		t.Errorf("%+v %v", s.Self, err)
	}
}
