// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/coordinator"
	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/coordinator/relayserver"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

const (
	firstInviteLife = 24 * time.Hour
	authorityFile   = "authority.key"
)

// coordinatorResult says what a coordinator serves.
type coordinatorResult struct {
	Network   string                   `json:"network"`
	Authority identity.AuthorityPublic `json:"authority"`
	Listen    string                   `json:"listen"`
	Addresses []string                 `json:"addresses"` // host:port under which agents are told to reach it
	Created   bool                     `json:"created"`   // the authority key was made by this call
	Invite    string                   `json:"invite,omitempty"`
}

func (p *program) coordinatorCommand() *cli.Command {
	return &cli.Command{
		Name: "coordinator", Usage: "run a coordinator of its own, without an agent",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Value: net.JoinHostPort("", strconv.Itoa(api.DefaultPort)), Usage: "`HOST:PORT` to listen on, TCP (default: port 7745 of all addresses)"},
			&cli.StringSliceFlag{Name: "advertise", Usage: "a `HOST:PORT` by which agents reach it; may be repeated (default: this host's addresses)"},
			&cli.StringFlag{Name: "network", Value: "pilot", Usage: "the `NAME` of the network, if it is new (default: pilot)"},
			&cli.StringFlag{Name: "nats", Usage: "keep the state in the NATS at `URL` (JetStream) instead of the state folder"},
			&cli.StringFlag{Name: "nats-file", Usage: "read the URL from `FILE`: where it has a password, it doesn't show in the list of processes"},
			&cli.BoolFlag{Name: "no-relay", Usage: "be no relay"},
			&cli.StringFlag{Name: "relay-name", Usage: "the relay's `NAME`, which no other has (default: one made of its key)"},
			&cli.StringFlag{Name: "relay-region", Usage: "the relay's `REGION`, such as eu"},
			&cli.StringFlag{Name: "relay-jurisdiction", Usage: "the relay's jurisdiction, such as `eu-de`"},
			&cli.IntFlag{Name: "relay-rate", Usage: "forward `N` Mbit/s for one client at most; -1: no limit (default 4000)"},
			&cli.StringFlag{Name: "metrics-listen", Usage: "serve what the relay has done at `HOST:PORT`, GET /metrics, over HTTP to everybody who reaches it"},
			&cli.BoolFlag{Name: "invite", Usage: "print an invite for an admin also if the network is not new"},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "the least `LEVEL` to log: debug, info, warn, error"},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of the log: json or text"},
		},
		Description: manual{
			about: `Runs until SIGINT or SIGTERM. It registers agents and carries their signals. It is a relay too: for agents that can't reach
each other directly it passes on what they send, of which it can read nothing. Relays take TCP connections on the
coordinator's port, and UDP on the same number, or on the next one if that is taken.

"pilot up" without an invite runs one inside the daemon: this is for a host that has no agent, or for several coordinators
in front of one NATS.

--state DIR is its own folder here (default: the folder "coordinator" in pilot's default state folder). It holds the
authority's key, which admits agents and which nobody else ever sees: keep it safe, and give each coordinator of a
network a copy. When it is made, the network is new, and an invite for a first admin is printed: one use, 24 h.

The log goes to standard error.`,
			examples: []string{
				"sudo pilot coordinator --advertise coord.example.com:7745",
				"pilot coordinator --state /srv/coord --listen :7745 --nats nats://nats.example.com:4222",
			},
			exits:  []int{localapi.ExitForbidden, localapi.ExitConflict, localapi.ExitUnreachable, localapi.ExitState},
			result: reflect.TypeFor[coordinatorResult](),
			note:   "printed once, when it listens",
		}.String(),
		Action: p.coordinator,
	}
}

func (p *program) coordinator(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	log, err := newLog(p.stderr, c.String("log-level"), c.String("log-format"))
	if err != nil {
		return err
	}
	if err := identity.ValidateNetworkName(c.String("network")); err != nil {
		return &localapi.Error{Code: localapi.CodeNameInvalid, Message: "--network: " + err.Error()}
	}
	dir := filepath.Join(p.sys.DefaultStateDir(), "coordinator")
	if c.String("state") != "" {
		if dir, err = p.stateDir(c); err != nil {
			return err
		}
	}
	addresses, err := advertised(c.String("listen"), c.StringSlice("advertise"), platform.InterfaceAddresses)
	if err != nil {
		return err
	}
	natsURL, err := readNATS(c.String("nats"), c.String("nats-file"))
	if err != nil {
		return err
	}
	relay, err := relayFlags(c)
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(dir, authorityFile))
	created := errors.Is(err, fs.ErrNotExist)
	co, err := coordinator.New(coordinator.Options{
		Listen: c.String("listen"), StateDir: dir, NATS: natsURL, Network: c.String("network"), Log: log, Advertise: addresses,
		Relay: relay,
	})
	if err != nil {
		return coordinatorError(err)
	}
	return p.runCoordinator(c, co, addresses, created)
}

// readNATS returns the URL of the call, from wherever it comes.
func readNATS(text, file string) (string, error) {
	if file == "" {
		return text, nil
	}
	if text != "" {
		return "", usage("the NATS is given twice: by --nats and by --nats-file")
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", usage("the URL of the NATS can't be read: %v", err)
	}
	if text = strings.TrimSpace(string(raw)); text == "" {
		return "", usage("%s has no URL in it", file)
	}
	return text, nil
}

// runCoordinator serves until a signal comes, and prints what it serves once it does.
func (p *program) runCoordinator(c *cli.Context, co *coordinator.Coordinator, addresses []string, created bool) error {
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	metrics, err := openMetrics(c)
	if err != nil {
		co.Close()
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- withMetrics(ctx, metrics, co.Relay, co.Run) }()
	err = p.introduce(ctx, c, co, addresses, created)
	if err != nil {
		cancel()
	}
	runErr := <-ended
	switch {
	case runErr != nil: // it is why the introduction failed, if that did
		return coordinatorError(runErr)
	case c.Context.Err() != nil:
		return nil
	}
	return coordinatorError(err)
}

// introduce prints what the coordinator serves, with an invite if one is due.
func (p *program) introduce(ctx context.Context, c *cli.Context, co *coordinator.Coordinator, addresses []string, created bool) error {
	if err := co.Ready(ctx); err != nil {
		return err
	}
	// An existing network has its name already: it is asked for as agents ask.
	client, err := api.NewClient(api.ClientOptions{Addresses: []string{reachable(co.Addr())}, Authority: co.Authority()})
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	network, err := ask(ctx, askLimit, client.Network)
	if err != nil {
		return err
	}
	r := coordinatorResult{Network: network.Name, Authority: co.Authority(), Listen: co.Addr().String(), Addresses: addresses, Created: created}
	if created || c.Bool("invite") {
		invite, request, err := adminInvite(rand.Reader, r, time.Now())
		if err != nil {
			return err
		}
		if err := co.CreateInvite(ctx, request); err != nil {
			return fmt.Errorf("make the invite: %w", err)
		}
		if r.Invite, err = invite.Text(); err != nil {
			return fmt.Errorf("make the invite: %w", err)
		}
	}
	return p.show(c, r, func(w io.Writer) { writeCoordinatorResult(w, r) })
}

func writeCoordinatorResult(w io.Writer, r coordinatorResult) {
	note := ""
	if r.Created {
		note = "  (new)"
	}
	line(w, "network", "%s%s", r.Network, note)
	line(w, "authority", "%s", r.Authority)
	line(w, "listen", "%s", r.Listen)
	for _, a := range r.Addresses {
		line(w, "address", "%s", a)
	}
	if r.Invite != "" {
		line(w, "invite", "pilot up %s   (one use, 24 h, tags: %s)", r.Invite, api.TagAdmin)
	}
}

// coordinatorError gives the coordinator's errors their codes.
func coordinatorError(err error) error {
	code, hint := "", ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		code, hint = localapi.CodePortTaken, "give another address by --listen HOST:PORT; or it runs already"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		code, hint = localapi.CodeUsage, "--listen takes an address of this host, or a port alone; one that agents dial goes to --advertise"
	case errors.Is(err, coordinator.ErrStateDamaged), errors.Is(err, coordinator.ErrRegistryLost),
		errors.Is(err, relayserver.ErrKeyFile),
		errors.Is(err, ca.ErrDamaged), errors.Is(err, ca.ErrMissing):
		code, hint = localapi.CodeStateDamaged, "restore it from a backup; it is left as it is"
	case errors.Is(err, ca.ErrExposed):
		code, hint = localapi.CodeInsecurePath, "see who could read it, then: chmod 600 FILE"
	case errors.Is(err, store.ErrJetStream), errors.Is(err, store.ErrUnavailable):
		code, hint = localapi.CodeUnavailable, "look at the NATS server that --nats names"
	default:
		return coded(err)
	}
	return &localapi.Error{Code: code, Message: err.Error(), Hint: hint}
}

// adminInvite makes an invite for a first admin, with what the coordinator has to know of it.
func adminInvite(random io.Reader, r coordinatorResult, now time.Time) (identity.Invite, api.InviteRequest, error) {
	key, err := identity.NewJoinKey(random)
	if err != nil {
		return identity.Invite{}, api.InviteRequest{}, err
	}
	expires := now.Add(firstInviteLife).Truncate(time.Second)
	return identity.Invite{NetworkName: r.Network, Authority: r.Authority, Coordinators: r.Addresses, Key: key, Expires: expires},
		api.InviteRequest{Join: key.Public(), Uses: 1, Expires: expires, Tags: []string{api.TagAdmin}}, nil
}

// advertised are the addresses by which agents reach a coordinator: those that were given, or the one that it listens
// on, or the host's, IPv4 first.
func advertised(listen string, given []string, own func(exclude string) ([]netip.Addr, error)) ([]string, error) {
	if err := checkListen("--listen", listen); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(listen)
	switch {
	case err != nil:
		return nil, err
	case len(given) > coordinator.MaxAdvertised:
		return nil, usage("--advertise: %d addresses; at most %d fit into an invite", len(given), coordinator.MaxAdvertised)
	case len(given) > 0:
		for _, a := range given {
			if err := checkHostPort("--advertise", a); err != nil {
				return nil, err
			}
		}
		return given, nil
	case port == "0":
		e := usage("--listen: port 0 can't be told to agents")
		e.Hint = "choose a port, or tell agents another address by --advertise HOST:PORT"
		return nil, e
	}
	addrs, err := own(platform.InterfacePrefix)
	if err != nil {
		return nil, fmt.Errorf("find this host's addresses: %w", err)
	}
	list := coordinator.Advertised(listen, addrs)
	if len(list) == 0 {
		e := usage("this host has no address by which agents could reach it")
		e.Hint = "give one by --advertise HOST:PORT"
		return nil, e
	}
	return list, nil
}

// checkHostPort refuses what can't be dialled: a host and a port are needed.
func checkHostPort(flag, s string) error {
	host, port, err := net.SplitHostPort(s)
	n, numberErr := strconv.ParseUint(port, 10, 16)
	if err == nil && host != "" && numberErr == nil && n != 0 {
		return nil
	}
	e := usage("%s: %q is not a host and a port", flag, s)
	e.Hint = "write it like coord.example.com:7745, 192.0.2.10:7745 or [2001:db8::1]:7745"
	return e
}

// checkListen refuses what can't be listened on. The host may be left out, and port 0 is any that is free.
func checkListen(flag, s string) error {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err == nil {
		return nil
	}
	e := usage("%s: %q is not an address to listen on", flag, s)
	e.Hint = listenHint
	return e
}

const listenHint = "write it like :7745, 192.0.2.10:7745 or [2001:db8::1]:7745"

// reachable is an address by which this host itself reaches a listener.
func reachable(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if ok && t.IP.IsUnspecified() {
		return net.JoinHostPort("localhost", strconv.Itoa(t.Port))
	}
	return a.String()
}
