// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// runCoordinator runs a real one and returns what it prints; stop ends it and returns the exit status.
func runCoordinator(t *testing.T, dir string, args ...string) (coordinatorResult, func() int) {
	t.Helper()
	r := newRunning(t, nil)
	out, in := io.Pipe()
	r.stdout = in
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	args = append([]string{"pilot", "coordinator", "--json", "--state", dir, "--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:7745"}, args...)
	go func() {
		status := r.run(ctx, args)
		in.CloseWithError(io.EOF)
		ended <- status
	}()
	var result coordinatorResult
	if err := json.NewDecoder(out).Decode(&result); err != nil {
		t.Fatalf("%v, exit status %d: %s", err, <-ended, r.err.String())
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // until the pipe is closed
	return result, func() int { cancel(); return <-ended }
}

func TestCoordinator(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "coordinator")
	r, stop := runCoordinator(t, dir, "--network", "lab")
	if r.Network != "lab" || !r.Created || !slices.Equal(r.Addresses, []string{"127.0.0.1:7745"}) {
		t.Errorf("got %+v", r)
	}
	invite, err := identity.ParseInvite(r.Invite)
	if err != nil {
		t.Fatal(err)
	}
	if invite.NetworkName != "lab" || invite.Authority != r.Authority || !slices.Equal(invite.Coordinators, r.Addresses) {
		t.Errorf("the invite is %+v", invite)
	}
	admit(t, r, invite)
	if status := stop(); status != localapi.ExitOK {
		t.Errorf("exit status %d", status)
	}

	// Started again it is the same network, with its own name, and no invite unless one is asked for.
	again, stop := runCoordinator(t, dir)
	if again.Network != "lab" || again.Authority != r.Authority || again.Created || again.Invite != "" {
		t.Errorf("got %+v", again)
	}
	if status := stop(); status != localapi.ExitOK {
		t.Errorf("exit status %d", status)
	}
	third, stop := runCoordinator(t, dir, "--invite")
	if third.Invite == "" || third.Invite == r.Invite {
		t.Errorf("got %+v", third)
	}
	stop()
}

// admit joins by an invite: it makes an admin, once.
func admit(t *testing.T, r coordinatorResult, invite identity.Invite) {
	t.Helper()
	for i, name := range []string{"first", "second"} {
		key, err := identity.NewAgentKey(strings.NewReader(strings.Repeat(name, 32)))
		if err != nil {
			t.Fatal(err)
		}
		client, err := api.NewClient(api.ClientOptions{Addresses: []string{r.Listen}, Authority: r.Authority, Key: key})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.CloseIdleConnections)
		acceptance, err := identity.Acceptance{Network: r.Authority, Agent: key.Public()}.Sign(invite.Key)
		if err != nil {
			t.Fatal(err)
		}
		m, err := client.Join(t.Context(), api.JoinRequest{Acceptance: acceptance.Raw(), Name: name})
		if i > 0 {
			if !api.HasCode(err, api.CodeJoinKeyUsed) {
				t.Errorf("the second joiner: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		cert, err := identity.OpenCertificate(m.Certificate, r.Authority)
		if err != nil || !slices.Contains(cert.Tags, api.TagAdmin) {
			t.Errorf("the certificate is %+v, %v", cert, err)
		}
	}
}

func TestCoordinatorFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	damaged, exposed := t.TempDir(), t.TempDir()
	for dir, perm := range map[string]os.FileMode{damaged: 0o600, exposed: 0o644} {
		if err := os.WriteFile(filepath.Join(dir, authorityFile), []byte("{"), perm); err != nil {
			t.Fatal(err)
		}
	}
	r := newRunning(t, nil)
	for name, test := range map[string]struct {
		status int
		args   []string
	}{
		"port taken":       {localapi.ExitConflict, []string{"--state", filepath.Join(t.TempDir(), "a"), "--listen", taken.Addr().String()}},
		"damaged":          {localapi.ExitState, []string{"--state", damaged, "--listen", "127.0.0.1:1"}},
		"exposed":          {localapi.ExitState, []string{"--state", exposed, "--listen", "127.0.0.1:1"}},
		"no such address":  {localapi.ExitUsage, []string{"--listen", "7745"}},
		"advertise host":   {localapi.ExitUsage, []string{"--advertise", "coord.example"}},
		"advertise port":   {localapi.ExitUsage, []string{"--advertise", ":7745"}},
		"port of a name":   {localapi.ExitUsage, []string{"--listen", ":https-alt"}},
		"foreign address":  {localapi.ExitUsage, []string{"--state", filepath.Join(t.TempDir(), "b"), "--listen", "192.0.2.1:7745"}},
		"no NATS":          {localapi.ExitUnreachable, []string{"--state", filepath.Join(t.TempDir(), "c"), "--listen", "127.0.0.1:0", "--advertise", "a:1", "--nats", "nats://127.0.0.1:1"}},
		"port of chance":   {localapi.ExitUsage, []string{"--listen", ":0"}},
		"bad name":         {localapi.ExitUsage, []string{"--network", "No Name"}},
		"bad level":        {localapi.ExitUsage, []string{"--log-level", "loud"}},
		"bad format":       {localapi.ExitUsage, []string{"--log-format", "xml"}},
		"too many":         {localapi.ExitUsage, slices.Repeat([]string{"--advertise", "a:1"}, 9)},
		"an argument more": {localapi.ExitUsage, []string{"x"}},
	} {
		if status := r.pilot(append([]string{"coordinator"}, test.args...)...); status != test.status {
			t.Errorf("%s: exit status %d: %s", name, status, r.err.String())
		}
	}
}

func TestAdvertised(t *testing.T) {
	own := func(string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}, nil
	}
	for listen, want := range map[string][]string{
		":7745":            {"192.0.2.1:7745", "[2001:db8::1]:7745"},
		"0.0.0.0:1":        {"192.0.2.1:1", "[2001:db8::1]:1"},
		"[::]:1":           {"192.0.2.1:1", "[2001:db8::1]:1"},
		"192.0.2.7:1":      {"192.0.2.7:1"},
		"[2001:db8::7]:1":  {"[2001:db8::7]:1"},
		"coord.example:99": {"coord.example:99"},
	} {
		if got, err := advertised(listen, nil, own); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; expected %v", listen, got, err, want)
		}
	}
	if _, err := advertised(":1", nil, func(string) ([]netip.Addr, error) { return nil, nil }); codeOf(err) != localapi.CodeUsage {
		t.Errorf("without an address: %v", err)
	}
	if _, err := advertised(":1", nil, func(string) ([]netip.Addr, error) { return nil, os.ErrPermission }); !errors.Is(err, os.ErrPermission) {
		t.Errorf("when they can't be read: %v", err)
	}
}

func TestAdminInviteIsForOneAdminAndADay(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	invite, request, err := adminInvite(strings.NewReader(strings.Repeat("x", 32)), coordinatorResult{Network: "lab"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if request.Uses != 1 || !slices.Equal(request.Tags, []string{api.TagAdmin}) || request.Join != invite.Key.Public() ||
		!request.Expires.Equal(invite.Expires) || !request.Expires.Equal(now.Add(24*time.Hour).Truncate(time.Second)) {
		t.Errorf("got %+v, %+v", invite, request)
	}
	if _, _, err := adminInvite(strings.NewReader(""), coordinatorResult{}, now); err == nil {
		t.Error("a key was made of nothing")
	}
}
