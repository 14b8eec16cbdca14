// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// nodeFunc is a node that is one function.
type nodeFunc func(context.Context) error

func (f nodeFunc) Run(ctx context.Context) error { return f(ctx) }

// withNode makes the fake daemon, or what run does instead, the node of r.
func withNode(r *running, run nodeFunc) {
	r.daemon = &fakeDaemon{}
	r.sys.node = func(dir string) (runner, error) {
		r.sys.answer(func(ctx context.Context, path string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		})
		if run != nil {
			return run, nil
		}
		return fakeNode{daemon: r.daemon, socket: r.sys.SocketPath(dir)}, nil
	}
}

func TestDaemonTellsTheServiceManagerWhenItIsReady(t *testing.T) {
	r := newRunning(t, nil)
	withNode(r, nil)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(r.sys.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Skip(err) // not on this system
	}
	defer notify.Close()
	t.Setenv("NOTIFY_SOCKET", notify.LocalAddr().String())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() { ended <- r.run(ctx, []string{"pilot", "daemon"}) }()
	message := make([]byte, 64)
	n, err := notify.Read(message)
	if got := string(message[:n]); err != nil || got != "READY=1" {
		t.Errorf("the service manager is told %q, %v", got, err)
	}
	// When it is told so, the socket answers.
	if _, err := r.clientAt(r.sys.SocketPath(r.sys.dir)).Status(ctx); err != nil {
		t.Error(err)
	}
	cancel()
	if status := <-ended; status != localapi.ExitOK {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
	if n, err := notify.Read(message); err != nil || string(message[:n]) != "STOPPING=1" {
		t.Errorf("at the end the service manager is told %q, %v", message[:n], err)
	}
}

// A manager that wants to be talked to is told when the socket answers, and stops the daemon by its context.
func TestDaemonInAServiceThatIsTalkedTo(t *testing.T) {
	r := newRunning(t, nil)
	withNode(r, nil)
	events := &strings.Builder{}
	h := &fakeHost{events: slog.NewTextHandler(events, &slog.HandlerOptions{Level: slog.LevelWarn}), recover: errors.New("it may not")}
	r.sys.service = fakeService{installed: true, host: h}
	if status := r.pilot("daemon", "--service"); status != localapi.ExitOK {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
	if want := []string{"ready", "ended: <nil>"}; !slices.Equal(h.heard, want) {
		t.Errorf("the manager heard %q, expected %q", h.heard, want)
	}
	for name, log := range map[string]string{"file": h.file.String(), "event log": events.String()} {
		if !strings.Contains(log, "it may not") {
			t.Errorf("the %s has %q", name, log)
		}
	}
	if !h.closed || r.err.Len() > 0 {
		t.Errorf("its log is closed: %v; on standard error: %q", h.closed, r.err.String())
	}
}

func TestDaemonInNoServiceOfThatKind(t *testing.T) {
	r := newRunning(t, nil)
	if status := r.pilot("daemon", "--service"); status != localapi.ExitUsage {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
}

func TestDaemonInAServiceSaysWhyItEnded(t *testing.T) {
	r := newRunning(t, nil)
	withNode(r, func(context.Context) error {
		return &localapi.Error{Code: localapi.CodeStateLocked, Message: "in use"}
	})
	events := &strings.Builder{}
	h := &fakeHost{events: slog.NewTextHandler(events, nil)}
	r.sys.service = fakeService{installed: true, host: h}
	want := localapi.ExitStatus(localapi.CodeStateLocked)
	if status := r.pilot("daemon", "--service"); status != want {
		t.Errorf("exit status %d, expected %d", status, want)
	}
	if h.heard[len(h.heard)-1] != fmt.Sprintf("ended: exit status %d", want) {
		t.Errorf("the manager heard %q", h.heard)
	}
	if !strings.Contains(h.file.String(), `"code":"STATE_LOCKED"`) || !strings.Contains(events.String(), "code=STATE_LOCKED") {
		t.Errorf("the file has %q, the event log %q", h.file.String(), events.String())
	}
}

// While the socket answers the watchdog hears of it, and a daemon that hangs is silent.
func TestDaemonFeedsTheWatchdog(t *testing.T) {
	r := newRunning(t, &fakeDaemon{})
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "")
	log, _ := newLog(r.stderr, "error", "text")
	told := make(chan string, 100)
	feed := func(ctx context.Context) {
		p := r.clientAt(r.sys.SocketPath(r.sys.dir))
		r.feedWatchdog(ctx, log, p, func(state string) { told <- state })
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-told; got := <-told; cancel(); told <- got }()
	feed(ctx)
	if got := <-told; got != "WATCHDOG=1" {
		t.Errorf("the watchdog is told %q", got)
	}
	r.sys.answer(func(context.Context, string) (net.Conn, error) { return nil, errors.New("nobody accepts") })
	for len(told) > 0 {
		<-told
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	feed(ctx)
	if len(told) > 0 || !strings.Contains(r.err.String(), "does not answer on its own socket") {
		t.Errorf("a daemon that hangs told %q; log: %s", <-told, r.err.String())
	}
}

func TestDNSSettingsNeedAConnection(t *testing.T) {
	r := newRunning(t, nil)
	if status := r.pilot("dns-settings", "--backup", "folder"); status != localapi.ExitFailure || !strings.Contains(r.err.String(), "served with folder") {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
	var e *localapi.Error
	if err := (host{}).ServeDNS(t.Context(), t.TempDir(), nil); !errors.As(err, &e) || e.Code != localapi.CodeUsage {
		t.Errorf("with %v as standard input: %v", os.Stdin.Name(), err)
	}
}

// The guard undoes what a daemon left behind that says nothing before it ends.
func TestDNSGuard(t *testing.T) {
	for said, cleaned := range map[string]bool{"": true, "done\n": false} {
		r := newRunning(t, nil)
		r.stdin = strings.NewReader(said)
		if status := r.pilot("dns-settings", "--guard"); status != 0 || (len(r.sys.cleaned) > 0) != cleaned {
			t.Errorf("after %q: exit status %d, cleaned up %v: %s", said, status, r.sys.cleaned, r.err.String())
		}
	}
}

func TestDaemonLogsWhyItEnded(t *testing.T) {
	r := newRunning(t, nil)
	withNode(r, func(context.Context) error {
		return &localapi.Error{Code: localapi.CodeNoTUN, Message: "no /dev/net/tun", Hint: "load the module tun"}
	})
	if status := r.pilot("daemon"); status != localapi.ExitFailure {
		t.Errorf("exit status %d", status)
	}
	var entry map[string]any
	if err := json.Unmarshal(r.err.Bytes(), &entry); err != nil {
		t.Fatalf("%v in %s", err, r.err.String())
	}
	for key, want := range map[string]string{"msg": endedMessage, "level": "ERROR", "code": localapi.CodeNoTUN, "err": "no /dev/net/tun", "hint": "load the module tun"} {
		if entry[key] != want {
			t.Errorf("%s is %v, expected %q", key, entry[key], want)
		}
	}
	r.pilot("daemon", "--log-format", "text")
	if !strings.Contains(r.err.String(), "code="+localapi.CodeNoTUN) {
		t.Errorf("as text: %s", r.err.String())
	}
}

func TestForegroundEndsWithTheNode(t *testing.T) {
	r := newRunning(t, nil)
	withNode(r, func(context.Context) error { return errors.New("the socket is gone") })
	if status := r.pilot("up", "--foreground"); status != localapi.ExitFailure || !strings.Contains(r.err.String(), "pilot: the socket is gone\n") {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
}

func TestForegroundEndsBySignal(t *testing.T) {
	r := newRunning(t, nil)
	withNode(r, nil)
	ctx, cancel := context.WithCancel(context.Background())
	r.stdout = writerFunc(func(b []byte) (int, error) { cancel(); return r.out.Write(b) })
	if status := r.run(ctx, []string{"pilot", "up", "--foreground"}); status != localapi.ExitOK {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
	if !strings.HasPrefix(r.out.String(), "network   pilot  (new;") {
		t.Errorf("it printed %q", r.out.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestPingUntilInterrupted(t *testing.T) {
	r := newRunning(t, &fakeDaemon{state: localapi.StateUp})
	ctx, cancel := context.WithCancel(context.Background())
	r.stdout = writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), "seq=10 ") {
			cancel()
		}
		return r.out.Write(b)
	})
	if status := r.run(ctx, []string{"pilot", "ping", "warehouse", "--count", "0", "--interval", "1ms"}); status != localapi.ExitOK {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
	if !strings.HasSuffix(r.out.String(), "warehouse: 10 sent, 10 received, 0% lost, rtt min/avg/max 1.00 ms / 5.50 ms / 10.0 ms\n") {
		t.Errorf("it printed\n%s", r.out.String())
	}
}
