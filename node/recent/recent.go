// SPDX-License-Identifier: Apache-2.0

// Package recent keeps the latest lines of a log in memory, for those who may ask the daemon for them.
package recent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
)

// Log is a bounded list of JSON lines, of which the oldest give way. It is safe for concurrent use.
type Log struct {
	limit int

	mu    sync.Mutex
	lines []string
	bytes int
}

// New returns a log of at most limit bytes.
func New(limit int) *Log { return &Log{limit: limit} }

// Lines are those that are kept, oldest first.
func (l *Log) Lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.lines...)
}

// Write takes one line, as slog's JSON handler writes it.
func (l *Log) Write(line []byte) (int, error) {
	if len(line) > l.limit {
		return len(line), nil // it would push out all others
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(line))
	l.bytes += len(line)
	gone := 0
	for l.bytes > l.limit {
		l.bytes -= len(l.lines[gone])
		gone++
	}
	l.lines = l.lines[gone:]
	return len(line), nil
}

// Handler passes everything on to next and keeps what next takes, too.
func (l *Log) Handler(next slog.Handler) slog.Handler {
	return handler{next: next, kept: slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug - 100})}
}

// handler writes to two.
type handler struct{ next, kept slog.Handler }

func (h handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	return errors.Join(h.next.Handle(ctx, r), h.kept.Handle(ctx, r))
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{next: h.next.WithAttrs(attrs), kept: h.kept.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{next: h.next.WithGroup(name), kept: h.kept.WithGroup(name)}
}
