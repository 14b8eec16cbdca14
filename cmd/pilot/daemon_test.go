// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
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
