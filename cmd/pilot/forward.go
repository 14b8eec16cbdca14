// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/splice"
)

const (
	// maxForwarded is how many connections a forwarded port has at once; those beyond are reset.
	maxForwarded = 1024
	// forwardIdle is how long a flow of datagrams lives on which nothing moves, halfLimit a connection on which one side has
	// said all.
	forwardIdle = 2 * time.Minute
	halfLimit   = 15 * time.Minute
	// forwardPause is how long a listener waits that can't accept.
	forwardPause = 50 * time.Millisecond
)

// forwardedPort is a local port that leads to an agent's.
type forwardedPort struct {
	Protocol string         `json:"protocol"` // tcp or udp
	Listen   netip.AddrPort `json:"listen"`   // here
	Host     string         `json:"host"`     // the agent
	Port     uint16         `json:"port"`     // of it
}

// forwardResult is what forward --json prints once all ports are listened on.
type forwardResult struct {
	Forwarded []forwardedPort `json:"forwarded"`
}

func (p *program) forwardCommand() *cli.Command {
	return &cli.Command{
		Name: "forward", Usage: "bring ports of agents to this host", ArgsUsage: "[udp:][[ADDRESS:]PORT=]HOST:PORT …", BashComplete: p.completeAgents,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "timeout", Value: "30s", Usage: "`TIME` to wait for each connection to the agent (default 30s)"},
		},
		Description: manual{
			about: `Listens on local ports, and passes what connects there on to ports of agents, until it is interrupted. Programs that can't be
told another address, and hosts whose agent has no interface, get to an agent that way.

HOST is an agent's name or address. ADDRESS is 127.0.0.1 unless it is given; at any other than a loopback address,
everybody who can reach it speaks as this agent. PORT is the agent's unless it is given; 0 chooses a free one. Once all
are listened on, a line for each is printed on standard error, and with --json an object on standard output. A
connection that can't be made is reset, and the reason is said on standard error.`,
			examples: []string{"pilot forward 5432=warehouse:5432", "pilot forward 5432=warehouse:5432 8080=planner:80", "pilot forward udp:5353=warehouse:53",
				"pilot forward 0=warehouse:5432 --json"},
			exits: []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitNotFound, localapi.ExitConflict, localapi.ExitUnreachable,
				localapi.ExitKeyMismatch},
			result: reflect.TypeFor[forwardResult](),
		}.String(),
		Action: p.forward,
	}
}

// parseForward reads "[udp:][[ADDRESS:]PORT=]HOST:PORT".
func parseForward(arg string) (forwardedPort, error) {
	bad := usage("%q is nothing to forward", shown(arg))
	bad.Hint = "write it like 5432=warehouse:5432, 127.0.0.1:5432=warehouse:5432, warehouse:5432 or udp:5353=warehouse:53"
	f := forwardedPort{Protocol: localapi.ServeTCP}
	spec := arg
	for _, protocol := range []string{localapi.ServeTCP, localapi.ServeUDP} {
		if rest, ok := strings.CutPrefix(arg, protocol+":"); ok {
			f.Protocol, spec = protocol, rest
		}
	}
	local, remote, both := strings.Cut(spec, "=")
	if !both {
		local, remote = "", spec
	}
	host, number, err := net.SplitHostPort(remote)
	port, numberErr := strconv.ParseUint(number, 10, 16)
	if err != nil || numberErr != nil || port == 0 || host == "" {
		return f, bad
	}
	f.Host, f.Port = host, uint16(port)
	addr, here := netip.AddrFrom4([4]byte{127, 0, 0, 1}), f.Port
	if both {
		if i := strings.LastIndexByte(local, ':'); i >= 0 {
			if addr, err = netip.ParseAddr(strings.Trim(local[:i], "[]")); err != nil {
				return f, bad
			}
			local = local[i+1:]
		}
		n, err := strconv.ParseUint(local, 10, 16)
		if err != nil {
			return f, bad
		}
		here = uint16(n)
	}
	f.Listen = netip.AddrPortFrom(addr, here)
	return f, nil
}

// forwarding is a local port that is listened on.
type forwarding struct {
	forwardedPort
	p       *program
	c       *cli.Context
	client  *localapi.Client
	timeout time.Duration
	splicer *splice.Splicer
	tcp     net.Listener
	udp     *net.UDPConn

	mu     sync.Mutex // guards active
	active int
}

func (p *program) forward(c *cli.Context) error {
	if c.NArg() == 0 {
		return positional(c, 1, 1)
	}
	timeout, err := durationFlag(c, "timeout")
	if err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	splicer := splice.New()
	var all []*forwarding
	defer func() {
		for _, f := range all {
			f.close()
		}
	}()
	for _, arg := range c.Args().Slice() {
		wanted, err := parseForward(arg)
		if err != nil {
			return err
		}
		all = append(all, &forwarding{forwardedPort: wanted, p: p, c: c, client: client, timeout: timeout, splicer: splicer})
	}
	for _, f := range all {
		if err := f.check(c.Context); err != nil {
			return err
		}
	}
	var result forwardResult
	for _, f := range all {
		if err := f.listen(); err != nil {
			return err
		}
		result.Forwarded = append(result.Forwarded, f.forwardedPort)
	}
	if err := p.forwardReady(c, result); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(c.Context)
	for _, f := range all {
		group.Go(func() error { return f.run(ctx) })
	}
	return group.Wait()
}

// forwardReady says that it works now.
func (p *program) forwardReady(c *cli.Context, r forwardResult) error {
	for _, f := range r.Forwarded {
		fmt.Fprintf(p.stderr, "forwarding %s:%s to %s\n", f.Protocol, f.Listen, safe(net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port)))))
		if !f.Listen.Addr().IsLoopback() {
			fmt.Fprintf(p.stderr, "warning: whoever can reach %s speaks as this agent\n", f.Listen)
		}
	}
	if c.Bool("json") {
		return writeJSON(p.stdout, r, "")
	}
	return nil
}

// check finds out before anything is listened on whether the agent is known.
func (f *forwarding) check(ctx context.Context) error {
	a, err := ask(ctx, askLimit, func(ctx context.Context) (localapi.Agent, error) { return f.client.WhoIs(ctx, f.Host) })
	if err == nil && a.Trust != localapi.TrustMutual && a.Trust != localapi.TrustSelf {
		fmt.Fprintf(f.p.stderr, "warning: you and %s do not trust each other yet (%s): pilot trust %s\n", safe(a.Name), safe(a.Trust), safe(a.Name))
	}
	return err
}

func (f *forwarding) listen() error {
	var err error
	if f.Protocol == localapi.ServeUDP {
		if f.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(f.Listen)); err == nil {
			f.Listen = f.udp.LocalAddr().(*net.UDPAddr).AddrPort()
		}
	} else {
		if f.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(f.Listen)); err == nil {
			f.Listen = f.tcp.Addr().(*net.TCPAddr).AddrPort()
		}
	}
	if err == nil {
		f.Listen = netip.AddrPortFrom(f.Listen.Addr().Unmap(), f.Listen.Port())
		return nil
	}
	e := &localapi.Error{Code: localapi.CodePortTaken, Message: fmt.Sprintf("can't listen on %s: %v", f.Listen, err),
		Hint: fmt.Sprintf("choose another port: pilot forward 0=%s:%d takes a free one", f.Host, f.Port)}
	if !errors.Is(err, syscall.EADDRINUSE) {
		e.Code, e.Hint = localapi.CodePermission, "ports below 1024, and addresses that are not this host's, may not be available to you"
	}
	return e
}

func (f *forwarding) close() {
	if f.tcp != nil {
		f.tcp.Close()
	}
	if f.udp != nil {
		f.udp.Close()
	}
}

// run passes on until ctx ends.
func (f *forwarding) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, f.close)()
	if f.udp != nil {
		f.splicer.Flows(ctx, f.udp, splice.FlowOptions{
			Dial: f.dial, Admit: func(netip.Addr) bool { return f.begin() }, Done: func(netip.Addr) { f.end() },
			Reached: func(err error) { f.failed(ctx, err) }, Idle: forwardIdle, Counters: new(splice.Counters),
		})
		return ctx.Err()
	}
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, err := f.tcp.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // descriptors may be short
			select {
			case <-time.After(forwardPause):
			case <-ctx.Done():
			}
		case !f.begin():
			splice.Abort(conn)
		default:
			running.Go(func() {
				defer f.end()
				f.pass(ctx, conn)
			})
		}
	}
}

// pass makes one connection of a local one and one to the agent.
func (f *forwarding) pass(ctx context.Context, conn net.Conn) {
	far, err := f.dial(ctx)
	if err != nil {
		splice.Abort(conn)
		f.failed(ctx, err)
		return
	}
	// How it ends is told to both ends by how they are closed.
	_ = f.splicer.Join(ctx, conn, far, splice.Options{Half: halfLimit})
}

func (f *forwarding) dial(ctx context.Context) (net.Conn, error) {
	return f.client.Connect(ctx, localapi.ConnectRequest{Protocol: f.Protocol, Host: f.Host, Port: f.Port, Timeout: f.timeout})
}

// failed says why a connection was not made.
func (f *forwarding) failed(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		f.p.tell(f.c, err)
	}
}

func (f *forwarding) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active >= maxForwarded {
		return false
	}
	f.active++
	return true
}

func (f *forwarding) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active--
}
