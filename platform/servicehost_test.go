// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// manager is a service manager that writes down what it hears, with the time.
type manager struct {
	begin    time.Time
	heard    []string
	requests chan serviceWish
}

func newManager() *manager { return &manager{begin: time.Now(), requests: make(chan serviceWish)} }

func (m *manager) host(daemon func(context.Context, func()) error) error {
	return hostService(context.Background(), daemon, m.requests, func(w serviceWish) serviceWish { return w },
		func(s serviceState, progress uint32) {
			m.heard = append(m.heard, fmt.Sprintf("%s %s/%d", time.Since(m.begin), s, progress))
		})
}

func (m *manager) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(m.heard, want) {
		t.Errorf("the manager heard\n%s\nexpected\n%s", strings.Join(m.heard, "\n"), strings.Join(want, "\n"))
	}
}

func TestServiceTellsItsManagerHowFarItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager()
		go func() {
			for _, w := range []serviceWish{wishStatus, wishNothing, wishStop, wishStop, wishStatus} {
				time.Sleep(5100 * time.Millisecond)
				m.requests <- w
			}
		}()
		err := m.host(func(ctx context.Context, ready func()) error {
			time.Sleep(3 * time.Second)
			ready()
			ready() // twice is once
			<-ctx.Done()
			time.Sleep(12 * time.Second)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		m.expect(t, "0s starting/1", "2s starting/2", "3s running/0", "5.1s running/0",
			"15.3s stopping/1", "16s stopping/2", "18s stopping/3", "20s stopping/4", "20.4s stopping/4", "22s stopping/5", "24s stopping/6",
			"25.5s stopping/6", "26s stopping/7")
	})
}

func TestServiceReturnsTheDaemonsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, failed := newManager(), errors.New("failed")
		if err := m.host(func(context.Context, func()) error { return failed }); !errors.Is(err, failed) {
			t.Errorf("the error is %v", err)
		}
		m.expect(t, "0s starting/1")
	})
}

// A stop that comes while the daemon starts must not be answered by "running".
func TestServiceStopsWhileItStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager()
		go func() { m.requests <- wishStop }()
		err := m.host(func(ctx context.Context, ready func()) error {
			<-ctx.Done()
			ready()
			time.Sleep(time.Second)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		m.expect(t, "0s starting/1", "0s stopping/1")
	})
}

func TestAwaitService(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name  string
		want  serviceState
		looks []serviceState
		err   error
		says  string
	}{
		{"starts", serviceRunning, []serviceState{serviceStarting, serviceStarting, serviceRunning}, nil, ""},
		{"ends instead", serviceRunning, []serviceState{serviceStarting, serviceStopped}, nil, "it has ended with code 7"},
		{"stops", serviceStopped, []serviceState{serviceRunning, serviceStopping, serviceStopped}, nil, ""},
		{"hangs", serviceStopped, []serviceState{serviceStopping}, nil, "it is still stopping: context deadline exceeded"},
		{"can't be seen", serviceRunning, []serviceState{serviceStarting}, broken, "broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				n := 0
				err := awaitService(ctx, c.want, func() (serviceState, uint32, error) {
					s := c.looks[min(n, len(c.looks)-1)]
					n++
					return s, 7, c.err
				})
				if got := fmt.Sprint(err); got != c.says && (err != nil || c.says != "") {
					t.Errorf("%q, expected %q", got, c.says)
				}
			})
		})
	}
}

func TestSystemLogHasWarningsAsText(t *testing.T) {
	var told []string
	log := slog.New(newSystemLog(func(l slog.Level, text string) error {
		told = append(told, l.String()+" "+text)
		return nil
	}))
	log.Info("not for everybody")
	log.With("peer", "planner").WithGroup("path").Warn("a path died", "level", 3)
	log.Error("the daemon has ended", "err", "line one\nline two")
	want := []string{`WARN msg="a path died" peer=planner path.level=3`, `ERROR msg="the daemon has ended" err="line one\nline two"`}
	if !slices.Equal(told, want) {
		t.Errorf("told\n%s\nexpected\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
}

func TestLongLogIsPutAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pilot.log")
	if err := putAside(path); err != nil {
		t.Errorf("one that isn't there: %v", err)
	}
	for _, c := range []struct {
		size  int64
		stays bool
	}{{maxServiceLog, true}, {maxServiceLog + 1, false}, {maxServiceLog + 2, false}} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, c.size); err != nil {
			t.Fatal(err)
		}
		if err := putAside(path); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); (err == nil) != c.stays {
			t.Errorf("with %d bytes it stays: %v", c.size, err == nil)
		}
	}
	if info, err := os.Stat(path + ".1"); err != nil || info.Size() != maxServiceLog+2 {
		t.Errorf("the later one is not there: %v", err)
	}
}
