// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

const (
	serviceName    = "pilot" // as the installer names it
	eventSource    = "pilot" // likewise
	eventID        = 1       // of all that we say: EventCreate.exe, whose texts the source has, knows 1 to 1000
	serviceTimeout = 90 * time.Second
)

// SystemService is the service that the installer makes. It is about the whole host, and has nothing to do with a daemon on
// another state folder.
func SystemService() Service { return windowsService{} }

type windowsService struct{}

// with opens the service with no more rights than are needed, so that whoever may look at it needs no others.
func (windowsService) with(rights uint32, f func(*mgr.Service) error) error {
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	defer func() { _ = windows.CloseServiceHandle(manager) }() // nothing was written through it
	name, err := windows.UTF16PtrFromString(serviceName)
	if err != nil {
		return err
	}
	handle, err := windows.OpenService(manager, name, rights)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		err = fmt.Errorf("%w (%w)", ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("service %s: %w", serviceName, err)
	}
	s := &mgr.Service{Name: serviceName, Handle: handle}
	defer s.Close()
	return f(s)
}

func (w windowsService) Installed() bool {
	return w.with(windows.SERVICE_QUERY_STATUS, func(*mgr.Service) error { return nil }) == nil
}

func (w windowsService) Running() bool {
	state := serviceStopped
	err := w.with(windows.SERVICE_QUERY_STATUS, func(s *mgr.Service) (err error) {
		state, _, err = look(s)
		return err
	})
	return err == nil && (state == serviceRunning || state == serviceStarting)
}

func (w windowsService) Start() error {
	return w.with(windows.SERVICE_START|windows.SERVICE_QUERY_STATUS, func(s *mgr.Service) error {
		if err := s.Start(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
			return fmt.Errorf("start service %s: %w", serviceName, err)
		}
		return w.await(s, serviceRunning)
	})
}

func (w windowsService) Stop() error {
	return w.with(windows.SERVICE_STOP|windows.SERVICE_QUERY_STATUS, func(s *mgr.Service) error {
		_, err := s.Control(svc.Stop)
		switch {
		case errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE):
			return nil
		case err != nil && !errors.Is(err, windows.ERROR_SERVICE_CANNOT_ACCEPT_CTRL): // it is on its way already
			return fmt.Errorf("stop service %s: %w", serviceName, err)
		}
		return w.await(s, serviceStopped)
	})
}

func (windowsService) await(s *mgr.Service, want serviceState) error {
	ctx, cancel := context.WithTimeout(context.Background(), serviceTimeout)
	defer cancel()
	err := awaitService(ctx, want, func() (serviceState, uint32, error) { return look(s) })
	if err != nil {
		return fmt.Errorf("service %s: %w", serviceName, err)
	}
	return nil
}

// look asks for a service's state, and the code that it ended with.
func look(s *mgr.Service) (serviceState, uint32, error) {
	status, err := s.Query()
	if err != nil {
		return serviceStopped, 0, fmt.Errorf("service %s: %w", s.Name, err)
	}
	code := status.Win32ExitCode
	if status.ServiceSpecificExitCode != 0 {
		code = status.ServiceSpecificExitCode
	}
	switch status.State {
	case svc.StartPending, svc.ContinuePending:
		return serviceStarting, code, nil
	case svc.Running, svc.Paused, svc.PausePending:
		return serviceRunning, code, nil
	case svc.StopPending:
		return serviceStopping, code, nil
	default:
		return serviceStopped, code, nil
	}
}

func (windowsService) Log() string {
	return filepath.Join(DefaultStateDir(), serviceLogName) + ", and the event log"
}

// Host implements Service. That the manager started the process is known from its command line, as the installer has it:
// to guess it from the parent process, as svc.IsWindowsService does, takes a session 0 for granted.
func (windowsService) Host() ServiceHost { return windowsHost{} }

const serviceLogName = "pilot.log"

type windowsHost struct{}

func (windowsHost) OpenLog() (io.WriteCloser, slog.Handler, error) {
	dir := DefaultStateDir()
	if err := SecureDir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, serviceLogName)
	if err := putAside(path); err != nil {
		return nil, nil, err
	}
	file, err := openLog(path)
	if err != nil {
		return nil, nil, fmt.Errorf("log: %w", err)
	}
	events, err := eventlog.Open(eventSource)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("event log: %w", err), file.Close())
	}
	tell := func(level slog.Level, text string) error {
		if level >= slog.LevelError {
			return events.Error(eventID, text)
		}
		return events.Warning(eventID, text)
	}
	return serviceLog{file, events}, newSystemLog(tell), nil
}

// serviceLog is the file, with which the event log is closed.
type serviceLog struct {
	io.WriteCloser
	events *eventlog.Log
}

func (l serviceLog) Close() error { return errors.Join(l.WriteCloser.Close(), l.events.Close()) }

// Run is StartServiceCtrlDispatcher's world; what happens in it is hostService's.
func (windowsHost) Run(ctx context.Context, daemon func(context.Context, func()) error) error {
	e := &executor{ctx: ctx, daemon: daemon}
	if err := svc.Run(serviceName, e); err != nil {
		return fmt.Errorf("service %s: %w", serviceName, err)
	}
	return e.err
}

type executor struct {
	ctx    context.Context
	daemon func(context.Context, func()) error
	err    error // written before svc.Run returns
}

// failedCode is what the manager shows of a daemon that ended by an error; its log has more.
const failedCode = 1

// Execute implements svc.Handler.
func (e *executor) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, code uint32) {
	e.err = hostService(e.ctx, e.daemon, requests, wishOf, func(s serviceState, progress uint32) { status <- statusOf(s, progress) })
	if e.err != nil {
		return true, failedCode
	}
	return false, 0
}

func wishOf(r svc.ChangeRequest) serviceWish {
	switch r.Cmd {
	case svc.Interrogate:
		return wishStatus
	case svc.Stop, svc.PreShutdown, svc.Shutdown:
		return wishStop
	default:
		return wishNothing
	}
}

func statusOf(s serviceState, progress uint32) svc.Status {
	// A stop is accepted also while it starts. Of a shutdown it is told early, with minutes instead of seconds to put the
	// host's DNS settings back.
	const accepts = svc.AcceptStop | svc.AcceptPreShutdown
	hint := uint32(progressHint / time.Millisecond)
	switch s {
	case serviceStarting:
		return svc.Status{State: svc.StartPending, Accepts: accepts, CheckPoint: progress, WaitHint: hint}
	case serviceRunning:
		return svc.Status{State: svc.Running, Accepts: accepts}
	case serviceStopping:
		return svc.Status{State: svc.StopPending, CheckPoint: progress, WaitHint: hint}
	default:
		return svc.Status{State: svc.Stopped}
	}
}

// restartDelays are what the manager waits for before it starts a service again that has failed for the first, second and
// each further time; after restartForget without a failure it counts anew.
func restartDelays() []time.Duration {
	return []time.Duration{2 * time.Second, 5 * time.Second, 30 * time.Second}
}

const restartForget = time.Hour

// Recover implements ServiceHost. The service says this itself, at each start, so that it holds however it was installed.
func (windowsHost) Recover() error {
	const rights = windows.SERVICE_CHANGE_CONFIG | windows.SERVICE_START // the second is needed to ask for restarts
	return windowsService{}.with(rights, func(s *mgr.Service) error {
		var actions []mgr.RecoveryAction
		for _, d := range restartDelays() {
			actions = append(actions, mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: d})
		}
		if err := s.SetRecoveryActions(actions, uint32(restartForget/time.Second)); err != nil {
			return fmt.Errorf("recovery actions: %w", err)
		}
		// Also when it ends by an error of its own, and not only by a crash.
		if err := s.SetRecoveryActionsOnNonCrashFailures(true); err != nil {
			return fmt.Errorf("recovery actions: %w", err)
		}
		return nil
	})
}
