// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// An agent whose keys systemd has sealed is the same agent, also after a crash; another host can't open them.
func TestSealedKeys(t *testing.T) {
	m := openTrio(t, "systemd-creds")
	ctx := deadline(t, 2*time.Minute)
	found(t, m.a, "planner")
	before := join(t, m.a, m.b, "warehouse")
	seeds := keyFiles(t, m.b)
	up := func(want string) {
		t.Helper()
		Eventually(t, 20*time.Second, func(context.Context) error {
			s := pilot[localapi.Status](t, m.b, "status")
			if s.Self == nil || s.Self.Key != before.Key {
				return errors.New("it is not up, or another agent")
			}
			return nil
		})
		m.b.Must(ctx, "pilot", "ping", "planner", "--count", "1")
		s := pilot[localapi.KeysStatus](t, m.b, "keys", "status")
		if len(s.Keys) < 2 || s.Keys[0].In != want || s.Keys[1].In != want || s.System != "systemd-creds" {
			t.Errorf("%+v, want %s", s, want)
		}
		for _, name := range []string{"agent.key", "tunnel.key"} {
			text, err := os.ReadFile(m.b.Path("/var/lib/pilot/" + name))
			if err != nil {
				t.Fatal(err)
			}
			shown := false
			for _, seed := range seeds {
				shown = shown || seed.in(text)
			}
			if shown != (want == localapi.KeysInFile) || bytes.Contains(text, []byte(`"sealed"`)) == shown {
				t.Errorf("%s, kept in %s: %s", name, want, text)
			}
		}
	}
	m.b.Must(ctx, "mkdir", "-p", "/var/lib/systemd")
	up(localapi.KeysInFile)
	// The host with the coordinator in its daemon seals the authority's key too, and comes back.
	m.a.Must(ctx, "mkdir", "-p", "/var/lib/systemd")
	if s := pilot[localapi.KeysStatus](t, m.a, "keys", "move", "--to", "system"); len(s.Keys) < 3 || s.Keys[2].File != "coordinator/authority.key" || s.Keys[2].In != "systemd-creds" {
		t.Errorf("%+v", s)
	}
	m.a.Must(ctx, "sh", "-c", "kill -9 $(pidof pilot)")
	m.a.Must(ctx, "pilot", "up")
	join(t, m.a, m.c, "auditor")
	pilot[localapi.KeysStatus](t, m.b, "keys", "move", "--to", "system") // while it runs
	up("systemd-creds")
	m.b.Must(ctx, "sh", "-c", "kill -9 $(pidof pilot)")
	m.b.Must(ctx, "pilot", "up")
	up("systemd-creds")

	// On another host, which has another key, the folder is of no use, and is left as it is.
	m.b.Must(ctx, "pilot", "down")
	m.b.Must(ctx, "mv", "/var/lib/systemd/credential.secret", "/var/lib/systemd/of-this-host")
	sealed, err := os.ReadFile(m.b.Path("/var/lib/pilot/agent.key"))
	if err != nil {
		t.Fatal(err)
	}
	if r := m.b.Run(ctx, "pilot", "up"); r.Code != localapi.ExitState {
		t.Errorf("with another host's key: %v", r)
	}
	if text, err := os.ReadFile(m.b.Path("/var/lib/pilot/agent.key")); err != nil || !bytes.Equal(text, sealed) {
		t.Errorf("the file changed: %s, %v", text, err)
	}
	m.b.Must(ctx, "mv", "/var/lib/systemd/of-this-host", "/var/lib/systemd/credential.secret")
	pilot[localapi.KeysStatus](t, m.b, "keys", "move", "--to", "file") // while none runs
	m.b.Must(ctx, "pilot", "up")
	up(localapi.KeysInFile)
}
