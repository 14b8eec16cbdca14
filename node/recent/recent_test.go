// SPDX-License-Identifier: Apache-2.0

package recent

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheLatestAreKept(t *testing.T) {
	var out bytes.Buffer
	l := New(1000)
	log := slog.New(l.Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})))
	log.Debug("not taken")
	for i := range 100 {
		log.With("part", "x").WithGroup("g").Info("line", "n", i)
	}
	log.Info(strings.Repeat("too long ", 200))
	lines := l.Lines()
	if n := len(strings.Join(lines, "")); n > 1000 || n < 800 || len(lines) == 0 {
		t.Fatalf("%d lines of %d bytes", len(lines), n)
	}
	if last := lines[len(lines)-1]; !strings.Contains(last, `"msg":"line","part":"x","g":{"n":99}`) {
		t.Errorf("the last line: %s", last)
	}
	if strings.Contains(strings.Join(lines, ""), "not taken") || strings.Count(out.String(), "\n") != 101 {
		t.Errorf("passed on %d lines", strings.Count(out.String(), "\n"))
	}
}

func TestManyWriters(t *testing.T) {
	l := New(500)
	log := slog.New(l.Handler(slog.DiscardHandler))
	kept := slog.New(l.Handler(slog.NewTextHandler(&bytes.Buffer{}, nil)))
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for j := range 50 {
				log.Info("never")
				kept.Info(fmt.Sprint(i, j))
				l.Lines()
			}
		})
	}
	group.Wait()
	for _, line := range l.Lines() {
		if !strings.HasPrefix(line, "{") || !strings.HasSuffix(line, "}\n") || strings.Contains(line, "never") {
			t.Errorf("%q", line)
		}
	}
}
