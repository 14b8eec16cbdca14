// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/sandbox"
	"github.com/pilot-protocol/pilot/policy"
)

// exitRun is the status of a run that failed before its program began, as that of env(1), timeout(1) and others like them.
const exitRun = 125

// inviteVariable is the environment variable that may hold an invite. The program doesn't get it.
const inviteVariable = "PILOT_INVITE"

func (p *program) runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "run a program as an agent of its own, without root", ArgsUsage: "-- PROGRAM [ARGUMENT…]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "the agent's `NAME` in the network: a-z, 0-9, hyphens"},
			&cli.StringSliceFlag{Name: "egress", Usage: "what the program may reach outside of the network: none, all, or `RULES` (default: none)"},
			&cli.BoolFlag{Name: "ephemeral", Usage: "the agent is new, and leaves with the program"},
			&cli.StringFlag{Name: "invite-file", Usage: "read the invite from `FILE`, or from standard input for \"-\""},
			&cli.BoolFlag{Name: "quiet", Usage: "print nothing but errors"},
		},
		Description: manual{
			about: `Runs any program as an agent with an identity, an address and a name of its own: plain sockets and plain DNS work in it, in
both directions, and it reaches nothing but its network. It needs no root: the program runs in a user and network
namespace of its own, and what it sends is carried by this process, which is its node.

The agent's key and network are kept in a folder for its name below $XDG_STATE_HOME/pilot/run (~/.local/state without
that), or in --state DIR. The first time it joins by an invite: from --invite-file, or the variable PILOT_INVITE, which
the program doesn't get, or from the daemon of this host if there is one that lets you invite. With --ephemeral there is
nothing to keep: the agent is a new one and ends with the program.

Outside of its network the program reaches what --egress says: "none", "all", or a list with commas (or several flags) of
names ("example.com", "*.example.com"), addresses and prefixes ("192.0.2.7", "10.0.0.0/8", "2001:db8::/32"), each with
":PORT" or ":PORT-PORT" if it is not for all ports ("example.com:443", "[2001:db8::/32]:443"). "all" means the world, not
private networks: those need a prefix that names them, and an address of this host needs to be named alone. A name opens
the way to the addresses that DNS just gave for it, unless they are private ones that no other rule names. Loopback,
link-local and metadata addresses are never reached. What is refused fails at once; "pilot status" and the last line say
what that was. TCP, UDP and DNS get out, nothing else.

The terminal, standard streams, signals and the exit status are the program's. What pilot itself has to say goes to
standard error; with --json as JSON. Other commands talk to the agent's node by its state folder: "pilot status --state
DIR".`,
			examples: []string{
				"pilot run --name researcher -- python3 agent.py",
				"pilot run --name web --invite-file invite -- python3 -m http.server 80",
				"pilot run --name crawler --egress 'example.com:443,*.example.org:443' -- ./crawl",
				"pilot trust planner --state ~/.local/state/pilot/run/researcher",
			},
			exits:  []int{exitRun, exitNotExecutable, exitNoProgram},
			result: reflect.TypeFor[localapi.RunResult](),
			note:   "printed on standard error, in one line, at the program's end",
		}.String(),
		Action: p.runProgram,
	}
}

// Statuses for programs that can't be run, as shells have them.
const (
	exitNotExecutable = 126
	exitNoProgram     = 127
)

func (p *program) runProgram(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) == 0 {
		e := usage("which program?")
		e.Hint = "pilot run --name NAME -- PROGRAM"
		return e
	}
	status, err := p.runSandbox(c, args)
	if err != nil && status == exitRun && c.Context.Err() != nil {
		return exit(exitInterrupted)
	}
	if err != nil {
		p.tell(c, err)
	}
	return exit(status)
}

// tell prints an error on standard error, where standard output is another program's.
func (p *program) tell(c *cli.Context, err error) {
	e := asError(err)
	if c.Bool("json") {
		_ = writeJSON(p.stderr, failure{Error: e}, "")
		return
	}
	fmt.Fprintf(p.stderr, "pilot: %s\n", safe(e.Message))
	if e.Hint != "" {
		fmt.Fprintf(p.stderr, "hint: %s\n", safe(e.Hint))
	}
}

func (p *program) runSandbox(c *cli.Context, args []string) (status int, err error) {
	if _, err := sandbox.Find(args); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return exitNoProgram, &localapi.Error{Code: localapi.CodeNotFound, Message: "there is no program " + args[0]}
		}
		return exitNotExecutable, &localapi.Error{Code: localapi.CodePermission, Message: fmt.Sprintf("%s can't be run: %v", args[0], err)}
	}
	o := sandbox.Options{
		Program: args, Name: c.String("name"), Ephemeral: c.Bool("ephemeral"), Version: buildVersion().Version,
		Env: slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, inviteVariable+"=") }),
	}
	if o.Egress, err = policy.ParseEgress(c.StringSlice("egress")); err != nil {
		e := usage("--egress: %v", err)
		e.Hint = "see: pilot help run"
		return localapi.ExitUsage, e
	}
	if err := p.runFolders(c, &o); err != nil {
		return exitRun, err
	}
	if !c.Bool("quiet") && !c.Bool("json") {
		o.Warn = func(w string) { fmt.Fprintf(p.stderr, "pilot: warning: %s\n", safe(w)) }
	}
	o.Invite = func(ctx context.Context) (string, error) { return p.findRunInvite(ctx, c) }
	status, outside, err := p.sys.RunSandbox(c.Context, o)
	if err != nil {
		return exitRun, err
	}
	return status, p.tellResult(c, localapi.RunResult{Name: o.Name, ExitStatus: status, Egress: outside})
}

// tellResult says what the program could not reach, where there was something, or all of it as JSON.
func (p *program) tellResult(c *cli.Context, r localapi.RunResult) error {
	switch {
	case c.Bool("quiet"):
	case c.Bool("json"):
		return writeJSON(p.stderr, r, "")
	case r.Egress.Refused > 0:
		fmt.Fprintf(p.stderr, "pilot: %s\n", safe(refusedText(r.Egress)))
	}
	return nil
}

// refusedText is a line about what was refused.
func refusedText(e localapi.Egress) string {
	const shownTargets = 3
	text, latest := fmt.Sprintf("refused %d times by --egress", e.Refused), e.Last
	separator := ": "
	for _, r := range latest[:min(len(latest), shownTargets)] {
		text += separator + r.Kind + " " + r.Target
		separator = ", "
	}
	if len(latest) > shownTargets {
		text += ", …"
	}
	return text
}

// runFolders finds out who the agent is and where its state is.
func (p *program) runFolders(c *cli.Context, o *sandbox.Options) error {
	if o.Name == "" {
		if !o.Ephemeral {
			e := usage("which agent is the program to be?")
			e.Hint = "give it a name: --name NAME; for one that ends with the program: --ephemeral"
			return e
		}
		random := make([]byte, 4)
		_, _ = rand.Read(random) // which never fails
		o.Name = "run-" + hex.EncodeToString(random)
	}
	if err := identity.ValidateName(o.Name); err != nil {
		return &localapi.Error{Code: localapi.CodeNameInvalid, Message: err.Error(), Hint: "use a-z, 0-9 and hyphens, at most 63 characters"}
	}
	base, err := runBase()
	if err != nil {
		return err
	}
	o.Hide = []string{filepath.Dir(base)}
	dir := c.String("state")
	switch {
	case o.Ephemeral && dir != "":
		return usage("--ephemeral has no state to be kept: leave --state out")
	case o.Ephemeral:
		if dir, err = os.MkdirTemp(scratchDir(), "pilot-run-"); err != nil {
			return err
		}
	case dir == "":
		dir = filepath.Join(base, o.Name)
		if err := os.MkdirAll(base, 0o700); err != nil {
			return err
		}
	}
	o.StateDir, err = filepath.Abs(dir)
	return err
}

// scratchDir is where folders can be made that are not kept, in memory if there is such a place.
func scratchDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) && exists(dir) {
		return dir
	}
	return os.TempDir()
}

// runBase is the folder of the agents that a user runs.
func runBase() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "pilot", "run"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", &localapi.Error{Code: localapi.CodeUsage, Message: "there is no home folder to keep the agent in", Hint: "name one: --state DIR"}
	}
	return filepath.Join(home, ".local", "state", "pilot", "run"), nil
}

// findRunInvite returns an invite from wherever there is one.
func (p *program) findRunInvite(ctx context.Context, c *cli.Context) (string, error) {
	switch file := c.String("invite-file"); {
	case file == "-":
		text, err := io.ReadAll(io.LimitReader(p.stdin, maxInviteFile))
		if err != nil {
			return "", usage("standard input can't be read: %v", err)
		}
		return findInvite(string(text))
	case file != "":
		return readInviteFile(file)
	}
	if text := os.Getenv(inviteVariable); text != "" {
		return findInvite(text)
	}
	client := p.clientAt(p.sys.SocketPath(p.sys.DefaultStateDir()))
	result, err := ask(ctx, askLimit, func(ctx context.Context) (localapi.InviteResult, error) {
		return client.Invite(ctx, localapi.InviteRequest{})
	})
	if err == nil {
		return result.Invite, nil
	}
	e := asError(err)
	return "", &localapi.Error{
		Code: e.Code, Message: "this agent is in no network yet, and the daemon of this host gives no invite: " + e.Message,
		Hint: "ask for an invite (pilot invite) and give it by --invite-file FILE, or by the variable " + inviteVariable,
	}
}

func (p *program) stageCommand() *cli.Command {
	return &cli.Command{
		Name: sandbox.CommandStage, Usage: "set up a sandbox; for pilot run", Hidden: true, ArgsUsage: "-- PROGRAM [ARGUMENT…]",
		Description: manual{about: "What pilot run starts in new namespaces. It is of no use otherwise.", examples: []string{"pilot run"}}.String(),
		Action:      func(c *cli.Context) error { return p.sys.SandboxStage(c.Args().Slice()) },
	}
}

func (p *program) initCommand() *cli.Command {
	return &cli.Command{
		Name: sandbox.CommandInit, Usage: "be the first process of a sandbox; for pilot run", Hidden: true, ArgsUsage: "-- PROGRAM [ARGUMENT…]",
		Description: manual{about: "What starts the program of pilot run. It is of no use otherwise.", examples: []string{"pilot run"}}.String(),
		Action: func(c *cli.Context) error {
			status, err := p.sys.SandboxInit(c.Args().Slice())
			if err != nil {
				p.tell(c, err)
				status = max(status, 1)
			}
			return exit(status)
		},
	}
}

// runLog is the log of the node of a run, in its state folder.
func runLog(dir string) (*slog.Logger, io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return slog.New(slog.NewJSONHandler(f, nil)), f, nil
}
