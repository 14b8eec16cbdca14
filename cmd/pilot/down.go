// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

const (
	downLimit = 10 * time.Second // how long a daemon may take to end
	lockLimit = 3 * time.Second  // how long the folder of one that doesn't answer may stay locked
)

func (p *program) downCommand() *cli.Command {
	return &cli.Command{
		Name: "down", Usage: "end the daemon and leave the host as it was",
		Description: manual{
			about: `Ends the daemon (the system service, where that runs it) and returns when its process is gone: no interface, route, DNS
change or socket is left. If no daemon runs, what one that crashed has left behind is undone, and "not running" is no
error. Identity, network and trust stay in the state folder: "pilot up" goes on with them.`,
			examples: []string{"sudo pilot down"},
			exits:    []int{localapi.ExitForbidden, localapi.ExitUnreachable, localapi.ExitState},
			result:   reflect.TypeFor[localapi.DownResult](),
			note:     "pid is that of the daemon that has ended, 0 if none ran",
		}.String(),
		Action: p.down,
	}
}

func (p *program) down(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	dir, err := p.stateDir(c)
	if err != nil {
		return err
	}
	socket, service := p.sys.SocketPath(dir), p.sys.Service()
	// Asked first: a service manager may be about to start again what ends by itself.
	byService := dir == p.sys.DefaultStateDir() && service.Installed() && service.Running()
	result, err := ask(c.Context, askLimit, p.clientAt(socket).Down)
	if err != nil && codeOf(err) != localapi.CodeNotRunning {
		return err
	}
	ran := err == nil || byService
	if byService {
		// A member of the group pilot may not stop the unit: then the daemon's own word is enough.
		if stopErr := service.Stop(); stopErr != nil && (err != nil || !errors.Is(stopErr, fs.ErrPermission)) {
			return fmt.Errorf("stop the system service: %w", stopErr)
		}
	}
	if err := p.awaitEnd(c.Context, socket, result.PID); err != nil {
		return err
	}
	if !ran || exists(socket) { // one that ended by itself has cleaned up
		if err := p.cleanUp(c.Context, dir); err != nil {
			return fmt.Errorf("undo what the daemon left behind: %w", err)
		}
	}
	return p.show(c, result, func(w io.Writer) {
		if ran {
			fmt.Fprintln(w, "down")
		} else {
			fmt.Fprintln(w, "not running")
		}
	})
}

// cleanUp undoes what a daemon left behind. One that was killed just now may hold the state folder until the kernel is
// done with it.
func (p *program) cleanUp(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := p.sys.Cleanup(dir)
		if codeOf(err) != localapi.CodeStateLocked {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// awaitEnd waits until the process is gone. With pid 0 there is none to wait for.
func (p *program) awaitEnd(ctx context.Context, socket string, pid int) error {
	if pid == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, downLimit, errTooLong)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for p.sys.Alive(pid) || exists(socket) && p.answers(ctx, socket) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errTooLong) {
				return ctx.Err()
			}
			return &localapi.Error{Code: localapi.CodeTimeout, Message: fmt.Sprintf("the daemon (process %d) has not ended after %s", pid, period(downLimit)),
				Hint: fmt.Sprintf("if it hangs: kill -9 %d, then pilot down again", pid)}
		}
	}
	return nil
}

var errTooLong = errors.New("too long")

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// answers reports whether somebody listens at the socket; a dead one's file may be left.
func (p *program) answers(ctx context.Context, socket string) bool {
	conn, err := p.sys.Dial(ctx, socket)
	if err != nil {
		return false
	}
	_ = conn.Close() // it was only to see
	return true
}
