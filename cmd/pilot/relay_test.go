// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator"
	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/relayserver"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// runRelay runs a real one and returns what it prints; stop ends it and returns the exit status.
func runRelay(t *testing.T, args ...string) (relayResult, func() int) {
	t.Helper()
	r := newRunning(t, nil)
	out, in := io.Pipe()
	r.stdout = in
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		status := r.run(ctx, append([]string{"pilot", "relay", "--json", "--listen", "127.0.0.1:0"}, args...))
		in.CloseWithError(io.EOF)
		ended <- status
	}()
	var result relayResult
	if err := json.NewDecoder(out).Decode(&result); err != nil {
		t.Fatalf("%v, exit status %d: %s", err, <-ended, r.err.String())
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // until the pipe is closed
	return result, func() int { cancel(); return <-ended }
}

// network runs a coordinator in this process, which is no relay.
func network(t *testing.T) *coordinator.Coordinator {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	co, err := coordinator.New(coordinator.Options{
		Listen: address, StateDir: t.TempDir(), Advertise: []string{address}, Relay: coordinator.RelayOptions{Off: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- co.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return co
}

func inviteTo(t *testing.T, co *coordinator.Coordinator, jurisdiction string, tags ...string) string {
	t.Helper()
	key, err := identity.NewJoinKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	expires := time.Now().Add(time.Hour)
	if err := co.CreateInvite(t.Context(), api.InviteRequest{
		Join: key.Public(), Uses: 1, Expires: expires, Tags: tags, Jurisdiction: jurisdiction,
	}); err != nil {
		t.Fatal(err)
	}
	text, err := identity.Invite{
		NetworkName: "pilot", Authority: co.Authority(), Coordinators: []string{co.Addr().String()}, Key: key, Expires: expires,
	}.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestRelay joins, is listed, counts, and is the same relay when it is started again without an invite.
func TestRelay(t *testing.T) {
	co := network(t)
	dir := filepath.Join(t.TempDir(), "relay")
	invite := filepath.Join(t.TempDir(), "invite")
	if err := os.WriteFile(invite, []byte("pilot up "+inviteTo(t, co, "eu-de", api.TagRelay)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	first, stop := runRelay(t, "--state", dir, "--name", "eu-1", "--region", "eu", "--advertise", "192.0.2.1:7745", "--invite-file", invite)
	if first.Network != "pilot" || first.Name != "eu-1" || first.Region != "eu" || first.Jurisdiction != "eu-de" || first.UDPPort == 0 ||
		len(first.Addresses) != 1 || first.Addresses[0] != "192.0.2.1:7745" {
		t.Errorf("got %+v", first)
	}
	if status := stop(); status != localapi.ExitOK {
		t.Errorf("exit status %d", status)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := l.Addr().String()
	_ = l.Close()
	again, stop := runRelay(t, "--state", dir, "--advertise", "192.0.2.1:7745", "--metrics-listen", metrics)
	if again.Key != first.Key || again.Jurisdiction != "eu-de" || again.Name != "eu-1" {
		t.Errorf("got %+v", again)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !strings.Contains(string(text), "pilot_relay_server_clients 0\n") || !strings.Contains(string(text), `reason="limit"`) {
		t.Errorf("%v: %s", err, text)
	}
	if status := stop(); status != localapi.ExitOK {
		t.Errorf("exit status %d", status)
	}
}

func TestRelayFails(t *testing.T) {
	co := network(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	damagedKey, damagedState := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{filepath.Join(damagedKey, "relay.key"): "{", filepath.Join(damagedState, "relay.json"): "{}"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fresh := func() string { return filepath.Join(t.TempDir(), "r") }
	other, err := relayserver.NewStandalone(relayserver.StandaloneOptions{
		StateDir: fresh(), Invite: new(parsed(t, inviteTo(t, co, "", api.TagRelay))), Name: "eu-1", Listen: "127.0.0.1:0", Advertise: []string{"192.0.2.1:7745"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- other.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	if _, err := other.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	r := newRunning(t, nil)
	for name, test := range map[string]struct {
		status int
		args   []string
	}{
		"no invite":        {localapi.ExitUsage, []string{"--state", fresh()}},
		"without the tag":  {localapi.ExitForbidden, []string{"--state", fresh(), inviteTo(t, co, "")}},
		"name taken":       {localapi.ExitConflict, []string{"--state", fresh(), "--name", "eu-1", inviteTo(t, co, "", api.TagRelay)}},
		"port taken":       {localapi.ExitConflict, []string{"--state", fresh(), "--listen", taken.Addr().String(), inviteTo(t, co, "", api.TagRelay)}},
		"damaged key":      {localapi.ExitState, []string{"--state", damagedKey}},
		"damaged state":    {localapi.ExitState, []string{"--state", damagedState}},
		"bad name":         {localapi.ExitUsage, []string{"--name", "No Name"}},
		"bad region":       {localapi.ExitUsage, []string{"--region", "E U"}},
		"bad invite":       {localapi.ExitUsage, []string{"pilot://x"}},
		"bad metrics":      {localapi.ExitUsage, []string{"--metrics-listen", "x", "--state", fresh()}},
		"an argument more": {localapi.ExitUsage, []string{"a", "b"}},
	} {
		args := append([]string{"relay", "--listen", "127.0.0.1:0", "--advertise", "192.0.2.1:7745"}, test.args...)
		if status := r.pilot(args...); status != test.status {
			t.Errorf("%s: exit status %d: %s", name, status, r.err.String())
		}
	}
}

func parsed(t *testing.T, text string) identity.Invite {
	t.Helper()
	i, err := identity.ParseInvite(text)
	if err != nil {
		t.Fatal(err)
	}
	return i
}
