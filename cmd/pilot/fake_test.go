// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// fakeDaemon answers the local API as a daemon of agent "planner" would that knows "warehouse" and was asked by
// "auditor". Targets named after a trouble meet it: "nobody", "gone", "stranger", "impostor".
type fakeDaemon struct {
	mu     sync.Mutex
	state  string
	up     []localapi.UpRequest
	trust  []localapi.TrustRequest
	invite []localapi.InviteRequest
	pings  int
	serves []localapi.ServeRequest

	evil    string // put into every text, if set
	keysIn  string // where the identity is; empty: in its file
	version string // empty: v0.1.0 in the status, and none in the header
	stop    func() // by down
}

func addr(last string) netip.Addr { return netip.MustParseAddr("fd5c:1d2:93a0::" + last) }

func (d *fakeDaemon) text(s string) string { return s + d.evil }

func (d *fakeDaemon) fail(code, message, hint string) *localapi.Error {
	return &localapi.Error{Code: code, Message: d.text(message), Hint: d.text(hint)}
}

// trouble is what the targets of ping, trust and whois are named after.
func (d *fakeDaemon) trouble(target string) error {
	switch target {
	case "nobody":
		return d.fail(localapi.CodeNotFound, `there is no agent "nobody"`, "see: pilot agents")
	case "gone":
		return d.fail(localapi.CodeOffline, "gone does not answer", "is it up?")
	case "stranger":
		return d.fail(localapi.CodeNotTrusted, "stranger has not consented", "ask for it: pilot trust stranger")
	case "impostor":
		return d.fail(localapi.CodeKeyMismatch, "impostor shows another key than before", "see: pilot help trust approve")
	}
	return nil
}

func (d *fakeDaemon) Up(_ context.Context, r localapi.UpRequest) (localapi.UpResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.up = append(d.up, r)
	if r.Name == "breaks" {
		panic(http.ErrAbortHandler) // the connection ends without an answer
	}
	if r.Name == "taken" {
		e := d.fail(localapi.CodeNameTaken, `the name "taken" belongs to another agent`, "choose another name")
		e.Suggestion = "taken-2"
		return localapi.UpResult{}, e
	}
	result := localapi.UpResult{
		Network: "pilot", Zone: "pilot.internal", Name: "planner", FQDN: d.text("planner.pilot.internal"), Address: addr("a"),
		Key: identity.AgentPublic{1}, Coordinators: []string{"192.0.2.10:7745"}, Hosted: r.Invite == "",
	}
	if d.evil != "" {
		result.Warnings = []string{d.evil}
	}
	if r.Invite != "" {
		result.Joined, result.Inviter = true, "warehouse"
	} else if d.state == localapi.StateDown {
		result.Created, result.Invite = true, "pilot://secret"
	}
	d.state = localapi.StateUp
	return result, nil
}

func (d *fakeDaemon) Down(context.Context) (localapi.DownResult, error) {
	defer d.stop()
	return localapi.DownResult{PID: os.Getpid()}, nil
}

func (d *fakeDaemon) Status(context.Context) (localapi.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	version := cmp.Or(d.version, "v0.1.0")
	if d.state != localapi.StateUp {
		return localapi.Status{State: d.state, Version: version, PID: 4711, Peers: []localapi.PeerStatus{}}, nil
	}
	now := time.Now()
	return localapi.Status{
		State: d.state, Version: version, PID: 4711, Network: d.text("pilot"), Zone: "pilot.internal", Authority: identity.AuthorityPublic{2}.String(),
		Served: d.served(),
		Self: &localapi.Self{
			Name: "planner", FQDN: d.text("planner.pilot.internal"), Address: addr("a"), Key: identity.AgentPublic{1}, Tags: []string{d.text("admin")},
			CertificateExpires: now.Add(23*time.Hour + time.Minute), Interface: "pilot0", Port: 7745, DNS: d.text("resolved"),
			Endpoints: []localapi.Endpoint{
				{Addr: netip.MustParseAddrPort("[2001:db8::10]:7745"), Kind: "host"}, {Addr: netip.MustParseAddrPort("192.168.7.2:7745"), Kind: "host"},
				{Addr: netip.MustParseAddrPort("192.0.2.10:41000"), Kind: d.text("reflexive")},
			},
			NAT: &localapi.NAT{Mapping: "endpoint-independent", Filtering: d.text("address-dependent")},
			Relays: []localapi.RelayStatus{
				{Name: d.text("eu-1"), Region: d.text("eu"), Jurisdiction: "de", Home: true, Connected: true, Transport: d.text("udp"), RTT: 24},
				{Name: "eu-2", Region: "eu"},
				{Name: "us-1", Region: "us", Jurisdiction: d.text("us"), Avoided: true},
				{Name: "ap-1", Error: d.text("connection refused")},
			},
			AvoidJurisdictions: []string{d.text("us")},
		},
		Coordinator: &localapi.CoordinatorState{
			Addresses: []string{d.text("192.0.2.10:7745")}, Since: now.Add(-3*time.Minute - time.Second), Error: d.text("connection refused"), NextTry: now.Add(time.Hour + time.Minute),
		},
		Peers: []localapi.PeerStatus{
			{Name: d.text("warehouse"), FQDN: "warehouse.pilot.internal", Address: addr("b"), Key: identity.AgentPublic{3}, State: localapi.PeerConnected,
				Path: d.text("direct 192.0.2.7:7745"), PathKind: localapi.PathDirect, RTT: 1.234, RxBytes: 1_200_000, TxBytes: 999, LastHandshake: now.Add(-2*time.Minute - time.Second)},
			{Name: "scout", FQDN: "scout.pilot.internal", Address: addr("d"), Key: identity.AgentPublic{5}, State: localapi.PeerConnected,
				Path: d.text("relay eu-1"), PathKind: localapi.PathRelay, Relay: d.text("eu-1"), Why: d.text("both-hard-nat"), RTT: 48,
				Paths: []localapi.PathStatus{{Path: d.text("relay eu-1"), Kind: localapi.PathRelay, State: "proved", InUse: true}}},
			{Name: d.text("auditor"), FQDN: "auditor.pilot.internal", Address: addr("c"), Key: identity.AgentPublic{4}, State: localapi.PeerPending,
				Problem: &localapi.Problem{Code: localapi.CodeNotTrusted, Message: d.text("you have not consented"), Hint: d.text("pilot trust approve auditor")}},
		},
		Pending:  1,
		Drops:    map[string]uint64{d.text("no-consent"): 3, "replay": 0},
		Problems: []localapi.Problem{{Code: localapi.CodeUnavailable, Message: d.text("the coordinator can't be reached"), Hint: d.text("it is tried again")}},
	}, nil
}

func (d *fakeDaemon) Netcheck(context.Context) (localapi.Netcheck, error) {
	seen := netip.MustParseAddrPort("203.0.113.7:7745")
	return localapi.Netcheck{
		At: time.Now(), Code: "easy-nat", Verdict: d.text("Addresses are translated in the easy way."),
		IPv4: localapi.NetcheckFamily{Hosts: []netip.Addr{netip.MustParseAddr("192.168.7.2"), netip.MustParseAddr("10.0.0.2")}, UDP: "yes", Reflexive: seen},
		IPv6: localapi.NetcheckFamily{UDP: d.text("unknown")}, NAT: localapi.NAT{Mapping: d.text("endpoint-independent"), Filtering: "address-dependent"},
		Hairpin: d.text("no"), Mapping: &localapi.NetcheckMapped{Protocol: d.text("pcp"), External: netip.MustParseAddrPort("203.0.113.7:40000")},
		Relays: []localapi.NetcheckRelay{
			{Name: d.text("eu-1"), Region: d.text("eu"), Home: true, UDP: 12.5, TLS: 40}, {Name: "us-1", Error: d.text("connection refused")},
		},
		Proxy: d.text("proxy.example:3128"), Captive: true,
	}, nil
}

func (d *fakeDaemon) Ping(_ context.Context, r localapi.PingRequest) (localapi.PingResult, error) {
	if err := d.trouble(r.Target); err != nil {
		return localapi.PingResult{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pings++
	if r.Target == "flaky" && d.pings%2 == 0 {
		return localapi.PingResult{}, d.fail(localapi.CodeTimeout, "no answer in time", "")
	}
	if r.Target == "scout" {
		return localapi.PingResult{Name: "scout", Address: addr("d"), Path: d.text("relay eu-1"), PathKind: localapi.PathRelay, Relay: d.text("eu-1"),
			Why: d.text("trying"), RTT: 24}, nil
	}
	return localapi.PingResult{Name: d.text(r.Target), Address: addr("b"), Path: d.text("direct 192.0.2.7:7745"), PathKind: localapi.PathDirect,
		RTT: float64(d.pings)}, nil
}

func (d *fakeDaemon) Invite(_ context.Context, r localapi.InviteRequest) (localapi.InviteResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.invite = append(d.invite, r)
	return localapi.InviteResult{Invite: d.text("pilot://secret"), Uses: r.Uses, Expires: time.Now().Add(r.Expires), Tags: r.Tags, Trust: !r.NoTrust}, nil
}

func (d *fakeDaemon) Agents(context.Context) (localapi.AgentList, error) {
	return localapi.AgentList{Agents: []localapi.Agent{
		{Name: "planner", FQDN: "planner.pilot.internal", Address: addr("a"), Key: identity.AgentPublic{1}, Trust: localapi.TrustSelf, Online: true},
		{Name: d.text("warehouse"), FQDN: "warehouse.pilot.internal", Address: addr("b"), Key: identity.AgentPublic{3}, Tags: []string{d.text("db"), "eu"},
			Trust: localapi.TrustMutual, LastSeen: time.Now().Add(-2*time.Hour - time.Second)},
	}}, nil
}

func (d *fakeDaemon) TrustList(context.Context) (localapi.TrustList, error) {
	return localapi.TrustList{Entries: []localapi.TrustEntry{
		{Name: "warehouse", Address: addr("b"), Key: identity.AgentPublic{3}, State: localapi.TrustMutual,
			Ours:   &localapi.Consent{Active: true, Since: time.Now().Add(-time.Hour)},
			Theirs: &localapi.Consent{Active: true, Ports: []identity.PortRange{{Proto: 6, First: 443, Last: 443}}, Expires: time.Now().Add(7*24*time.Hour + time.Minute)}},
		{Name: d.text("auditor"), Address: addr("c"), Key: identity.AgentPublic{4}, State: localapi.TrustPending,
			Theirs: &localapi.Consent{Active: true, Reason: d.text("quarterly audit"), Since: time.Now().Add(-3*time.Minute - time.Second)}},
	}}, nil
}

func (d *fakeDaemon) Trust(_ context.Context, r localapi.TrustRequest) (localapi.TrustEntry, error) {
	if err := d.trouble(r.Target); err != nil {
		return localapi.TrustEntry{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trust = append(d.trust, r)
	state := map[string]string{localapi.ActionRequest: localapi.TrustRequested, localapi.ActionApprove: localapi.TrustMutual,
		localapi.ActionReject: localapi.TrustRejected, localapi.ActionRevoke: localapi.TrustRevoked}[r.Action]
	return localapi.TrustEntry{Name: d.text(r.Target), Address: addr("b"), Key: identity.AgentPublic{3}, State: state,
		Ours: &localapi.Consent{Reason: d.text(r.Reason), Ports: r.Ports, Active: state != localapi.TrustRevoked}}, nil
}

func (d *fakeDaemon) WhoIs(_ context.Context, q string) (localapi.Agent, error) {
	if err := d.trouble(q); err != nil {
		return localapi.Agent{}, err
	}
	return localapi.Agent{Name: "warehouse", FQDN: d.text("warehouse.pilot.internal"), Address: addr("b"), Key: identity.AgentPublic{3},
		Tags: []string{d.text("db")}, Jurisdiction: d.text("DE"), Trust: localapi.TrustMutual, Online: true}, nil
}

func (d *fakeDaemon) Diagnose(context.Context) (localapi.Diagnosis, error) {
	return localapi.Diagnosis{Goroutines: "goroutine profile: total 1\n", Log: []string{
		`{"time":"2026-03-01T12:00:00Z","level":"INFO","msg":"session up","agent":"warehouse","path":"direct 203.0.113.7:7745"}` + "\n",
		`{"level":"ERROR","msg":"a defect","error":"can't use pilot://` + strings.Repeat("INVITE", 10) + `","sneaky":"PASSWORD"}` + "\n",
	}}, nil
}

func (d *fakeDaemon) Keys(context.Context) (localapi.KeysStatus, error) {
	in := cmp.Or(d.keysIn, localapi.KeysInFile)
	return localapi.KeysStatus{Keys: []localapi.KeyPlace{{File: "agent.key", In: in, Movable: true}, {File: "coordinator/authority.key", In: localapi.KeysInFile}},
		System: d.text("systemd-creds")}, nil
}

func (d *fakeDaemon) MoveKeys(ctx context.Context, r localapi.KeysMove) (localapi.KeysStatus, error) {
	if d.keysIn = r.To; r.To == localapi.KeysInSystem {
		d.keysIn = d.text("systemd-creds")
	}
	return d.Keys(ctx)
}

func (d *fakeDaemon) metrics(w http.ResponseWriter, _ *http.Request) {
	_, _ = fmt.Fprintln(w, `pilot_peer_direct{peer="warehouse"} 1`)
}

func (d *fakeDaemon) Proxies(context.Context) (localapi.Proxies, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.up) == 0 || d.up[len(d.up)-1].TUN != localapi.TUNUserspace {
		return localapi.Proxies{}, d.fail(localapi.CodeNotFound, "no proxy runs", "pilot up --http-proxy 127.0.0.1:0")
	}
	return localapi.Proxies{SOCKS5: "socks5h://pilot:se'cret@127.0.0.1:1080", HTTP: "http://pilot:se'cret@127.0.0.1:3128"}, nil
}

// serve answers on a socket until ctx ends or somebody says down.
func (d *fakeDaemon) serve(ctx context.Context, socket string) error {
	if d.state == "" {
		d.state = localapi.StateDown
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	ctx, d.stop = context.WithCancel(ctx)
	defer d.stop()
	s := localapi.NewServer(localapi.ServerOptions{Daemon: d, Trust: d, Checker: d, Proxies: d, Connector: d, Publisher: d, Locals: d,
		Caller: func(net.Conn) error { return nil },
		Log:    slog.New(slog.DiscardHandler), Version: d.version, Diagnoser: d, Keys: d, Metrics: http.HandlerFunc(d.metrics)})
	return s.Serve(ctx, l)
}

// testInvite makes an invite that can be read.
func testInvite() (string, error) {
	key, err := identity.NewJoinKey(rand.Reader)
	if err != nil {
		return "", err
	}
	return identity.Invite{NetworkName: "pilot", Authority: identity.AuthorityPublic{2}, Coordinators: []string{"192.0.2.10:7745"},
		Key: key, Expires: time.Now().Add(time.Hour)}.Text()
}

// fakeNode is a node in which the fake daemon lives.
type fakeNode struct {
	daemon *fakeDaemon
	socket string
}

func (n fakeNode) Run(ctx context.Context) error { return n.daemon.serve(ctx, n.socket) }

// newFakeNode fails in the way that trouble names.
func newFakeNode(socket, trouble string) (runner, error) {
	switch trouble {
	case "":
		return fakeNode{daemon: &fakeDaemon{}, socket: socket}, nil
	case "damaged":
		return nil, &localapi.Error{Code: localapi.CodeStateDamaged, Message: "identity.key is damaged", Hint: "restore it from a backup"}
	case "crash":
		fmt.Fprintln(os.Stderr, strings.Repeat("goroutine 1\n", 3)+"panic: \x1b[31mit crashed")
		os.Exit(2)
	}
	return nil, errors.New("unknown trouble " + trouble)
}

func (d *fakeDaemon) local(name string) localapi.LocalAgent {
	return localapi.LocalAgent{
		Name: name, State: localapi.StateUp, Owner: 1000, FQDN: name + ".pilot.internal", Address: addr("c"), Key: identity.AgentPublic{4},
		Peers: 2, Sessions: 1, RxBytes: 100, TxBytes: 200,
	}
}

func (d *fakeDaemon) AddLocal(_ context.Context, _ net.Conn, r localapi.LocalRequest) (localapi.LocalAgent, error) {
	if r.Name == "taken" {
		return localapi.LocalAgent{}, d.fail(localapi.CodeConflict, "this daemon has an agent taken already", "see them all: pilot agents --local")
	}
	if r.Invite != "" && r.SOCKS5 != "127.0.0.1:0" {
		return localapi.LocalAgent{}, d.fail(localapi.CodeUsage, "the flags did not arrive", "")
	}
	return d.local(r.Name), nil
}

func (d *fakeDaemon) RemoveLocal(_ context.Context, _ net.Conn, name string) (localapi.LocalAgent, error) {
	if name != "researcher" {
		return localapi.LocalAgent{}, d.fail(localapi.CodeForbidden, "you may not act as that agent", "")
	}
	return d.local(name), nil
}

func (d *fakeDaemon) ListLocals(context.Context) (localapi.LocalList, error) {
	broken := localapi.LocalAgent{Name: "broken", State: localapi.StateDown, Error: &localapi.Problem{Code: localapi.CodeStateDamaged, Message: d.text("it is damaged")}}
	return localapi.LocalList{Agents: []localapi.LocalAgent{broken, d.local("researcher")}}, nil
}

// Acting lets the caller act as "researcher", who is like the daemon's own agent but for its name.
func (d *fakeDaemon) Acting(_ net.Conn, name string) (http.Handler, error) {
	if name != "researcher" {
		return nil, d.fail(localapi.CodeForbidden, "you may not act as that agent", "")
	}
	return localapi.NewServer(localapi.ServerOptions{Daemon: acting{d}, Trust: d, Checker: d, Proxies: d, Connector: d, Publisher: d,
		Log: slog.New(slog.DiscardHandler)}).Admitted(), nil
}

type acting struct{ *fakeDaemon }

func (acting) Agents(context.Context) (localapi.AgentList, error) {
	return localapi.AgentList{Agents: []localapi.Agent{{Name: "researcher", Address: addr("c"), Trust: localapi.TrustSelf, Online: true}}}, nil
}
