// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

const (
	startLimit   = 15 * time.Second       // for a daemon to answer on its socket
	pollInterval = 50 * time.Millisecond  // between two looks at it
	pollLimit    = 5 * time.Second        // for the answer to one look
	maxLogTail   = 64 << 10               // bytes of a daemon's log that are searched for its last error
	logName      = "pilot.log"            // of a daemon in the background, in its state folder
	endedMessage = "the daemon has ended" // the log line by which a daemon says why; up looks for it
)

// daemonArgs is the command line of a daemon. What it shall do comes through its socket: arguments and environment
// can be seen by others.
func daemonArgs(stateDir string) []string { return []string{"daemon", "--state", stateDir} }

// ensureDaemon starts the daemon if none answers, and waits until it does.
func (p *program) ensureDaemon(c *cli.Context, client *localapi.Client) (started bool, err error) {
	_, err = ask(c.Context, pollLimit, client.Status)
	if codeOf(err) != localapi.CodeNotRunning {
		return false, err // nil: it runs
	}
	dir, err := p.stateDir(c)
	if err != nil {
		return false, err
	}
	if service := p.sys.Service(); dir == p.sys.DefaultStateDir() && service.Installed() {
		fmt.Fprintln(p.stderr, "pilot: starting the system service")
		if err := service.Start(); err != nil {
			return false, fmt.Errorf("start the system service: %w", err)
		}
		return true, p.awaitDaemon(c.Context, client, func() error { return nil }, service.Log())
	}
	return true, p.startDaemon(c.Context, client, dir)
}

// logPlace says where the log of this call's daemon is.
func (p *program) logPlace(c *cli.Context) string {
	dir, err := p.stateDir(c)
	if err != nil {
		return logName
	}
	if service := p.sys.Service(); dir == p.sys.DefaultStateDir() && service.Installed() {
		return service.Log()
	}
	return filepath.Join(dir, logName)
}

// startDaemon starts a daemon of our own.
func (p *program) startDaemon(ctx context.Context, client *localapi.Client, dir string) error {
	log := filepath.Join(dir, logName)
	var before int64
	if info, err := os.Stat(log); err == nil {
		before = info.Size()
	}
	fmt.Fprintf(p.stderr, "pilot: starting the daemon (its log: %s)\n", safe(log))
	pid, err := p.sys.Start(daemonArgs(dir), log)
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	ended := func() error {
		dead := !p.sys.Alive(pid)
		return lastWords(log, before, dead)
	}
	return p.awaitDaemon(ctx, client, ended, log)
}

// awaitDaemon waits until the daemon answers. ended returns why it never will, or nil.
func (p *program) awaitDaemon(ctx context.Context, client *localapi.Client, ended func() error, log string) error {
	deadline := time.NewTimer(startLimit)
	defer deadline.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		_, err := ask(ctx, pollLimit, client.Status)
		if code := codeOf(err); code != localapi.CodeNotRunning && code != localapi.CodeTimeout {
			return err
		}
		if err := ended(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return &localapi.Error{Code: localapi.CodeTimeout, Message: "the daemon was started and does not answer after " + period(startLimit),
				Hint: "its log may say why: " + log}
		}
	}
}

// lastWords looks in the part of a log after offset for the error that a daemon ended with. dead says that it has ended
// in any case.
func lastWords(path string, offset int64, dead bool) error {
	tail, err := readTail(path, offset)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for line := range bytes.Lines(tail) {
		var entry struct {
			Msg  string `json:"msg"`
			Code string `json:"code"`
			Err  string `json:"err"`
			Hint string `json:"hint"`
		}
		if json.Unmarshal(line, &entry) == nil && entry.Msg == endedMessage && entry.Code != "" {
			return &localapi.Error{Code: entry.Code, Message: entry.Err, Hint: entry.Hint}
		}
	}
	if !dead {
		return nil
	}
	message := "the daemon ended at once"
	if last := lastLine(tail); last != "" {
		message += ": " + last
	}
	return &localapi.Error{Code: localapi.CodeInternal, Message: message, Hint: "all of its log: " + path}
}

func readTail(path string, offset int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(max(offset, info.Size()-maxLogTail), io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxLogTail))
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
