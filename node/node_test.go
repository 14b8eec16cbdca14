// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

func TestMain(m *testing.M) {
	// The NATS server keeps one clock for the whole process, and lets it run on when it is ended while it starts.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"))
}

// memorySystem is a host without a kernel: an interface in memory, UDP on loopback, a resolver that only remembers.
type memorySystem struct {
	socket   string
	log      *slog.Logger
	dns      *memoryDNS
	restored int
	noTUN    error // of OpenTUN
	refuses  error // of Configure
	fence    *memoryFence
}

type memoryFence struct {
	mu      sync.Mutex
	failure error // of Refresh
	asked   int
	closed  bool
}

func (f *memoryFence) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failure = err
}

func (f *memoryFence) Refresh() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return false, f.failure
}
func (f *memoryFence) Dropped() (uint64, error) { return 7, nil }
func (f *memoryFence) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

type memoryDNS struct {
	mu  sync.Mutex
	set []platform.DNSConfig
	is  bool
}

func (d *memoryDNS) Set(c platform.DNSConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.set, d.is = append(d.set, c), true
	return nil
}
func (d *memoryDNS) Upstreams() []netip.AddrPort { return nil }
func (d *memoryDNS) Refresh() (bool, error)      { return false, nil }
func (d *memoryDNS) Mode() string                { return "memory" }
func (d *memoryDNS) Restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.is = false
	return nil
}

func (s *memorySystem) OpenTUN() (tun.Device, error) {
	if s.noTUN != nil {
		return nil, s.noTUN
	}
	return tun.NewMemory("mem0", mtu), nil
}
func (s *memorySystem) Configure(platform.Interface) (Fence, error) {
	if s.refuses != nil || s.fence == nil {
		return nil, s.refuses
	}
	return s.fence, nil
}
func (s *memorySystem) OpenDNS() (platform.DNS, error)     { return s.dns, nil }
func (s *memorySystem) RestoreDNS() error                  { s.restored++; return nil }
func (s *memorySystem) ListenLocal() (net.Listener, error) { return net.Listen("unix", s.socket) }
func (s *memorySystem) OpenUnderlay() (Underlay, error) {
	u, err := underlay.New(underlay.Options{Log: s.log})
	if err != nil {
		return nil, err
	}
	return aliased{u}, nil
}
func (s *memorySystem) Addresses() ([]netip.Addr, error) { return []netip.Addr{alias}, nil }
func (s *memorySystem) WatchNetwork(ctx context.Context) (<-chan struct{}, error) {
	c := make(chan struct{})
	context.AfterFunc(ctx, func() { close(c) })
	return c, nil
}

// alias is the address that the hosts in memory have: peers are never looked for at loopback addresses, where their
// sockets are.
var alias, loopback4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")

// aliased is an underlay on loopback that passes for one at alias.
type aliased struct{ Underlay }

func renamed(p underlay.Path, from, to netip.Addr) underlay.Path {
	if p.Relay == 0 && p.Remote.Addr().Unmap() == from {
		return underlay.Path{Remote: netip.AddrPortFrom(to, p.Remote.Port()), Socket: p.Socket}
	}
	return p
}

func (u aliased) Send(p underlay.Path, datagrams [][]byte) error {
	return u.Underlay.Send(renamed(p, alias, loopback4), datagrams)
}

func (u aliased) SendBursts(bursts []underlay.Burst) (int, error) {
	bursts = slices.Clone(bursts)
	for i := range bursts {
		bursts[i].Path = renamed(bursts[i].Path, alias, loopback4)
	}
	return u.Underlay.SendBursts(bursts)
}

func (u aliased) Receive(loop int, bursts []underlay.Burst) (int, error) {
	n, err := u.Underlay.Receive(loop, bursts)
	for i := range n {
		bursts[i].Path = renamed(bursts[i].Path, loopback4, alias)
	}
	return n, err
}

func (u aliased) Accept(d []byte, from underlay.Path) ([]byte, underlay.Path, bool) {
	inner, p, ok := u.Underlay.Accept(d, renamed(from, alias, loopback4))
	return inner, renamed(p, loopback4, alias), ok
}

// daemon is a node that runs in this process, with a client of its local API.
type daemon struct {
	*localapi.Client
	node   *Node
	t      *testing.T
	dir    string
	system *memorySystem
	log    *lockedBuffer
	stop   context.CancelFunc
	ended  chan error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startDaemon(t *testing.T, dir string) *daemon {
	t.Helper()
	return startDaemonOn(t, dir, &memorySystem{})
}

func startDaemonOn(t *testing.T, dir string, system *memorySystem) *daemon {
	t.Helper()
	return startDaemonAs(t, dir, system, nil)
}

// startDaemonAs starts one that is told who calls; nil: the socket tells.
func startDaemonAs(t *testing.T, dir string, system *memorySystem, who func(net.Conn) (platform.Caller, error)) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: dir, log: &lockedBuffer{}, ended: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d.system = system
	system.socket, system.log, system.dns = filepath.Join(t.TempDir(), "s"), log, &memoryDNS{}
	n, err := New(Options{StateDir: dir, Version: "test", Log: log, System: d.system, Caller: func(net.Conn) error { return nil }, Who: who})
	if err != nil {
		t.Fatal(err)
	}
	d.node = n
	ctx, cancel := context.WithCancel(t.Context())
	d.stop = cancel
	go func() { d.ended <- n.Run(ctx) }()
	d.Client = localapi.NewClient(localapi.ClientOptions{Dial: func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.system.socket)
	}})
	t.Cleanup(d.end)
	for {
		if _, err := d.Status(t.Context()); err == nil {
			return d
		}
		if ctx.Err() != nil || len(d.ended) > 0 {
			t.Fatalf("the daemon does not answer; its log:\n%s", d.log)
		}
		waitALittle()
	}
}

// waitALittle gives other goroutines a moment between two looks at a condition.
func waitALittle() { <-time.After(5 * time.Millisecond) }

func (d *daemon) end() {
	d.stop()
	if err, ok := <-d.ended; ok {
		close(d.ended)
		if err != nil {
			d.t.Errorf("Run: %v", err)
		}
		if d.system.dns.is {
			d.t.Error("the resolver is not as it was")
		}
	}
	if d.t.Failed() {
		d.t.Logf("log of %s:\n%s", d.dir, d.log)
	}
}

// eventually waits until ok, or fails the test after ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); waitALittle() {
		if ok() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func code(err error) string {
	var e *localapi.Error
	if errors.As(err, &e) {
		return e.Code
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func stateDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

const listenLoopback = "127.0.0.1:0"

// TestThreeAgents tells the story of a network: made, joined, trusted, revoked, restarted.
func TestThreeAgents(t *testing.T) {
	ctx := t.Context()
	a, b, c := startDaemon(t, stateDir(t)), startDaemon(t, stateDir(t)), startDaemon(t, stateDir(t))
	made, err := a.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	if !made.Created || !made.Hosted || made.Invite == "" || made.FQDN != "planner.pilot.internal" || len(made.Coordinators) != 1 {
		t.Errorf("made %+v", made)
	}
	if len(a.system.dns.set) != 1 || a.system.dns.set[0].Zone != "pilot.internal" {
		t.Errorf("the resolver was told %+v", a.system.dns.set)
	}
	joined, err := b.Up(ctx, localapi.UpRequest{Name: "warehouse", Invite: made.Invite})
	if err != nil {
		t.Fatal(err)
	}
	if joined.Inviter != "planner" || !joined.Joined {
		t.Errorf("joined %+v", joined)
	}
	if r, err := b.Ping(ctx, localapi.PingRequest{Target: "planner"}); err != nil || r.Address != made.Address {
		t.Errorf("ping: %+v %v", r, err)
	}
	eventually(t, "the path is direct", func() bool {
		r, err := b.Ping(ctx, localapi.PingRequest{Target: "planner"})
		return err == nil && strings.HasPrefix(r.Path, "direct 192.0.2.1:")
	})
	if _, err := c.Up(ctx, localapi.UpRequest{Name: "auditor", Invite: made.Invite}); code(err) != localapi.CodeInviteUsed {
		t.Errorf("a used invite: %v", err)
	}
	if _, err := b.Invite(ctx, localapi.InviteRequest{}); code(err) != localapi.CodeForbidden {
		t.Errorf("an invite by one who may not: %v", err)
	}
	second, err := a.Invite(ctx, localapi.InviteRequest{NoTrust: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Up(ctx, localapi.UpRequest{Name: "warehouse", Invite: second.Invite}); code(err) != localapi.CodeNameTaken {
		t.Errorf("a taken name: %v", err)
	}
	if _, err := c.Up(ctx, localapi.UpRequest{Name: "auditor", Invite: second.Invite}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ping(ctx, localapi.PingRequest{Target: "planner"}); code(err) != localapi.CodeNotTrusted {
		t.Errorf("ping without trust: %v", err)
	}
	trustStory(t, b, c)
	// Restart: b comes back by itself, with everything it knew.
	b.end()
	b = startDaemon(t, b.dir)
	eventually(t, "b is up again", func() bool {
		s, err := b.Status(ctx)
		return err == nil && s.State == localapi.StateUp && s.Self.Address == joined.Address
	})
	if _, err := b.Ping(ctx, localapi.PingRequest{Target: "planner"}); err != nil {
		t.Errorf("ping after a restart: %v", err)
	}
	// And without the coordinator: a's node ends, b and c go on with what they know.
	if _, err := c.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRequest, Target: "warehouse"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRequest, Target: "auditor"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b reaches c", func() bool {
		_, err := b.Ping(ctx, localapi.PingRequest{Target: "auditor"})
		return err == nil
	})
	a.end()
	b.end()
	b = startDaemon(t, b.dir)
	eventually(t, "b is up without a coordinator", func() bool {
		s, err := b.Status(ctx)
		return err == nil && s.State == localapi.StateUp && !s.Coordinator.Connected && s.Coordinator.Error != ""
	})
	if _, err := b.Ping(ctx, localapi.PingRequest{Target: "auditor"}); err != nil {
		t.Errorf("ping without a coordinator: %v", err)
	}
	if _, err := b.Down(ctx); err != nil {
		t.Error(err)
	}
	if err := <-b.ended; err != nil {
		t.Errorf("after down: %v", err)
	}
	close(b.ended)
}

// trustStory: c asks, b approves, b revokes.
func trustStory(t *testing.T, b, c *daemon) {
	t.Helper()
	ctx := t.Context()
	if e, err := c.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRequest, Target: "warehouse", Reason: "quarterly audit"}); err != nil || e.State != localapi.TrustRequested {
		t.Fatalf("%+v %v", e, err)
	}
	eventually(t, "b sees the request", func() bool {
		l, err := b.TrustList(ctx)
		return err == nil && len(l.Entries) == 2 && l.Entries[0].State == localapi.TrustPending && l.Entries[0].Theirs.Reason == "quarterly audit"
	})
	if _, err := c.Ping(ctx, localapi.PingRequest{Target: "warehouse"}); code(err) != localapi.CodeNotTrusted {
		t.Errorf("ping before approval: %v", err)
	}
	if e, err := b.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionApprove, Target: "auditor"}); err != nil || e.State != localapi.TrustMutual {
		t.Fatalf("%+v %v", e, err)
	}
	eventually(t, "c reaches b", func() bool {
		_, err := c.Ping(ctx, localapi.PingRequest{Target: "warehouse"})
		return err == nil
	})
	if a, err := c.WhoIs(ctx, "warehouse"); err != nil || a.Trust != localapi.TrustMutual || !a.Online {
		t.Errorf("whois: %+v %v", a, err)
	}
	if _, err := b.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRevoke, Target: "auditor"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c is refused", func() bool {
		_, err := c.Ping(ctx, localapi.PingRequest{Target: "warehouse"})
		return code(err) == localapi.CodeNotTrusted
	})
	if _, err := b.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRevoke, Target: "auditor"}); code(err) != localapi.CodeNotFound {
		t.Errorf("revoked twice: %v", err)
	}
}

// TestAbuse06SecretsStayHome: neither the log, nor node.json, nor an answer of the API contains a secret.
func TestAbuse06SecretsStayHome(t *testing.T) {
	ctx := t.Context()
	a, b := startDaemon(t, stateDir(t)), startDaemon(t, stateDir(t))
	made, err := a.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Up(ctx, localapi.UpRequest{Name: "warehouse", Invite: made.Invite}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ping(ctx, localapi.PingRequest{Target: "planner"}); err != nil {
		t.Fatal(err)
	}
	invite, err := identity.ParseInvite(made.Invite)
	if err != nil {
		t.Fatal(err)
	}
	seeds := [][32]byte{invite.Key.Seed()}
	for _, d := range []*daemon{a, b} {
		f := newFolder(d.dir, nil)
		key, err := f.agentKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		tunnels, err := f.tunnelKeys(invite.Authority, key.Public())
		if err != nil || len(tunnels) == 0 {
			t.Fatal(err, len(tunnels))
		}
		seeds = append(seeds, key.Seed(), tunnels[0].key.Bytes())
	}
	texts := map[string]string{"a's log": a.log.String(), "b's log": b.log.String()}
	for name, d := range map[string]*daemon{"a": a, "b": b} {
		raw, err := os.ReadFile(filepath.Join(d.dir, nodeFile))
		if err != nil {
			t.Fatal(err)
		}
		texts[name+"'s node.json"] = string(raw)
	}
	for where, text := range texts {
		if len(text) < 100 {
			t.Errorf("%s has %d bytes only: nothing was searched", where, len(text))
		}
		for i, seed := range seeds {
			for _, form := range []string{
				string(seed[:]), hex.EncodeToString(seed[:]), base64.StdEncoding.EncodeToString(seed[:]), base64.RawURLEncoding.EncodeToString(seed[:]),
			} {
				if strings.Contains(text, form) {
					t.Errorf("%s contains secret %d", where, i)
				}
			}
		}
		if strings.Contains(text, "pilot://") {
			t.Errorf("%s contains an invite", where)
		}
	}
}

// otherBytes changes the first character of each value in base64. (The last one may have bits that mean nothing.)
func otherBytes(text []byte) []byte {
	return regexp.MustCompile(`"[A-Za-z0-9+/]{40}`).ReplaceAllFunc(text, func(value []byte) []byte {
		value = bytes.Clone(value)
		if value[1] != 'B' {
			value[1] = 'B'
		} else {
			value[1] = 'C'
		}
		return value
	})
}

// TestDamagedState: a file that can't be read stops the daemon with a clear error, and stays as it is.
func TestDamagedState(t *testing.T) {
	dir := stateDir(t)
	a := startDaemon(t, dir)
	if _, err := a.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{StateDir: dir, System: a.system}); code(err) != localapi.CodeStateLocked {
		t.Errorf("a second daemon: %v", err)
	}
	a.end()
	for _, file := range []string{agentFile, tunnelFile, nodeFile} {
		path := filepath.Join(dir, file)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for want, bad := range map[string][][]byte{
			localapi.CodeStateDamaged: {nil, good[:len(good)/2], []byte("{}x"), otherBytes(good),
				append([]byte(`{"unknown":1,`), good[1:]...)},
			localapi.CodeStateVersion: {[]byte(`{"version":99}`)},
		} {
			for i, text := range bad {
				if bytes.Equal(text, good) {
					continue
				}
				if err := os.WriteFile(path, text, 0o600); err != nil {
					t.Fatal(err)
				}
				n, err := New(Options{StateDir: dir, System: a.system})
				if code(err) != want {
					t.Errorf("%s, damage %d: got %v, not %s", file, i, err, want)
				}
				if err == nil {
					_ = n.unlock()
				}
				if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, text) {
					t.Errorf("%s was changed", file)
				}
			}
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := startDaemon(t, dir)
	eventually(t, "it is up with the good files", func() bool {
		s, err := b.Status(t.Context())
		return err == nil && s.State == localapi.StateUp
	})
}

func TestUpRefusals(t *testing.T) {
	ctx := t.Context()
	a, b := startDaemon(t, stateDir(t)), startDaemon(t, stateDir(t))
	for want, r := range map[string]localapi.UpRequest{
		localapi.CodeNameInvalid:   {Name: "Bad Name"},
		localapi.CodeInviteInvalid: {Invite: "pilot://abc"},
	} {
		if _, err := a.Up(ctx, r); code(err) != want {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for what, err := range map[string]error{
		"ping":  second(a.Ping(ctx, localapi.PingRequest{Target: "x"})),
		"trust": second(a.Trust(ctx, localapi.TrustRequest{Action: localapi.ActionRequest, Target: "x"})),
		"whois": second(a.WhoIs(ctx, "x")), "agents": second(a.Agents(ctx)), "invite": second(a.Invite(ctx, localapi.InviteRequest{})),
	} {
		if code(err) != localapi.CodeNotUp {
			t.Errorf("%s before up: %v", what, err)
		}
	}
	made, err := a.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.Up(ctx, localapi.UpRequest{}); err != nil || again.Created || again.Address != made.Address {
		t.Errorf("up again: %+v %v", again, err)
	}
	if _, err := a.Up(ctx, localapi.UpRequest{Name: "other"}); code(err) != localapi.CodeConflict {
		t.Errorf("another name: %v", err)
	}
	if _, err := a.Up(ctx, localapi.UpRequest{Network: "other"}); code(err) != localapi.CodeConflict {
		t.Errorf("another network: %v", err)
	}
	if _, err := a.Up(ctx, localapi.UpRequest{Invite: made.Invite}); code(err) != localapi.CodeUsage {
		t.Errorf("its own invite: %v", err)
	}
	host, port, _ := net.SplitHostPort(made.Coordinators[0])
	if _, err := b.Up(ctx, localapi.UpRequest{CoordinatorListen: net.JoinHostPort(host, port)}); code(err) != localapi.CodePortTaken {
		t.Errorf("a port in use: %v", err)
	}
	if _, err := b.Up(ctx, localapi.UpRequest{CoordinatorListen: "192.0.2.1:7745"}); code(err) != localapi.CodeUsage {
		t.Errorf("an address of another host: %v", err)
	}
	for what, err := range map[string]error{
		"unknown name":    second(a.WhoIs(ctx, "nobody")),
		"unknown address": second(a.WhoIs(ctx, "fd00::1")),
	} {
		if code(err) != localapi.CodeNotFound {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := a.Ping(ctx, localapi.PingRequest{Target: "planner"}); code(err) != localapi.CodeUsage {
		t.Errorf("ping oneself: %v", err)
	}
}

// TestPageAndMetrics asks the page as a program of this host does, and as a rebound web page would.
func TestPageAndMetrics(t *testing.T) {
	dir := stateDir(t)
	log := slog.New(slog.DiscardHandler)
	system := &memorySystem{socket: filepath.Join(t.TempDir(), "s"), log: log, dns: &memoryDNS{}}
	n, err := New(Options{StateDir: dir, Log: log, System: system, Caller: func(net.Conn) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	up, err := n.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	service := identity.ServiceAddress(netip.PrefixFrom(up.Address, identity.PrefixBits))
	get := func(h http.Handler, host, path string) (int, string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &recorder{header: http.Header{}}
		h.ServeHTTP(w, req)
		return w.code, w.body.String()
	}
	for _, host := range []string{"pilot.internal", "pilot.internal:80", "Pilot.Internal.", "pilot", "[" + service.String() + "]"} {
		if code, body := get(n.page(), host, "/"); code != 200 || !strings.Contains(body, "planner.pilot.internal") || !strings.Contains(body, up.Address.String()) {
			t.Errorf("%s: %d %s", host, code, body)
		}
	}
	if code, body := get(n.page(), "pilot.internal", "/status.json"); code != 200 || !strings.Contains(body, `"state":"up"`) {
		t.Errorf("status.json: %d %s", code, body)
	}
	if code, _ := get(n.page(), "pilot.internal", "/etc/passwd"); code != 404 {
		t.Errorf("an unknown path: %d", code)
	}
	for _, host := range []string{"evil.example", "localhost", "127.0.0.1", "pilot.internal.evil.example"} {
		if code, body := get(n.page(), host, "/status.json"); code != http.StatusForbidden || strings.Contains(body, "planner") {
			t.Errorf("%s: %d %s", host, code, body)
		}
	}
	if code, body := get(n.metrics(), "pilot", "/metrics"); code != 200 || !strings.Contains(body, "pilot_up 1") || !strings.Contains(body, "pilot_coordinator_connected 1") {
		t.Errorf("metrics: %d %s", code, body)
	}
}

type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(c int)   { r.code = c }
func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = 200
	}
	return r.body.Write(b)
}

var _ io.Writer = (*recorder)(nil)
