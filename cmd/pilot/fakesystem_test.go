// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/sandbox"
	"github.com/pilot-protocol/pilot/platform"
)

// fakeSystem is a host in memory.
type fakeSystem struct {
	mu      sync.Mutex
	dir     string // the default state folder
	own     string // the caller's own
	dial    func(context.Context, string) (net.Conn, error)
	start   func(args []string, logFile string) (int, error)
	service fakeService
	alive   bool
	node    func(dir string) (runner, error)
	cleaned []string
	clean   error
	run     func(sandbox.Options) (int, localapi.Egress, error)

	locked     error // what Cleanup returns until unlockedAt
	unlockedAt time.Time
}

func (s *fakeSystem) DefaultStateDir() string                 { return s.dir }
func (s *fakeSystem) UserStateDir() string                    { return s.own }
func (s *fakeSystem) SocketPath(dir string) string            { return filepath.Join(dir, "pilot.sock") }
func (s *fakeSystem) Service() service                        { return &s.service }
func (s *fakeSystem) Alive(int) bool                          { return s.alive }
func (s *fakeSystem) Start(a []string, l string) (int, error) { return s.start(a, l) }

func (s *fakeSystem) Cleanup(dir string) error {
	s.cleaned = append(s.cleaned, dir)
	if s.locked != nil && time.Now().Before(s.unlockedAt) {
		return s.locked
	}
	return s.clean
}

func (s *fakeSystem) NewNode(dir string, _ *slog.Logger) (runner, error) { return s.node(dir) }

func (s *fakeSystem) RunSandbox(_ context.Context, o sandbox.Options) (int, localapi.Egress, error) {
	return s.run(o)
}

func (s *fakeSystem) SandboxStage(program []string) error {
	return fmt.Errorf("staged %q", program)
}

func (s *fakeSystem) SandboxInit([]string) (int, error) { return 42, nil }

func (s *fakeSystem) Keys(string, string) (localapi.KeysStatus, error) {
	return localapi.KeysStatus{}, errors.New("no keys")
}

func (s *fakeSystem) ServeDNS(_ context.Context, backupDir string, _ *slog.Logger) error {
	return errors.New("served with " + backupDir)
}

func (s *fakeSystem) Dial(ctx context.Context, socket string) (net.Conn, error) {
	s.mu.Lock()
	dial := s.dial
	s.mu.Unlock()
	if dial == nil {
		return nil, fmt.Errorf("dial: %w", os.ErrNotExist)
	}
	return dial(ctx, socket)
}

func (s *fakeSystem) answer(dial func(context.Context, string) (net.Conn, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dial = dial
}

// fakeService is a service manager's view of the daemon.
type fakeService struct {
	installed, running bool
	calls              []string
	onStart, onStop    func() error
	host               *fakeHost
}

// fakeHost is the inside of a service, for a manager that wants to be talked to.
type fakeHost struct {
	file    bytes.Buffer
	events  slog.Handler
	closed  bool
	stop    context.CancelFunc // what the manager's wish to stop does
	heard   []string           // by the manager
	recover error
}

func (h *fakeHost) OpenLog() (io.WriteCloser, slog.Handler, error) { return h, h.events, nil }
func (h *fakeHost) Write(b []byte) (int, error)                    { return h.file.Write(b) }
func (h *fakeHost) Close() error                                   { h.closed = true; return nil }
func (h *fakeHost) Recover() error                                 { return h.recover }

func (h *fakeHost) Run(ctx context.Context, daemon func(context.Context, func()) error) error {
	ctx, h.stop = context.WithCancel(ctx)
	defer h.stop()
	err := daemon(ctx, func() {
		h.heard = append(h.heard, "ready")
		h.stop()
	})
	h.heard = append(h.heard, fmt.Sprintf("ended: %v", err))
	return err
}

func (s *fakeService) Installed() bool { return s.installed }
func (s *fakeService) Running() bool   { return s.running }
func (s *fakeService) Log() string     { return "the system's log" }

func (s *fakeService) Host() platform.ServiceHost {
	if s.host == nil {
		return nil
	}
	return s.host
}

func (s *fakeService) Stop() error {
	s.calls = append(s.calls, "stop")
	s.running = false
	if s.onStop != nil {
		return s.onStop()
	}
	return nil
}

func (s *fakeService) Start() error {
	s.calls = append(s.calls, "start")
	return s.onStart()
}
