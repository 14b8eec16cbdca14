// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// writeRandom makes a file of this many bytes in the host's home and returns its SHA-256.
func writeRandom(t testing.TB, h *Host, name string, size int64) [32]byte {
	t.Helper()
	in, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(h.Home(), name))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(out, sum), in, size); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return [32]byte(sum.Sum(nil))
}

// transfer is a download in the background.
type transfer struct {
	process *Process
	path    string
}

func startTransfer(h *Host, url, rate string) transfer {
	path := filepath.Join(h.Home(), "received")
	_ = os.Remove(path)
	return transfer{path: path, process: h.Start("curl", "-sS", "--fail", "--no-buffer", "--limit-rate", rate, "-o", path, url)}
}

// reach waits until this many bytes have arrived.
func (x transfer) reach(t testing.TB, bytes int64) {
	t.Helper()
	Eventually(t, 20*time.Second, func(context.Context) error {
		info, err := os.Stat(x.path)
		if err == nil && info.Size() < bytes {
			err = fmt.Errorf("%d bytes of %d", info.Size(), bytes)
		}
		return err
	})
}

// finish waits for the end and ends the test unless the content is right.
func (x transfer) finish(ctx context.Context, t testing.TB, want [32]byte) {
	t.Helper()
	if err := x.process.Wait(ctx); err != nil {
		t.Fatalf("the download did not finish: %v\n%s", err, x.process.Logs())
	}
	data, err := os.ReadFile(x.path)
	if err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(data) != want {
		t.Fatalf("what was downloaded (%d bytes) is not what was sent", len(data))
	}
}

// The network does without its coordinator: what is open goes on, known peers open new connections, and a node that
// restarts meanwhile comes back from its own state.
func TestCoordinatorMayBeGone(t *testing.T) {
	beside(t)
	ctx := deadline(t, 2*time.Minute)
	m := openTrio(t, "dig")
	d := m.Host("d")
	d.Connect(m.wan, "192.0.2.20/24")
	coordinator := d.Start("pilot", "coordinator", "--listen", "192.0.2.20:7745", "--state", filepath.Join(d.Home(), "coordinator"))
	invite := founderInvite(t, coordinator)
	planner := joinBy(t, m.a, "planner", invite)
	join(t, m.a, m.b, "warehouse")
	m.a.WriteFile("index.html", "the plan", 0o644)
	sum := writeRandom(t, m.a, "big", 12<<20)
	serve(m.a)

	download := startTransfer(m.b, "http://planner/big", "4M")
	download.reach(t, 1<<20)
	coordinator.Kill()
	get(t, m.b, "http://planner/", "the plan")
	download.finish(ctx, t, sum)

	Eventually(t, 30*time.Second, func(context.Context) error {
		s := pilot[localapi.Status](t, m.b, "status")
		if s.Coordinator == nil || s.Coordinator.Connected || s.Coordinator.Error == "" {
			return fmt.Errorf("the status does not tell that the coordinator is gone: %+v", s.Coordinator)
		}
		return nil
	})

	for _, stop := range []func(){
		func() { pilot[localapi.DownResult](t, m.b, "down") },
		func() { crash(t, m.b) },
	} {
		address := pilot[localapi.Status](t, m.b, "status").Self.Address
		stop()
		if up := pilot[localapi.UpResult](t, m.b, "up"); up.Address != address || up.Name != "warehouse" {
			t.Errorf("a restart without the coordinator: %+v", up)
		}
		m.b.Probe(15*time.Second, "curl", "-sS", "--fail", "--max-time", "5", "-o", "/dev/null", "http://planner/")
		get(t, m.b, "http://planner/", "the plan")
		if got := m.b.Must(ctx, "dig", "+short", "planner.pilot.internal", "AAAA"); got != planner.Address.String()+"\n" {
			t.Errorf("the name of a known peer: %q", got)
		}
	}

	// Back again, with its state.
	d.Start("pilot", "coordinator", "--listen", "192.0.2.20:7745", "--state", filepath.Join(d.Home(), "coordinator"))
	Eventually(t, 60*time.Second, func(context.Context) error {
		for _, h := range []*Host{m.a, m.b} {
			if s := pilot[localapi.Status](t, h, "status"); s.Coordinator == nil || !s.Coordinator.Connected {
				return fmt.Errorf("%s does not come back to the coordinator: %+v", h.Name(), s.Coordinator)
			}
		}
		return nil
	})
	join(t, m.a, m.c, "auditor")
	get(t, m.c, "http://planner/", "the plan")
}

// founderInvite is the invite that a new standalone coordinator prints for the first agent.
func founderInvite(t testing.TB, coordinator *Process) string {
	t.Helper()
	form := regexp.MustCompile(`pilot://[A-Za-z0-9_-]+`)
	var invite string
	Eventually(t, 20*time.Second, func(context.Context) error {
		if invite = form.FindString(coordinator.Logs()); invite == "" {
			if !coordinator.Running() {
				t.Fatalf("the coordinator ended:\n%s", coordinator.Logs())
			}
			return fmt.Errorf("the coordinator prints no invite:\n%s", coordinator.Logs())
		}
		return nil
	})
	return invite
}

// A second coordinator on the same state folder is refused: two writers would damage it.
func TestCoordinatorStateHasOneWriter(t *testing.T) {
	l := open(t)
	d := l.Host("d")
	d.Connect(l.Bridge("wan"), "192.0.2.20/24")
	state := filepath.Join(d.Home(), "coordinator")
	first := d.Start("pilot", "coordinator", "--listen", "192.0.2.20:7745", "--state", state)
	founderInvite(t, first)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if r := d.Run(ctx, "pilot", "coordinator", "--listen", "192.0.2.20:7746", "--state", state); r.OK() || r.Err != nil {
		t.Errorf("a second coordinator on one state folder: %v", r)
	}
	first.Signal(syscall.SIGTERM)
	if err := first.Wait(ctx); err != nil {
		t.Errorf("a coordinator that is asked to end: %v\n%s", err, first.Logs())
	}
}
