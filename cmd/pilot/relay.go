// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/coordinator"
	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/relayserver"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// relayResult says what a relay serves.
type relayResult struct {
	Network      string               `json:"network"`
	Name         string               `json:"name"`
	Key          identity.AgentPublic `json:"key"`
	Region       string               `json:"region,omitempty"`
	Jurisdiction string               `json:"jurisdiction,omitempty"`
	Listen       string               `json:"listen"`    // TCP
	UDPPort      uint16               `json:"udp_port"`  // 0: none
	Addresses    []string             `json:"addresses"` // host:port under which agents are told to reach it
}

func (p *program) relayCommand() *cli.Command {
	return &cli.Command{
		Name: "relay", Usage: "run a relay of its own, without an agent", ArgsUsage: "[INVITE|-]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "the relay's `NAME`, which no other has: a-z, 0-9, hyphens (default: one made of its key)"},
			&cli.StringFlag{Name: "region", Usage: "the relay's `REGION`, such as eu"},
			&cli.StringFlag{Name: "listen", Value: net.JoinHostPort("", strconv.Itoa(api.DefaultPort)), Usage: "`HOST:PORT` to listen on, TCP; UDP has the same port, or the next (default: port 7745 of all addresses)"},
			&cli.StringSliceFlag{Name: "advertise", Usage: "a `HOST:PORT` by which agents reach it; may be repeated (default: this host's addresses)"},
			&cli.IntFlag{Name: "rate", Usage: "forward `N` Mbit/s for one client at most; -1: no limit (default 4000)"},
			&cli.StringFlag{Name: "invite-file", Usage: "read the invite from `FILE`"},
			&cli.StringFlag{Name: "metrics-listen", Usage: "serve what it has done at `HOST:PORT`, GET /metrics, over HTTP to everybody who reaches it"},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "the least `LEVEL` to log: debug, info, warn, error"},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of the log: json or text"},
		},
		Description: manual{
			about: `Runs until SIGINT or SIGTERM. A relay passes on what agents send to each other that can't reach each other directly. All of
it is sealed: a relay learns who talks with whom, when and how much, and can read or change nothing. Each coordinator is
a relay already; more of them make sense near agents that are far away from it, or under another jurisdiction.

The first time it needs an invite with the tag relay ("pilot invite --tag relay --no-trust"); the jurisdiction of the
invite becomes the relay's. From then on it knows its network. The coordinators list it while it runs, and agents choose
the nearest one by themselves. Its ports must be reachable, TCP and UDP.

--state DIR is its own folder here (default: the folder "relay" in pilot's default state folder). An invite is a secret:
see "pilot help up" on how to give it. The log goes to standard error.`,
			examples: []string{
				"pilot relay --region eu --advertise relay.example.com:7745 pilot://…",
				"pilot relay --region eu --advertise relay.example.com:7745     from then on",
			},
			exits:  []int{localapi.ExitForbidden, localapi.ExitConflict, localapi.ExitUnreachable, localapi.ExitKeyMismatch, localapi.ExitState},
			result: reflect.TypeFor[relayResult](),
			note:   "printed once, when it is listed",
		}.String(),
		Action: p.relay,
	}
}

func (p *program) relay(c *cli.Context) error {
	if err := positional(c, 0, 1); err != nil {
		return err
	}
	log, err := newLog(p.stderr, c.String("log-level"), c.String("log-format"))
	if err != nil {
		return err
	}
	o := relayserver.StandaloneOptions{Name: c.String("name"), Region: c.String("region"), Listen: c.String("listen"), Rate: relayRate(c, "rate"), Log: log}
	if err := checkRelay(coordinator.RelayOptions{Name: o.Name, Region: o.Region}); err != nil {
		return err
	}
	text, err := p.readInvite(c.Args().First(), c.String("invite-file"))
	if err != nil {
		return err
	}
	if text != "" {
		invite, err := identity.ParseInvite(text)
		if err != nil {
			return &localapi.Error{Code: localapi.CodeInviteInvalid, Message: err.Error()}
		}
		o.Invite = &invite
	}
	o.StateDir = filepath.Join(p.sys.DefaultStateDir(), "relay")
	if c.String("state") != "" {
		if o.StateDir, err = p.stateDir(c); err != nil {
			return err
		}
	}
	if o.Advertise, err = advertised(o.Listen, c.StringSlice("advertise"), platform.InterfaceAddresses); err != nil {
		return err
	}
	metrics, err := openMetrics(c)
	if err != nil {
		return err
	}
	s, err := relayserver.NewStandalone(o)
	if err != nil {
		if metrics != nil {
			_ = metrics.Close()
		}
		return relayError(err)
	}
	return p.runRelay(c, s, metrics)
}

// runRelay serves until a signal comes, and prints what it serves once it is listed.
func (p *program) runRelay(c *cli.Context, s *relayserver.Standalone, metrics net.Listener) error {
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	ended := make(chan error, 1)
	stats := func() (relayserver.Stats, bool) { return s.Stats(), true }
	go func() { ended <- withMetrics(ctx, metrics, stats, s.Run) }()
	listed, err := s.Ready(ctx)
	if err == nil {
		r := relayResult{
			Network: s.Network(), Name: listed.Name, Key: listed.Key, Region: listed.Region, Jurisdiction: listed.Jurisdiction,
			Listen: s.Addr().String(), UDPPort: listed.UDP, Addresses: listed.Addresses,
		}
		err = p.show(c, r, func(w io.Writer) { writeRelayResult(w, r) })
	}
	if err != nil {
		cancel()
	}
	runErr := <-ended
	switch {
	case runErr != nil: // it is why it was never ready, if it wasn't
		return relayError(runErr)
	case c.Context.Err() != nil:
		return nil
	}
	return relayError(err)
}

func writeRelayResult(w io.Writer, r relayResult) {
	line(w, "network", "%s", r.Network)
	line(w, "relay", "%s", r.Name)
	line(w, "key", "%s", r.Key)
	if r.Region != "" {
		line(w, "region", "%s", r.Region)
	}
	if r.Jurisdiction != "" {
		line(w, "under", "%s", r.Jurisdiction)
	}
	line(w, "listen", "%s, UDP port %d", r.Listen, r.UDPPort)
	for _, a := range r.Addresses {
		line(w, "address", "%s", a)
	}
}

// relayError gives a relay's errors their codes.
func relayError(err error) error {
	code, hint := "", ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		code, hint = localapi.CodePortTaken, "give another address by --listen HOST:PORT; or it runs already"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		code, hint = localapi.CodeUsage, "--listen takes an address of this host, or a port alone; one that agents dial goes to --advertise"
	case errors.Is(err, relayserver.ErrKeyFile), errors.Is(err, relayserver.ErrStateFile):
		code, hint = localapi.CodeStateDamaged, "restore it from a backup; it is left as it is"
	case errors.Is(err, relayserver.ErrNoNetwork):
		code, hint = localapi.CodeUsage, "give it an invite with the tag relay; an admin makes one: pilot invite --tag relay --no-trust"
	case errors.Is(err, relayserver.ErrOtherNetwork):
		code, hint = localapi.CodeConflict, "for a second network use another state folder: --state DIR"
	default:
		return coded(node.Explain(err))
	}
	return &localapi.Error{Code: code, Message: strings.TrimPrefix(err.Error(), "relayserver: "), Hint: hint}
}

// relayFlags reads the flags of a coordinator that say what kind of relay it is.
func relayFlags(c *cli.Context) (coordinator.RelayOptions, error) {
	o := coordinator.RelayOptions{
		Off: c.Bool("no-relay"), Name: c.String("relay-name"), Region: c.String("relay-region"), Jurisdiction: c.String("relay-jurisdiction"),
		Rate: relayRate(c, "relay-rate"),
	}
	return o, checkRelay(o)
}

func checkRelay(o coordinator.RelayOptions) error {
	err := o.Check()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, identity.ErrName):
		return &localapi.Error{Code: localapi.CodeNameInvalid, Message: err.Error(), Hint: "use a-z, 0-9 and hyphens, at most 63 characters"}
	}
	return usage("%s", strings.TrimPrefix(err.Error(), "identity: "))
}

// relayRate is a flag in megabits a second, in bytes a second.
func relayRate(c *cli.Context, flag string) int {
	const bytesInMegabit = 1_000_000 / 8
	return c.Int(flag) * bytesInMegabit
}

// openMetrics opens the address for metrics; nil where none is wanted.
func openMetrics(c *cli.Context) (net.Listener, error) {
	address := c.String("metrics-listen")
	if address == "" {
		return nil, nil
	}
	if err := checkListen("--metrics-listen", address); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &localapi.Error{Code: localapi.CodePortTaken, Message: "--metrics-listen: " + err.Error(), Hint: "give another address"}
	} else if err != nil {
		return nil, usage("--metrics-listen: %v", err)
	}
	return l, nil
}

const metricsTimeout = 10 * time.Second

// withMetrics runs a relay, and serves what it does at a listener beside it, unless that is nil.
func withMetrics(ctx context.Context, l net.Listener, stats func() (relayserver.Stats, bool), run func(context.Context) error) error {
	if l == nil {
		return run(ctx)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", node.RelayMetrics(stats))
	srv := &http.Server{Handler: mux, ReadTimeout: metricsTimeout, WriteTimeout: metricsTimeout, IdleTimeout: metricsTimeout}
	g, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.Go(func() error {
		defer cancel()
		return run(ctx)
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving the metrics: %w", err)
		}
		return nil
	})
	return g.Wait()
}
