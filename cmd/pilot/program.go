// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

// completeFlag is what the completion scripts put at the end of an unfinished command line.
const completeFlag = "--generate-bash-completion"

// program is one run of pilot.
type program struct {
	sys            system
	look           func(context.Context, inspect.Question) inspect.Host // at this host
	stdin          io.Reader
	stdout, stderr io.Writer
	version        string    // in place of the one that the binary was built with
	differs        sync.Once // for the warning that the daemon is of another minor version
	last           string    // the word that a shell is completing, where it is one that begins with "-"
	place          string    // the state folder of this call, once it was looked for
}

// run carries out a command line and returns the exit status.
func (p *program) run(ctx context.Context, args []string) int {
	app := p.app()
	if n := len(args); n > 0 && args[n-1] == completeFlag {
		p.last = args[max(0, n-2)]
		if err := app.RunContext(ctx, toComplete(args)); err != nil {
			return localapi.ExitFailure // a shell that completes shows no errors
		}
		return localapi.ExitOK
	}
	inv, err := arrange(app, args)
	if err == nil {
		if inv.help {
			err = p.showHelp(app, inv.path, inv.json)
		} else {
			err = app.RunContext(ctx, inv.args)
		}
	}
	return p.report(ctx, err, inv.json)
}

// toComplete is a command line that a shell completes, as the library takes it: with a "--" anywhere in it, it would run
// the command. As the last word that is a flag of which no letter is there yet.
func toComplete(args []string) []string {
	var out []string
	for i, arg := range args {
		switch {
		case arg != "--":
			out = append(out, arg)
		case i == len(args)-2:
			out = append(out, "-")
		}
	}
	return out
}

func (p *program) app() *cli.App {
	return &cli.App{
		Name:                 "pilot",
		HelpName:             "pilot",
		Usage:                "the network that agents live on",
		Description:          overview,
		Flags:                globalFlags(),
		HideHelp:             true, // ours knows exit statuses and schemas
		HideHelpCommand:      true,
		HideVersion:          true,
		EnableBashCompletion: true,
		BashComplete:         p.complete,
		Reader:               p.stdin,
		Writer:               p.stdout,
		ErrWriter:            p.stderr,
		ExitErrHandler:       func(*cli.Context, error) {}, // report decides
		OnUsageError:         func(_ *cli.Context, err error, _ bool) error { return usage("%v", err) },
		Commands:             p.commands(),
	}
}

func (p *program) commands() []*cli.Command {
	all := []*cli.Command{
		p.upCommand(), p.downCommand(), p.runCommand(), p.envCommand(), p.statusCommand(), p.pingCommand(), p.netcheckCommand(),
		p.doctorCommand(), p.bugreportCommand(), p.agentsCommand(), p.whoisCommand(), p.inviteCommand(), p.trustCommand(), p.keysCommand(),
		p.serveCommand(), p.forwardCommand(), p.ncCommand(),
		p.coordinatorCommand(), p.relayCommand(), p.daemonCommand(), p.dnsSettingsCommand(),
		p.stageCommand(), p.initCommand(),
		p.versionCommand(), p.completionCommand(), p.helpCommand(),
	}
	for _, c := range all {
		p.plain(c)
	}
	return all
}

// plain turns off what the library would add to a command by itself.
func (p *program) plain(c *cli.Command) {
	c.HideHelp, c.HideHelpCommand = true, true
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return usage("%v", err) }
	if c.BashComplete == nil {
		c.BashComplete = p.complete
	}
	for _, sub := range c.Subcommands {
		p.plain(sub)
	}
}

func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print JSON on standard output, errors included"},
		&cli.StringFlag{Name: "state", EnvVars: []string{"PILOT_STATE"}, Usage: "the daemon's state folder `DIR`; its socket is found by it (default: your own daemon's, or else the system's)"},
		&cli.StringFlag{Name: "agent", EnvVars: []string{"PILOT_AGENT"}, Usage: "act as the agent `NAME` of the daemon, which you added by \"pilot agents add\" (default: the daemon's own)"},
		&cli.BoolFlag{Name: "help", Usage: "explain the command"},
	}
}

// stateDir is the state folder of this call, absolute: the one that is named, or that of the daemon that is found.
func (p *program) stateDir(c *cli.Context) (string, error) {
	dir := c.String("state")
	if dir == "" {
		if p.place == "" {
			p.place = p.findDaemon(c.Context, c.Command.Name == "up")
		}
		return p.place, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", usage("the state folder %q: %v", dir, err)
	}
	return abs, nil
}

// findDaemon looks for a daemon that answers the caller: the caller's own first, then the system's. Where none does it is
// the caller's own that is meant, but for root. toStart says that one may be started.
func (p *program) findDaemon(ctx context.Context, toStart bool) string {
	own, system := p.sys.UserStateDir(), p.sys.DefaultStateDir()
	if own == "" || own == system {
		return system
	}
	if p.answers(ctx, p.sys.SocketPath(own)) {
		return own
	}
	conn, err := p.sys.Dial(ctx, p.sys.SocketPath(system))
	if err == nil {
		_ = conn.Close() // it was only to see
		return system
	}
	if errors.Is(err, fs.ErrPermission) && !toStart && !exists(own) {
		return system // there is one, which has to be asked for
	}
	return own
}

// client returns a client of the daemon of this call. Nothing is dialled yet.
func (p *program) client(c *cli.Context) (*localapi.Client, error) {
	dir, err := p.stateDir(c)
	if err != nil {
		return nil, err
	}
	return p.clientAs(p.sys.SocketPath(dir), c.String("agent")), nil
}

func (p *program) clientAt(socket string) *localapi.Client { return p.clientAs(socket, "") }

func (p *program) clientAs(socket, agent string) *localapi.Client {
	return localapi.NewClient(localapi.ClientOptions{
		Version: p.ownVersion(), Acting: agent,
		Differs: func(daemon string) {
			p.differs.Do(func() {
				fmt.Fprintf(p.stderr, "pilot: warning: this is pilot %s, and the daemon that runs is %s\nhint: restart the daemon: pilot down, then pilot up\n",
					safe(p.ownVersion()), safe(daemon))
			})
		},
		Dial: func(ctx context.Context) (net.Conn, error) {
			conn, err := p.sys.Dial(ctx, socket)
			if err != nil {
				return nil, dialError(ctx, socket, err)
			}
			return conn, nil
		},
	})
}

// ownVersion is this program's.
func (p *program) ownVersion() string {
	if p.version != "" {
		return p.version
	}
	return buildVersion().Version
}

// dialError says what it means that the socket can't be reached.
func dialError(ctx context.Context, socket string, err error) error {
	var own *localapi.Error
	switch {
	case errors.As(err, &own):
		return own
	case ctx.Err() != nil:
		return err
	case errors.Is(err, fs.ErrPermission):
		return &localapi.Error{Code: localapi.CodePermission, Message: "you may not talk to the daemon at " + socket,
			Hint: "run it with sudo, or become a member of the group pilot and log in again; or have a daemon of your own: pilot up"}
	}
	return &localapi.Error{Code: localapi.CodeNotRunning, Message: "no pilot daemon runs here (nothing answers at " + socket + ")",
		Hint: "start it with: pilot up"}
}

// ask calls the daemon with a limit of time, in which an answer that needs the coordinator or a peer has to come.
func ask[A any](ctx context.Context, limit time.Duration, f func(context.Context) (A, error)) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

// askLimit is for questions that may need one round to the coordinator.
const askLimit = 30 * time.Second
