// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// What a service manager such as that of Windows wants of a service, decided without it.

// serviceState is how far a service is.
type serviceState int

const (
	serviceStopped serviceState = iota
	serviceStarting
	serviceRunning
	serviceStopping
)

func (s serviceState) String() string {
	return [...]string{"stopped", "starting", "running", "stopping"}[s]
}

// serviceWish is what a request of the manager's comes down to.
type serviceWish int

const (
	wishNothing serviceWish = iota
	wishStatus              // it wants to know the state
	wishStop
)

const (
	// progressInterval is how often the manager hears that starting or stopping goes on. It is told to wait for twice that,
	// after which it would take the service for hung.
	progressInterval = 2 * time.Second
	progressHint     = 2 * progressInterval
	// servicePoll is how often somebody who waits for a service looks at it.
	servicePoll = 100 * time.Millisecond
)

// hostService runs a daemon under a manager: it reports each state and, while that is one on the way, that there is
// progress, with a number that grows; and it ends the daemon when the manager wants that. It returns the daemon's error,
// and reports no stop: the manager is told by who called, together with the error.
func hostService[R any](ctx context.Context, daemon func(context.Context, func()) error, requests <-chan R, wish func(R) serviceWish, report func(s serviceState, progress uint32)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- daemon(ctx, sync.OnceFunc(func() { close(ready) })) }()
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()

	state, progress := serviceStarting, uint32(1)
	report(state, progress)
	for {
		select {
		case err := <-ended:
			return err
		case <-ready:
			ready = nil
			if state == serviceStarting {
				state, progress = serviceRunning, 0
				report(state, progress)
			}
		case r := <-requests:
			switch wish(r) {
			case wishStatus:
				report(state, progress)
			case wishStop:
				if state != serviceStopping {
					state, progress = serviceStopping, 1
					cancel()
				}
				report(state, progress)
			case wishNothing:
			}
		case <-tick.C:
			if state != serviceRunning {
				progress++
				report(state, progress)
			}
		}
	}
}

// awaitService looks at a service until it is in a state. Where it stopped instead of starting, the error has its exit code.
func awaitService(ctx context.Context, want serviceState, look func() (s serviceState, code uint32, err error)) error {
	tick := time.NewTicker(servicePoll)
	defer tick.Stop()
	for {
		state, code, err := look()
		switch {
		case err != nil:
			return err
		case state == want:
			return nil
		case state == serviceStopped:
			return fmt.Errorf("it has ended with code %d", code)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("it is still %s: %w", state, ctx.Err())
		}
	}
}

// maxServiceLog is how many bytes a service's log may have when the service starts; a longer one is put aside first, in
// the place of the one before.
const maxServiceLog = 10 << 20

// putAside renames a log that has grown too long.
func putAside(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	if info.Size() <= maxServiceLog {
		return nil
	}
	if err := os.Rename(path, path+".1"); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	return nil
}

// systemLog is a handler for the log that the whole system shares: it gets warnings and errors, each as one text. What
// tell returns is nobody's to act on: the file beside it has the same.
type systemLog struct {
	slog.Handler // writes into text
	text         *textBuffer
	tell         func(level slog.Level, text string) error
}

// textBuffer is shared by all handlers that are made from one.
type textBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func newSystemLog(tell func(slog.Level, string) error) slog.Handler {
	text := &textBuffer{}
	options := &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{} // the system's log has them itself
		}
		return a
	}}
	return systemLog{Handler: slog.NewTextHandler(text, options), text: text, tell: tell}
}

func (h systemLog) Handle(ctx context.Context, r slog.Record) error {
	h.text.mu.Lock()
	defer h.text.mu.Unlock()
	h.text.Reset()
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	return h.tell(r.Level, string(bytes.TrimSpace(h.text.Bytes())))
}

func (h systemLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

func (h systemLog) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}
