// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

// TestMain makes this binary a pilot too, for the scripts: all of it is real but for the node and the host.
func TestMain(m *testing.M) {
	testscript.Main(leakTest{m}, map[string]func(){"pilot": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		p := &program{sys: scriptHost{}, look: scriptLook, version: os.Getenv("FAKE_VERSION"), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
		os.Exit(p.run(ctx, os.Args))
	}})
}

// leakTest fails a run of tests that leaves goroutines behind.
type leakTest struct{ m *testing.M }

func (l leakTest) Run() int {
	status := l.m.Run()
	if err := goleak.Find(); status == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// scriptHost is the host as scripts find it: daemons are processes of this binary with a fake node.
type scriptHost struct{ host }

func (scriptHost) DefaultStateDir() string { return os.Getenv("PILOT_STATE") + "/default" }
func (scriptHost) UserStateDir() string    { return os.Getenv("FAKE_USER_STATE") }
func (scriptHost) Service() service        { return &fakeService{} }

func (h scriptHost) SocketPath(dir string) string { return filepath.Join(dir, "pilot.sock") }

func (scriptHost) Start(args []string, logFile string) (int, error) {
	if err := os.MkdirAll(filepath.Dir(logFile), 0o700); err != nil {
		return 0, err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := exec.Command("pilot", args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// For the scripts: who the daemon is, and what others can see of it.
	dir, pid := filepath.Dir(logFile), cmd.Process.Pid
	seen := strings.Join(append(cmd.Args, cmd.Environ()...), "\n")
	if err := os.WriteFile(filepath.Join(dir, "seen"), []byte(seen), 0o600); err != nil {
		return 0, err
	}
	return pid, os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(pid)), 0o600)
}

// scriptLook is a host on which all is well, but for the trouble that the environment names.
func scriptLook(_ context.Context, q inspect.Question) (h inspect.Host) {
	h.OS = "linux"
	h.TUN.Value = inspect.TUN{Path: "/dev/net/tun", Exists: true}
	h.State.Value = inspect.Folder{Path: "/state", Exists: true, Files: true, Free: 1 << 40}
	h.Clock.Value.Synchronized = true
	h.Routes.Value.Chosen = q.Interface
	h.Names.Value.System = []netip.Addr{q.Address}
	h.Resolver.Value = inspect.Resolver{Choice: platform.Decision{Mode: platform.ModeFile, Reason: "resolv.conf is a plain file"}, File: platform.ResolverFile{Search: []string{"pilot.internal"}}}
	h.Firewall.Err = errors.New("the firewall's rules are root's to read")
	switch os.Getenv("FAKE_TROUBLE") {
	case "tun":
		h.TUN.Value = inspect.TUN{Path: "/dev/net/tun"}
	case "vpn":
		h.Routes.Value = inspect.Routes{Chosen: "tailscale0", Rules: []string{"5270: table 52"}}
	}
	return h
}

func (h scriptHost) NewNode(dir string, _ *slog.Logger) (runner, error) {
	return newFakeNode(h.SocketPath(dir), os.Getenv("FAKE_TROUBLE"))
}

func (h scriptHost) Cleanup(dir string) error {
	err := os.Remove(h.SocketPath(dir))
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

func TestScripts(t *testing.T) {
	root, err := os.MkdirTemp("/tmp", "pilot") // the path of a Unix socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         root,
		RequireExplicitExec: true,
		Condition: func(cond string) (bool, error) {
			if cond == "uid0" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(env *testscript.Env) error {
			invite, err := testInvite()
			if err != nil {
				return err
			}
			env.Setenv("PILOT_STATE", filepath.Join(env.WorkDir, "s"))
			env.Setenv("INVITE", invite)
			if err := os.WriteFile(filepath.Join(env.WorkDir, "invite.txt"), []byte("pilot up "+invite+"\n"), 0o600); err != nil {
				return err
			}
			return os.Mkdir(filepath.Join(env.WorkDir, "s"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fake": fakeCommand, "status": statusCommand, "waitfor": waitCommand(true), "waitgone": waitCommand(false), "waitup": waitUp,
		},
	})
}

// fakeCommand runs a fake daemon on the script's socket, in the state that its argument names, until the script ends.
func fakeCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: fake up|down|starting [VERSION]")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	socket := filepath.Join(ts.Getenv("PILOT_STATE"), "pilot.sock")
	d := &fakeDaemon{state: args[0]}
	if len(args) > 1 {
		d.version = args[1]
	}
	go func() { ended <- d.serve(ctx, socket) }()
	ts.Defer(func() {
		cancel()
		if err := <-ended; err != nil {
			ts.Logf("the fake daemon: %v", err)
		}
	})
	waitStatus(ts, func(localapi.Status) bool { return true })
}

// waitUp waits until the daemon is up.
func waitUp(ts *testscript.TestScript, _ bool, _ []string) {
	waitStatus(ts, func(s localapi.Status) bool { return s.State == localapi.StateUp })
}

// waitStatus asks the script's daemon until it is as wanted; the limit of the test's time is that of the wait.
func waitStatus(ts *testscript.TestScript, wanted func(localapi.Status) bool) {
	client := (&program{sys: scriptHost{}}).clientAt(filepath.Join(ts.Getenv("PILOT_STATE"), "pilot.sock"))
	for {
		status, err := client.Status(context.Background())
		if code := codeOf(err); err != nil && code != localapi.CodeNotRunning {
			ts.Fatalf("the daemon: %v", err)
		}
		if err == nil && wanted(status) {
			return
		}
	}
}

// statusCommand runs a program that must end with the exit status in front of it: "status 3 pilot status".
func statusCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N program args…")
	}
	err := ts.Exec(args[1], args[2:]...)
	var exited *exec.ExitError
	if !errors.As(err, &exited) {
		ts.Fatalf("%v ended with %v, expected exit status %s", args[1:], err, args[0])
	}
	if got := strconv.Itoa(exited.ExitCode()); got != args[0] {
		ts.Fatalf("%v ended with exit status %s, expected %s", args[1:], got, args[0])
	}
}

// waitCommand waits until a file is there, or gone; the limit of the test's time is that of the wait.
func waitCommand(there bool) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		for path := ts.MkAbs(args[0]); exists(path) != there; {
			runtime.Gosched()
		}
	}
}
