// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// lateSystem is a host whose interface can't be opened some times.
type lateSystem struct {
	memorySystem
	failures atomic.Int32
}

func (s *lateSystem) OpenTUN() (tun.Device, error) {
	if s.failures.Add(-1) >= 0 {
		return nil, errors.New("no interface yet")
	}
	return s.memorySystem.OpenTUN()
}

// runNode starts a node on a host in memory, and ends it with the test or before.
func runNode(t *testing.T, dir string, system System) (n *Node, end func()) {
	t.Helper()
	n, err := New(Options{StateDir: dir, Log: slog.New(slog.DiscardHandler), System: system, Caller: func(net.Conn) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	var once atomic.Bool
	end = func() {
		if once.Swap(true) {
			return
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(end)
	return n, end
}

func newLateSystem(t *testing.T) *lateSystem {
	return &lateSystem{memorySystem: memorySystem{
		socket: filepath.Join(t.TempDir(), "s"), log: slog.New(slog.DiscardHandler), dns: &memoryDNS{},
	}}
}

// A host that isn't ready when the daemon starts, or when somebody makes a network: the next try finds the coordinator of
// the first one running.
func TestHostedNetworkComesUpLater(t *testing.T) {
	dir, system := stateDir(t), newLateSystem(t)
	n, end := runNode(t, dir, system)
	system.failures.Store(1)
	if _, err := n.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err == nil {
		t.Fatal("it is up without an interface")
	}
	if _, err := n.Up(t.Context(), localapi.UpRequest{}); err != nil {
		t.Fatalf("the second try: %v", err)
	}
	end()
	system = newLateSystem(t)
	system.failures.Store(1)
	n, _ = runNode(t, dir, system)
	eventually(t, "it is up again after a start that failed", func() bool {
		s, err := n.Status(t.Context())
		return err == nil && s.State == localapi.StateUp && s.Coordinator.Connected
	})
}

// A network that could not be made leaves nothing behind that a later invite would have to fight with.
func TestJoinAfterFailedCreation(t *testing.T) {
	ctx, dir := t.Context(), stateDir(t)
	n, end := runNode(t, dir, newLateSystem(t))
	if _, err := n.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	end()
	for _, file := range []string{agentFile, tunnelFile, nodeFile} { // somebody lost them, and kept the coordinator's
		if err := os.Remove(filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := runNode(t, stateDir(t), newLateSystem(t))
	made, err := other.Up(ctx, localapi.UpRequest{Name: "elsewhere", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	n, end = runNode(t, dir, newLateSystem(t))
	if _, err := n.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); code(err) != localapi.CodeNameTaken {
		t.Fatalf("the name is another key's: %v", err)
	}
	if _, err := n.Up(ctx, localapi.UpRequest{Name: "guest", Invite: made.Invite}); err != nil {
		t.Fatal(err)
	}
	end()
	n, _ = runNode(t, dir, newLateSystem(t))
	eventually(t, "it is connected to the network that it joined", func() bool {
		s, err := n.Status(ctx)
		return err == nil && s.State == localapi.StateUp && s.Coordinator.Connected && !s.Coordinator.Hosted
	})
}

// A second invite brings its tags at once.
func TestSecondInvite(t *testing.T) {
	ctx := t.Context()
	a, _ := runNode(t, stateDir(t), newLateSystem(t))
	b, _ := runNode(t, stateDir(t), newLateSystem(t))
	made, err := a.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Up(ctx, localapi.UpRequest{Name: "warehouse", Invite: made.Invite}); err != nil {
		t.Fatal(err)
	}
	invite, err := a.Invite(ctx, localapi.InviteRequest{Tags: []string{"admin"}})
	if err != nil {
		t.Fatal(err)
	}
	before := b.member.tunnels[0].statement.Tunnel
	if _, err := b.Up(ctx, localapi.UpRequest{Invite: invite.Invite}); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Status(ctx); err != nil || len(s.Self.Tags) != 1 || s.Self.Tags[0] != "admin" {
		t.Errorf("tags %v %v", s.Self.Tags, err)
	}
	if _, err := b.Invite(ctx, localapi.InviteRequest{}); err != nil {
		t.Errorf("the new admin may not invite: %v", err)
	}
	if b.member.tunnels[0].statement.Tunnel != before {
		t.Error("the tunnel key changed")
	}
}

// joinLiar serves a join with an answer of its choice, under the authority's TLS key.
func joinLiar(t *testing.T, authority identity.AuthorityKey, answer func(agent identity.AgentPublic) api.Membership) (addr string) {
	t.Helper()
	signer, err := ca.New(authority)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := signer.Leaf([]string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		agent, err := api.ClientAgent(r.TLS)
		if err != nil || r.URL.Path != "/v1/join" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(answer(agent)) // a client that has gone fails the test by itself
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*leaf}, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// A coordinator's answer to a join that doesn't bear out leaves the state folder as it was.
func TestJoinAnswerIsVerified(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now().Add(-time.Minute)
	inviter, other := w.agent(2), w.agent(3)
	join := identity.JoinKeyFromSeed([32]byte{7})
	consent := func(to [32]byte, toJoin bool) []byte {
		return w.consent(inviter, identity.Consent{To: to, ToJoin: toJoin, Serial: 1}).Consent
	}
	lie := func(change func(*api.Membership)) func(identity.AgentPublic) api.Membership {
		return func(agent identity.AgentPublic) api.Membership {
			w.serial++
			c, err := identity.Certificate{
				Agent: agent, Name: "guest", NotBefore: w.now, NotAfter: w.now.Add(time.Hour), Serial: w.serial,
			}.Sign(w.authority)
			if err != nil {
				t.Error(err)
			}
			p := w.peer(inviter, "inviter")
			m := api.Membership{Certificate: c.Raw(), RelayPass: w.pass(agent, w.serial), Network: "pilot", Inviter: &p}
			change(&m)
			return m
		}
	}
	for name, c := range map[string]struct {
		consent []byte
		answer  func(identity.AgentPublic) api.Membership
	}{
		"another inviter": {consent(join.Public(), true), lie(func(m *api.Membership) {
			p := w.peer(other, "inviter")
			m.Inviter = &p
		})},
		"a consent that is none": {consent(join.Public(), true), lie(func(m *api.Membership) {
			m.Consents = []api.ConsentEntry{{Consent: []byte("nonsense")}}
		})},
		"another's pass for relays": {consent(join.Public(), true), lie(func(m *api.Membership) {
			m.RelayPass = w.pass(other.Public(), w.serial)
		})},
		"no pass for relays":                        {consent(join.Public(), true), lie(func(m *api.Membership) { m.RelayPass = nil })},
		"an invite with a consent to somebody else": {consent(other.Public(), false), lie(func(*api.Membership) {})},
	} {
		t.Run(name, func(t *testing.T) {
			dir := stateDir(t)
			n, end := runNode(t, dir, newLateSystem(t))
			text, err := identity.Invite{
				NetworkName: "pilot", Authority: w.authority.Public(), Coordinators: []string{joinLiar(t, w.authority, c.answer)},
				Key: join, Consent: c.consent,
			}.Text()
			if err != nil {
				t.Fatal(err)
			}
			if r, err := n.Up(t.Context(), localapi.UpRequest{Name: "guest", Invite: text}); err == nil {
				t.Errorf("joined: %+v", r)
			}
			end()
			if _, err := os.Stat(filepath.Join(dir, nodeFile)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("node.json: %v", err)
			}
			n, _ = runNode(t, dir, newLateSystem(t)) // and starts again
			if s, err := n.Status(t.Context()); err != nil || s.State != localapi.StateDown {
				t.Errorf("%+v %v", s, err)
			}
		})
	}
}

// Addresses of coordinators that make no sense, or are very many, keep nobody from starting, or inviting.
func TestCoordinatorsOfAnAnswer(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now().Add(-time.Minute)
	dir := stateDir(t)
	n, end := runNode(t, dir, newLateSystem(t))
	var liar string
	liar = joinLiar(t, w.authority, func(agent identity.AgentPublic) api.Membership {
		c, err := identity.Certificate{
			Agent: agent, Name: "guest", NotBefore: w.now, NotAfter: w.now.Add(time.Hour), Serial: 1,
		}.Sign(w.authority)
		if err != nil {
			t.Error(err)
		}
		m := api.Membership{Certificate: c.Raw(), RelayPass: w.pass(agent, 1), Network: "pilot", Coordinators: []string{"a:b:c:d", "", "host:99999", liar}}
		for i := range 20 {
			m.Coordinators = append(m.Coordinators, net.JoinHostPort("192.0.2.1", strconv.Itoa(1000+i)))
		}
		return m
	})
	join := identity.JoinKeyFromSeed([32]byte{7})
	text, err := identity.Invite{NetworkName: "pilot", Authority: w.authority.Public(), Coordinators: []string{liar}, Key: join}.Text()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Up(t.Context(), localapi.UpRequest{Name: "guest", Invite: text}); err != nil {
		t.Fatal(err)
	}
	if list := n.saved.Coordinators; len(list) != maxCoordinators || list[0] != liar {
		t.Errorf("kept %q", list)
	}
	end()
	n, _ = runNode(t, dir, newLateSystem(t))
	eventually(t, "it starts again", func() bool {
		s, err := n.Status(t.Context())
		return err == nil && s.State == localapi.StateUp
	})
}

// A consent that the coordinator will never take, as its agent is gone, doesn't keep back those behind it.
func TestOutboxGoesOn(t *testing.T) {
	ctx := t.Context()
	a, _ := runNode(t, stateDir(t), newLateSystem(t))
	b, _ := runNode(t, stateDir(t), newLateSystem(t))
	made, err := a.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Up(ctx, localapi.UpRequest{Name: "warehouse", Invite: made.Invite}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a knows b", func() bool {
		l, err := a.TrustList(ctx)
		return err == nil && len(l.Entries) == 1 && l.Entries[0].State == localapi.TrustMutual
	})
	a.mu.Lock()
	for _, c := range []identity.Consent{
		{To: identity.AgentKeyFromSeed([32]byte{9}).Public(), Reason: "nobody is there"}, {To: b.key.Public(), Withdrawn: true},
	} {
		if err := a.member.book.sign(a.key, c, time.Now()); err != nil {
			t.Error(err)
		}
	}
	a.mu.Unlock()
	poke(a.member.republish)
	eventually(t, "b hears that trust was withdrawn", func() bool {
		l, err := b.TrustList(ctx)
		return err == nil && len(l.Entries) == 1 && l.Entries[0].State != localapi.TrustMutual
	})
	eventually(t, "the outbox is empty", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.member.book.outbox) == 0
	})
}

// TestAbuse22ClockSetBack: a tunnel key that was made while the clock was ahead is replaced when the clock is right, since
// no peer accepts it before its time.
func TestAbuse22ClockSetBack(t *testing.T) {
	var ahead atomic.Int64
	ahead.Store(int64(12 * time.Hour))
	n, err := New(Options{
		StateDir: stateDir(t), Log: slog.New(slog.DiscardHandler), System: newLateSystem(t), Caller: func(net.Conn) error { return nil },
		Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	if _, err := n.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	ahead.Store(0)
	poke(n.member.renew)
	eventually(t, "a tunnel key that is valid now", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.member.tunnels[0].statement.ValidAt(time.Now()) == nil
	})
}

// Timers stand still while a host sleeps: what is due is looked for often, and not only when its timer ends.
func TestLooksOften(t *testing.T) {
	n, _ := runNode(t, stateDir(t), newLateSystem(t))
	if _, err := n.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	if wait, err := n.refresh(t.Context(), n.member); err != nil || wait <= 0 || wait > 10*time.Minute {
		t.Errorf("the next look is in %v, %v", wait, err)
	}
}

// A peer that moves with each datagram doesn't fill the disk.
func TestEventsDoNotFloodTheLog(t *testing.T) {
	log := &lockedBuffer{}
	told := newEventLog(slog.New(slog.NewTextHandler(log, nil)), underlay.Path.String)
	for range 10_000 {
		told.tell(overlay.PathChanged{})
	}
	if lines := strings.Count(log.String(), "\n"); lines == 0 || lines > 200 {
		t.Errorf("%d lines", lines)
	}
}

// slowDNS is a resolver that waits for programs of the host's, once it is told to.
type slowDNS struct {
	memoryDNS
	hang atomic.Pointer[chan struct{}]
}

func (d *slowDNS) Upstreams() []netip.AddrPort {
	if hang := d.hang.Load(); hang != nil {
		<-*hang
	}
	return nil
}

type slowSystem struct {
	memorySystem
	slow slowDNS
}

func (s *slowSystem) OpenDNS() (platform.DNS, error) { return &s.slow, nil }

// While the host's resolver hangs the node goes on: trust is withdrawn, status is told.
func TestResolverThatHangs(t *testing.T) {
	system := &slowSystem{memorySystem: memorySystem{socket: filepath.Join(t.TempDir(), "s"), log: slog.New(slog.DiscardHandler)}}
	n, _ := runNode(t, stateDir(t), system)
	if _, err := n.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	applied := make(chan struct{})
	hang := make(chan struct{})
	system.slow.hang.Store(&hang)
	go func() {
		n.reapply(n.member)
		close(applied)
	}()
	select {
	case <-applied:
	case <-time.After(2 * time.Second):
		t.Error("it waits for the resolver")
	}
	close(hang)
	<-applied
}

// TestAbuse22RestartAfterClockSetBack: peers refuse handshakes of an earlier time under the same tunnel key.
func TestAbuse22RestartAfterClockSetBack(t *testing.T) {
	dir := stateDir(t)
	tunnel := func(n *Node) identity.TunnelPublic {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.member.tunnels[0].statement.Tunnel
	}
	restart := func() (*Node, func()) {
		n, end := runNode(t, dir, newLateSystem(t))
		eventually(t, "it is up", func() bool {
			s, err := n.Status(t.Context())
			return err == nil && s.State == localapi.StateUp
		})
		return n, end
	}
	n, end := runNode(t, dir, newLateSystem(t))
	if _, err := n.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	first := tunnel(n)
	end()
	n, end = restart()
	if tunnel(n) != first {
		t.Error("the tunnel key changed without a reason")
	}
	end()
	if err := os.Chtimes(filepath.Join(dir, nodeFile), time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	n, _ = restart()
	if tunnel(n) == first {
		t.Error("the tunnel key stayed though the clock was set back")
	}
}

// An agent that was known already keeps its tunnel key and addresses when its new name is accepted.
func TestAcceptedKeyKeepsWhatIsKnown(t *testing.T) {
	w := newWorld(t)
	us, old, renamed := w.agent(1), w.agent(2), w.agent(3)
	b := w.book(us, "planner")
	take(t, false, second(b.addPeer(w.peer(old, "warehouse"))))
	take(t, false, second(b.addPeer(w.peer(renamed, "depot"))))
	if _, err := b.addPeer(w.peer(renamed, "warehouse")); !errors.Is(err, errKeyMismatch) {
		t.Fatalf("another key under a known name: %v", err)
	}
	if err := b.acceptKey("warehouse", renamed.Public()); err != nil {
		t.Fatal(err)
	}
	if p := b.peers[renamed.Public()]; p.certificate.Name != "warehouse" || p.tunnel.Tunnel.IsZero() || len(p.record.Endpoints) == 0 {
		t.Errorf("left is %+v", p)
	}
}
