// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) daemonCommand() *cli.Command {
	return &cli.Command{
		Name: "daemon", Usage: "run the daemon in this process; for service managers", Hidden: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "the least `LEVEL` to log: debug, info, warn, error"},
			&cli.StringFlag{Name: "log-format", Value: "json", Usage: "`FORMAT` of the log: json or text"},
			&cli.BoolFlag{Name: "service", Usage: "be the service of Windows' service manager, which started this process"},
		},
		Description: manual{
			about: `What the system service and "pilot up" run. It serves the local API on the state folder's socket and brings the stored
network up, if there is one; a new one comes through the socket, by "pilot up". It ends on SIGTERM, SIGINT or
"pilot down" and leaves the host as it was. It tells systemd when it is ready, that its socket still answers, and when it
ends (sd_notify).

The log goes to standard error: to the journal where systemd runs it ("journalctl -u pilot"), otherwise to pilot.log in
the state folder; warnings of a Windows service also to the event log. It has no secrets. If the daemon ends by an error,
the last line has its code.`,
			examples: []string{"pilot daemon --state /srv/pilot --log-level debug"},
			exits:    []int{localapi.ExitForbidden, localapi.ExitConflict, localapi.ExitState},
		}.String(),
		Action: p.daemon,
	}
}

func (p *program) daemon(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	dir := p.sys.DefaultStateDir() // whoever runs it
	if c.String("state") != "" {
		var err error
		if dir, err = p.stateDir(c); err != nil {
			return err
		}
	}
	if c.Bool("service") {
		return p.daemonInService(c, dir)
	}
	log, err := newLog(p.stderr, c.String("log-level"), c.String("log-format"))
	if err != nil {
		return err
	}
	if err := p.serve(c.Context, dir, log, p.notifyReady(log, dir)); err != nil {
		return lastLogged(log, err)
	}
	return nil
}

// daemonInService is daemon under a manager that wants to be talked to, and shows its standard error to nobody.
func (p *program) daemonInService(c *cli.Context, dir string) error {
	host := p.sys.Service().Host()
	if host == nil {
		return usage("--service: the service manager of this system needs no such thing")
	}
	file, events, err := host.OpenLog()
	if err != nil {
		return err
	}
	defer file.Close() // nothing is held back in it
	handler, err := newHandler(file, c.String("log-level"), c.String("log-format"))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewMultiHandler(handler, events))
	if err := host.Recover(); err != nil {
		log.Warn("the service manager will not start the service again when it fails", "err", err)
	}
	return host.Run(c.Context, func(ctx context.Context, ready func()) error {
		err := p.serve(ctx, dir, log, func(ctx context.Context) error {
			if err := p.awaitDaemon(ctx, p.clientAt(p.sys.SocketPath(dir)), ctx.Err, "above"); err != nil {
				if ctx.Err() != nil {
					return context.Canceled
				}
				return err
			}
			ready()
			return nil
		})
		if err != nil {
			return lastLogged(log, err) // now: the manager may end the process when it hears that the service stopped
		}
		return nil
	})
}

// lastLogged writes down what a daemon ended by, in the line that lastWords looks for, and returns the exit status for it.
func lastLogged(log *slog.Logger, err error) error {
	e := asError(err)
	log.Error(endedMessage, "code", e.Code, "err", e.Message, "hint", e.Hint)
	return exit(localapi.ExitStatus(e.Code))
}

// serve runs a node in this process, and ready beside it, until the node ends: by ctx, or by "pilot down".
func (p *program) serve(ctx context.Context, dir string, log *slog.Logger, ready func(context.Context) error) error {
	n, err := p.sys.NewNode(dir, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := make(chan error, 1)
	go func() {
		err := ready(ctx)
		if err != nil {
			cancel()
		}
		first <- err
	}()
	err = n.Run(ctx)
	cancel()
	if readyErr := <-first; err == nil && !errors.Is(readyErr, context.Canceled) {
		err = readyErr
	}
	return err
}

// notifyReady tells a service manager, if there is one, when the socket answers, and that it still does, as often as the
// manager wants to hear that.
func (p *program) notifyReady(log *slog.Logger, dir string) func(context.Context) error {
	return func(ctx context.Context) error {
		if os.Getenv("NOTIFY_SOCKET") == "" {
			return nil
		}
		client := p.clientAt(p.sys.SocketPath(dir))
		if err := p.awaitDaemon(ctx, client, ctx.Err, "above"); err != nil {
			if ctx.Err() != nil {
				return context.Canceled
			}
			return err
		}
		notify := func(state string) {
			if _, err := systemd.SdNotify(false, state); err != nil {
				log.Warn("the service manager can't be told", "state", state, "err", err)
			}
		}
		notify(systemd.SdNotifyReady)
		p.feedWatchdog(ctx, log, client, notify)
		notify(systemd.SdNotifyStopping)
		return nil
	}
}

// feedWatchdog tells the service manager, twice in the time after which it would take the daemon for hung, that the
// daemon answers questions; it returns with ctx.
func (p *program) feedWatchdog(ctx context.Context, log *slog.Logger, client *localapi.Client, notify func(state string)) {
	limit, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog", "err", err)
	}
	if limit <= 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(limit / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := ask(ctx, min(limit/2, pollLimit), client.Status); err == nil {
			notify(systemd.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.Error("the daemon does not answer on its own socket", "err", err)
		}
	}
}

// upHere runs the daemon in this process and asks it, by its socket, to come up.
func (p *program) upHere(c *cli.Context, request localapi.UpRequest) error {
	log, err := newLog(p.stderr, "info", "text")
	if err != nil {
		return err
	}
	dir, err := p.stateDir(c)
	if err != nil {
		return err
	}
	client := p.clientAt(p.sys.SocketPath(dir))
	return p.serve(c.Context, dir, log, func(ctx context.Context) error {
		if err := p.awaitDaemon(ctx, client, ctx.Err, "above"); err != nil {
			return err
		}
		result, err := ask(ctx, upLimit, func(ctx context.Context) (localapi.UpResult, error) { return client.Up(ctx, request) })
		if err != nil {
			if ctx.Err() != nil {
				return context.Canceled
			}
			return err
		}
		return p.showUp(c, result)
	})
}

// newLog makes the log of a daemon.
func newLog(w io.Writer, level, format string) (*slog.Logger, error) {
	handler, err := newHandler(w, level, format)
	if err != nil {
		return nil, err
	}
	return slog.New(handler), nil
}

// newHandler makes what newLog's log goes through.
func newHandler(w io.Writer, level, format string) (slog.Handler, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		e := usage("--log-level: %q is no level", level)
		e.Hint = "levels are debug, info, warn, error"
		return nil, e
	}
	options := &slog.HandlerOptions{Level: least}
	switch format {
	case "json":
		return slog.NewJSONHandler(w, options), nil
	case "text":
		return slog.NewTextHandler(w, options), nil
	}
	e := usage("--log-format: %q is no format", format)
	e.Hint = fmt.Sprintf("formats are %s and %s", "json", "text")
	return nil, e
}
