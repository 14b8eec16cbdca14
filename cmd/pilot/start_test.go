// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func TestUpStartsTheSystemService(t *testing.T) {
	r := newRunning(t, nil)
	r.daemon = &fakeDaemon{}
	r.sys.service = fakeService{installed: true, onStart: func() error { r.serve(t); return nil }}
	if status := r.pilot("up"); status != localapi.ExitOK {
		t.Fatalf("exit status %d: %s", status, r.err.String())
	}
	if !slices.Equal(r.sys.service.calls, []string{"start"}) || !strings.Contains(r.err.String(), "starting the system service") {
		t.Errorf("calls %v, said %q", r.sys.service.calls, r.err.String())
	}
}

func TestUpStartsNoServiceForAnotherFolder(t *testing.T) {
	r := newRunning(t, nil)
	r.sys.service = fakeService{installed: true}
	var started []string
	r.sys.start = func(args []string, _ string) (int, error) { started = args; return 0, errors.New("enough") }
	dir := filepath.Join(t.TempDir(), "other")
	if status := r.pilot("up", "--state", dir); status != localapi.ExitFailure {
		t.Errorf("exit status %d", status)
	}
	if !slices.Equal(started, []string{"daemon", "--state", dir}) || len(r.sys.service.calls) > 0 {
		t.Errorf("started %v, service %v", started, r.sys.service.calls)
	}
}

func TestUpFailsWithTheService(t *testing.T) {
	r := newRunning(t, nil)
	r.sys.service = fakeService{installed: true, onStart: func() error { return errors.New("unit is masked") }}
	if status := r.pilot("up"); status != localapi.ExitFailure || !strings.Contains(r.err.String(), "unit is masked") {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
}

func TestUpDoesNotWaitForever(t *testing.T) {
	r := newRunning(t, nil)
	r.sys.alive = true
	r.sys.start = func([]string, string) (int, error) { return 1, nil }
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		status := r.pilot("up")
		if took := time.Since(began); status != localapi.ExitUnreachable || took != startLimit {
			t.Errorf("exit status %d after %v: %s", status, took, r.err.String())
		}
		if !strings.Contains(r.err.String(), logName) {
			t.Errorf("the log isn't named: %s", r.err.String())
		}
	})
}

func TestUpIsInterrupted(t *testing.T) {
	r := newRunning(t, nil)
	r.sys.alive = true
	ctx, cancel := context.WithCancel(context.Background())
	r.sys.start = func([]string, string) (int, error) { cancel(); return 1, nil }
	if status := r.run(ctx, []string{"pilot", "up"}); status != exitInterrupted {
		t.Errorf("exit status %d", status)
	}
}

func TestLastWordsKeepsToTheLastRun(t *testing.T) {
	log := filepath.Join(t.TempDir(), logName)
	old := `{"msg":"` + endedMessage + `","code":"STATE_DAMAGED","err":"long ago"}` + "\n"
	if err := os.WriteFile(log, []byte(old+`{"level":"INFO","msg":"hello"}`+"\nplain words\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lastWords(log, int64(len(old)), false); err != nil {
		t.Errorf("a daemon that lives has ended by %v", err)
	}
	if err := lastWords(log, int64(len(old)), true); codeOf(err) != localapi.CodeInternal || !strings.HasSuffix(err.Error(), "plain words") {
		t.Errorf("a dead daemon has ended by %v", err)
	}
	if err := lastWords(log, 0, false); codeOf(err) != localapi.CodeStateDamaged {
		t.Errorf("its own words are %v", err)
	}
	if err := lastWords(log+"x", 0, true); codeOf(err) != localapi.CodeInternal {
		t.Errorf("without a log: %v", err)
	}
}

func TestDownStopsTheService(t *testing.T) {
	r := newRunning(t, nil)
	r.sys.service = fakeService{installed: true, running: true}
	if status := r.pilot("down"); status != localapi.ExitOK || r.out.String() != "down\n" {
		t.Errorf("exit status %d: %s%s", status, r.out.String(), r.err.String())
	}
	if !slices.Equal(r.sys.service.calls, []string{"stop"}) {
		t.Errorf("calls %v", r.sys.service.calls)
	}
	r.sys.service = fakeService{installed: true, running: true}
	if status := r.pilot("down", "--state", t.TempDir()); status != localapi.ExitOK || len(r.sys.service.calls) > 0 {
		t.Errorf("exit status %d, calls %v", status, r.sys.service.calls)
	}
}

// Who may ask the daemon to end, and may not stop the unit, is told of no failure: a daemon that ended in good order is
// not started again.
func TestDownByAMemberOfTheGroup(t *testing.T) {
	r := newRunning(t, nil)
	r.sys.service = fakeService{installed: true, running: true, onStop: func() error { return fs.ErrPermission }}
	if status := r.pilot("down"); status != localapi.ExitForbidden {
		t.Errorf("with no daemon that answers: exit status %d: %s", status, r.err.String())
	}
	r = newRunning(t, &fakeDaemon{})
	r.sys.service = fakeService{installed: true, running: true, onStop: func() error { return fs.ErrPermission }}
	if status := r.pilot("down"); status != localapi.ExitOK || r.out.String() != "down\n" {
		t.Errorf("exit status %d: %s%s", status, r.out.String(), r.err.String())
	}
}

func TestDownCleansUpAfterACrash(t *testing.T) {
	r := newRunning(t, nil)
	if status := r.pilot("down"); status != localapi.ExitOK || r.out.String() != "not running\n" {
		t.Errorf("exit status %d: %s%s", status, r.out.String(), r.err.String())
	}
	if !slices.Equal(r.sys.cleaned, []string{r.sys.dir}) {
		t.Errorf("cleaned %v", r.sys.cleaned)
	}
	r.sys.clean = fs.ErrPermission
	if status := r.pilot("down"); status != localapi.ExitForbidden {
		t.Errorf("exit status %d: %s", status, r.err.String())
	}
}

// A process that was killed holds its lock for as long as the kernel takes to clear it away.
func TestDownWaitsForAKilledDaemon(t *testing.T) {
	r := newRunning(t, nil)
	locked := &localapi.Error{Code: localapi.CodeStateLocked, Message: "locked"}
	synctest.Test(t, func(t *testing.T) {
		r.sys.locked, r.sys.unlockedAt = locked, time.Now().Add(lockLimit/2)
		if err := r.cleanUp(t.Context(), "folder"); err != nil || len(r.sys.cleaned) < 2 {
			t.Errorf("%v after %d tries", err, len(r.sys.cleaned))
		}
		began := time.Now()
		r.sys.unlockedAt = began.Add(time.Hour)
		err := r.cleanUp(t.Context(), "folder")
		if took := time.Since(began); !errors.Is(err, locked) || took != lockLimit {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestDownSaysWhenTheDaemonHangs(t *testing.T) {
	r := newRunning(t, nil)
	r.sys.alive = true
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := r.awaitEnd(t.Context(), "nothing", 4711)
		if took := time.Since(began); codeOf(err) != localapi.CodeTimeout || took != downLimit {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestDialErrors(t *testing.T) {
	r := newRunning(t, nil)
	for want, err := range map[int]error{
		localapi.ExitForbidden:  &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", fs.ErrPermission)},
		localapi.ExitNotRunning: &net.OpError{Op: "dial", Err: errors.New("connection refused")},
		localapi.ExitState:      &localapi.Error{Code: localapi.CodeInsecurePath, Message: "a link"},
	} {
		r.sys.answer(func(context.Context, string) (net.Conn, error) { return nil, err })
		if status := r.pilot("agents"); status != want {
			t.Errorf("%v: exit status %d, expected %d", err, status, want)
		}
	}
}

func TestAlive(t *testing.T) {
	if !(host{}).Alive(os.Getpid()) {
		t.Error("this process is said to be dead")
	}
	if (host{}).Alive(0) || (host{}).Alive(-1) || (host{}).Alive(1<<30) {
		t.Error("processes that can't be are said to live")
	}
}
