// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests in this file are of the lab itself, with ordinary programs.

func deadline(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestLabHostsReachEachOther(t *testing.T) {
	ctx := deadline(t, time.Minute)
	l := open(t)
	Programs(t, "python3", "curl", "ping")
	wan := l.Bridge("wan")
	a, b := l.Host("a"), l.Host("b")
	a.Connect(wan, "192.0.2.10/24")
	b.Connect(wan, "192.0.2.11/24")
	a.Must(ctx, "ping", "-c", "1", "-W", "5", "192.0.2.11")

	const marker = "a-marker-that-travels-in-the-clear"
	b.WriteFile("index.html", marker, 0o644)
	server := b.Start("python3", "-m", "http.server", "80")
	capture := wan.Capture()
	if got := a.Probe(10*time.Second, "curl", "-sS", "--max-time", "5", "http://192.0.2.11/").Stdout; got != marker {
		t.Errorf("curl got %q", got)
	}
	if frames := capture.Stop(); !bytes.Contains(frames, []byte(marker)) {
		t.Error("the capture of the bridge lacks what was sent over it")
	}
	server.Kill()
	if r := a.Run(ctx, "curl", "-sS", "--max-time", "5", "http://192.0.2.11/"); r.Code != 7 {
		t.Errorf("the server still answers after Kill: %v", r)
	}
	for name, want := range map[string]*Host{"a": a, "b": b} {
		if got := strings.TrimSpace(want.Must(ctx, "hostname")); got != name {
			t.Errorf("hostname of %s is %s", name, got)
		}
	}
}

func TestLabRouterAndMove(t *testing.T) {
	ctx := deadline(t, time.Minute)
	l := open(t)
	Programs(t, "ping")
	left, right := l.Bridge("left"), l.Bridge("right")
	r, a, b := l.Router("r"), l.Host("a"), l.Host("b")
	r.Connect(left, "192.0.2.1/24")
	r.Connect(right, "198.51.100.1/24")
	link := a.Connect(left, "192.0.2.10/24")
	link.Gateway("192.0.2.1")
	b.Connect(right, "198.51.100.10/24").Gateway("198.51.100.1")
	a.Must(ctx, "ping", "-c", "1", "-W", "5", "198.51.100.10")

	link.Move(nil, "192.0.2.77/24", "192.0.2.1")
	a.Must(ctx, "ping", "-c", "1", "-W", "5", "198.51.100.10")
	link.Move(right, "198.51.100.77/24", "198.51.100.1")
	a.Must(ctx, "ping", "-c", "1", "-W", "5", "198.51.100.10")
	a.Must(ctx, "ping", "-c", "1", "-W", "5", "192.0.2.1")
	link.Up(false)
	if r := a.Run(ctx, "ping", "-c", "1", "-W", "1", "198.51.100.10"); r.OK() {
		t.Errorf("a pulled cable still carries packets: %v", r)
	}
}

// A daemon that detaches itself must be seen, and must be gone with its host.
func TestLabEndsWhatHostsLeftBehind(t *testing.T) {
	ctx := deadline(t, time.Minute)
	l := open(t)
	a := l.Host("a")
	before := a.Snapshot()
	a.Must(ctx, "bash", "-c", "setsid sleep 3601 >/dev/null 2>&1 </dev/null & ip link add d0 type bridge; touch /run/left")
	diff := before.Diff(a.Snapshot())
	for _, want := range []string{"+ processes: sleep 3601", "d0", "/run/left"} {
		if !strings.Contains(diff, want) {
			t.Errorf("the difference lacks %q:\n%s", want, diff)
		}
	}
	var left int
	for pid, command := range a.Processes() {
		if command == "sleep 3601" {
			left = pid
		}
	}
	if left == 0 {
		t.Fatalf("Processes lacks the detached process: %v", a.Processes())
	}
	a.close()
	if err := syscall.Kill(left, 0); err != syscall.ESRCH {
		t.Errorf("a process outlived its host: kill: %v", err)
	}
}

func TestLabHostSeesItsOwnFiles(t *testing.T) {
	ctx := deadline(t, time.Minute)
	l := open(t)
	a, b := l.Host("a"), l.Host("b")
	a.Resolvers("192.0.2.53")
	a.Must(ctx, "bash", "-c", "mkdir /run/pilot /var/lib/pilot && echo mine > /var/lib/pilot/x && mv /etc/hosts /etc/hosts.old")
	if got := a.Must(ctx, "cat", "/etc/resolv.conf"); got != "nameserver 192.0.2.53\n" {
		t.Errorf("resolv.conf: %q", got)
	}
	if got, err := os.ReadFile(a.Path("/var/lib/pilot/x")); err != nil || string(got) != "mine\n" {
		t.Errorf("from outside: %q, %v", got, err)
	}
	for _, path := range []string{"/run/pilot", "/var/lib/pilot"} {
		if r := b.Run(ctx, "ls", path); r.OK() {
			t.Errorf("another host sees %s", path)
		}
		if _, err := os.Stat("/var/lib/pilot/x"); err == nil {
			t.Error("the machine itself sees the host's file")
		}
	}
	b.Must(ctx, "test", "-e", "/etc/hosts")
}

func TestLabRunEndsWithItsContext(t *testing.T) {
	l := open(t)
	a := l.Host("a")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r := a.Run(ctx, "bash", "-c", "echo begun; sleep 3602 & wait")
	if r.OK() || r.Code != -1 || r.Err == nil || r.Stdout != "begun\n" {
		t.Errorf("got %v", r)
	}
	if r := a.Run(t.Context(), "bash", "-c", "echo no >&2; exit 3"); r.Code != 3 || r.Stderr != "no\n" {
		t.Errorf("got %v", r)
	}
}

// crashEnv makes this test binary a program that opens a lab and is killed.
const crashEnv = "PILOT_LAB_CRASH"

func TestLabIsGoneAfterACrash(t *testing.T) {
	if os.Getenv(crashEnv) != "" {
		l := New(t)
		h := l.Host("crash")
		h.Start("sleep", "3603")
		for pid := range h.Processes() {
			fmt.Printf("lab %s process %d\n", l.Dir(), pid)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	open(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestLabIsGoneAfterACrash$")
	cmd.Env = append(os.Environ(), crashEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("the crash did not happen:\n%s", out)
	}
	var dir string
	var pid int
	if _, err := fmt.Sscanf(string(out), "lab %s process %d", &dir, &pid); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	Eventually(t, 5*time.Second, func(context.Context) error {
		if text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); err == nil && bytes.Contains(text, []byte("3603")) {
			return fmt.Errorf("process %d still runs", pid)
		}
		return nil
	})
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("expected the crashed lab's folder to be there still: %v", err)
	}
	open(t)
	if _, err := os.Stat(filepath.Clean(dir)); !os.IsNotExist(err) {
		t.Errorf("the next lab left %s: %v", dir, err)
	}
}
