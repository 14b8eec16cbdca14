// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pilot-protocol/pilot/node"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/sandbox"
	"github.com/pilot-protocol/pilot/platform"
)

// host is the system that pilot runs on.
type host struct{}

func (host) DefaultStateDir() string           { return platform.DefaultStateDir() }
func (host) UserStateDir() string              { return platform.UserStateDir() }
func (host) SocketPath(stateDir string) string { return platform.SocketPath(stateDir) }
func (host) Service() service                  { return platform.SystemService() }
func (host) Cleanup(stateDir string) error     { return coded(node.Cleanup(stateDir)) }

func (host) Keys(stateDir, to string) (localapi.KeysStatus, error) {
	s, err := node.KeysOf(stateDir, to)
	return s, coded(err)
}

func (host) ServeDNS(ctx context.Context, backupDir string, log *slog.Logger) error {
	conn, err := net.FileConn(os.Stdin)
	if err != nil {
		return usage("standard input is no connection: %v", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) }) // which can't fail on a socket
	defer stop()
	err = platform.ServeDNS(conn, platform.Options{Log: log, StateDir: backupDir})
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return coded(err)
}

func (host) Dial(ctx context.Context, socket string) (net.Conn, error) {
	conn, err := platform.DialLocal(ctx, socket)
	return conn, coded(err)
}

func (host) Start(args []string, logFile string) (int, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	if err := platform.SecureDir(filepath.Dir(logFile), 0o700); err != nil {
		return 0, coded(err)
	}
	pid, err := platform.StartBackground(exe, args, logFile)
	return pid, coded(err)
}

func (host) NewNode(stateDir string, log *slog.Logger) (runner, error) {
	o := node.Options{StateDir: stateDir, Version: buildVersion().Version, Log: log}
	if exe, err := os.Executable(); err == nil && os.Geteuid() == 0 {
		o.DNSGuard = []string{exe, "dns-settings", "--guard", "--state", stateDir}
	}
	n, err := node.New(o)
	if err != nil {
		return nil, coded(err)
	}
	return n, nil
}

func (host) SandboxStage(program []string) error       { return sandbox.Stage(program) }
func (host) SandboxInit(program []string) (int, error) { return sandbox.Init(program) }

func (host) RunSandbox(ctx context.Context, o sandbox.Options) (int, localapi.Egress, error) {
	if o.Ephemeral {
		defer func() { _ = os.RemoveAll(o.StateDir) }()
	}
	if err := platform.SecureDir(o.StateDir, 0o700); err != nil {
		return 0, localapi.Egress{}, coded(err)
	}
	if !o.Ephemeral {
		log, closer, err := runLog(o.StateDir)
		if err != nil {
			return 0, localapi.Egress{}, err
		}
		defer closer.Close()
		o.Log = log
	}
	s, err := sandbox.New(o)
	if err != nil {
		return 0, localapi.Egress{}, coded(err)
	}
	received, stop := forwarded()
	defer stop()
	status, err := s.Run(ctx, received)
	return status, s.Status(), coded(err)
}

func (host) Alive(pid int) bool {
	if pid <= 0 {
		return false
	}
	// One that has ended is there until its parent asks for it; in a container the parent may never do that.
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		if i := strings.LastIndexByte(string(stat), ')'); i >= 0 && strings.HasPrefix(string(stat[i:]), ") Z") {
			return false
		}
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	defer func() { _ = process.Release() }() // it only forgets the handle
	// Windows knows no signal to ask with: there, that the process was found is the answer.
	err = process.Signal(syscall.Signal(0))
	return err == nil || !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH)
}

// coded gives the platform's errors their codes.
func coded(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, platform.ErrInsecurePath):
		return &localapi.Error{Code: localapi.CodeInsecurePath, Message: err.Error(),
			Hint: "somebody else may have put it there: look at who owns that path and the folders above it"}
	case errors.Is(err, platform.ErrLocked):
		return &localapi.Error{Code: localapi.CodeStateLocked, Message: err.Error(),
			Hint: "another process uses that folder: end it (pilot down), or give another one by --state"}
	case errors.Is(err, platform.ErrSealed):
		return node.Explain(err)
	case errors.Is(err, platform.ErrPathTooLong):
		return &localapi.Error{Code: localapi.CodeUsage, Message: err.Error(),
			Hint: "the socket is in the state folder: give a shorter one by --state"}
	}
	return err
}
