// SPDX-License-Identifier: Apache-2.0

// Package sandbox runs an unmodified program as an agent of its own, without any privilege.
//
// The program runs in namespaces of its own, with one interface, whose packets this process carries: those for the network
// are a node's in this process, all others end in a userspace stack, from where connections are made that the rules allow.
// Names are answered by the node too. It is a sandbox for the network: what files the program may read and write is not its
// matter, but for those by which it could get around it.
package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/netstack"
	"github.com/pilot-protocol/pilot/node"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/policy"
)

// Options of New. Program, Env, StateDir and Name are needed, and Invite for a new agent.
type Options struct {
	// Program is the command line to run, and Env its environment.
	Program, Env []string
	// StateDir is the folder of the agent, and Ephemeral says that both are of no use after the program.
	StateDir  string
	Ephemeral bool
	Name      string
	// Egress is what the program may reach outside of its network; nil: nothing.
	Egress *policy.Egress
	// Invite is asked for an invite where the agent is no member of a network yet.
	Invite func(context.Context) (string, error)
	// Warn is told, before the program begins, what it has to do without; nil: nobody is.
	Warn    func(string)
	Hide    []string // more folders that the program must not see
	Version string
	Log     *slog.Logger
}

// Sandbox is a program that can be run once.
type Sandbox struct {
	o       Options
	system  *system
	node    *node.Node
	gateway *netstack.Gateway
	egress  *egress
}

// New makes everything that can fail before an invite is used up: the namespaces, the interface, the node. Run ends them.
func New(o Options) (*Sandbox, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Sandbox{o: o, egress: newEgress(o.Egress, platform.OwnAddress, time.Now)}
	err := s.egress.check()
	if err == nil {
		err = s.open()
	}
	if err != nil {
		s.close()
		return nil, explain(err)
	}
	return s, nil
}

func (s *Sandbox) open() error {
	started, err := platform.StartSandbox(stageArgs(s.o.Program), s.o.Env)
	if err != nil {
		return err
	}
	s.system = &system{
		System: node.Host(s.o.StateDir, s.o.Log), stage: &stage{Sandbox: started}, egress: s.egress, hostname: s.o.Name, hide: hidden(s.o),
	}
	if _, s.system.file, err = s.system.stage.hear(); err != nil {
		return err
	}
	if err := started.Hold(); err != nil {
		return err
	}
	if s.gateway, err = netstack.NewGateway(netstack.GatewayOptions{
		Sources: sources(), Open: s.egress.open, Refused: s.egress.never, Flows: maxFlows, MTU: linkMTU, Log: s.o.Log,
	}); err != nil {
		return err
	}
	s.system.outside = s.gateway.Device("outside")
	s.system.splitter.mtu, s.system.splitter.outside = networkMTU, s.system.outside
	s.node, err = node.New(node.Options{StateDir: s.o.StateDir, Version: s.o.Version, Log: s.o.Log, System: s.system, Egress: s.egress})
	return err
}

// maxFlows is how many connections and flows of datagrams there may be outside at a time.
const maxFlows = 2048

// Status tells what the rules decided.
func (s *Sandbox) Status() localapi.Egress { return s.egress.Status() }

// sources are what the sandbox's kernel may send from: the agent's address, which is not known before the network is, and
// the one for IPv4.
func sources() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("fd00::/8"), netip.PrefixFrom(outsideAddress(), 32)}
}

// hidden are the folders by which the program could act as its own node or as another one, and the sockets of services.
func hidden(o Options) []string {
	dirs := append([]string{o.StateDir, platform.DefaultStateDir(), filepath.Dir(platform.SocketPath(platform.DefaultStateDir()))}, o.Hide...)
	return append(dirs, platform.HostSockets(dirs)...)
}

// close ends what New has made.
func (s *Sandbox) close() {
	if s.system != nil {
		s.system.stage.Kill()
		_ = s.system.stage.Close()
		_, _ = s.system.stage.Wait()
		if s.system.file != nil {
			_ = s.system.file.Close()
		}
	}
	if s.gateway != nil {
		_ = s.gateway.Close()
	}
}

// Run joins the network, runs the program, and returns its exit status after its end. Until the program runs it ends with
// ctx; later only a signal ends it, or the end of the node.
func (s *Sandbox) Run(ctx context.Context, signals <-chan os.Signal) (status int, err error) {
	defer s.close()
	group, inner := errgroup.WithContext(context.WithoutCancel(ctx))
	inner, cancel := context.WithCancel(inner)
	defer cancel()
	group.Go(func() error {
		defer cancel() // without a network the program is of no use
		return s.node.Run(inner)
	})
	group.Go(s.system.splitter.run)
	group.Go(func() error {
		<-inner.Done()
		return s.system.outside.Close()
	})
	err = s.startWithin(ctx, inner)
	if err == nil {
		status, err = s.await(inner, signals)
	}
	if s.o.Ephemeral && inner.Err() == nil {
		s.leave()
	}
	ended := inner.Err() != nil
	cancel()
	if failed := group.Wait(); failed != nil && ended && err == nil {
		err = fmt.Errorf("the network ended, and the program with it: %w", failed)
	}
	return status, explain(err)
}

// startWithin is start that also ends with the caller's context.
func (s *Sandbox) startWithin(ctx, inner context.Context) error {
	starting, stop := context.WithCancel(inner)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	return s.start(starting)
}

// await returns the program's status when it has ended.
func (s *Sandbox) await(ctx context.Context, signals <-chan os.Signal) (status int, err error) {
	var forwarding sync.WaitGroup
	ended := make(chan struct{})
	forwarding.Go(func() { s.forward(ctx, signals, ended) })
	status, err = s.system.stage.Wait()
	close(ended)
	forwarding.Wait()
	return status, err
}

// start brings the network up and lets the program begin.
func (s *Sandbox) start(ctx context.Context) error {
	request := localapi.UpRequest{Name: s.o.Name, TUN: localapi.TUNKernel}
	if !s.node.Member() {
		invite, err := s.o.Invite(ctx)
		if err != nil {
			return err
		}
		request.Invite = invite
	}
	result, err := s.node.Up(ctx, request)
	if err != nil {
		return err
	}
	if s.o.Warn != nil {
		for _, w := range append(result.Warnings, s.system.warned()...) {
			s.o.Warn(w)
		}
	}
	if _, err := s.system.stage.ask(order{Start: true}); err != nil {
		return fmt.Errorf("start the program: %w", err)
	}
	return nil
}

// forward passes signals on until the program has ended. Without the node it is of no use any more.
func (s *Sandbox) forward(ctx context.Context, signals <-chan os.Signal, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case <-ctx.Done():
			s.system.stage.Kill()
			return
		case received := <-signals:
			if number, ok := received.(syscall.Signal); ok {
				_ = s.system.stage.Signal(number) // it may have ended just now
			}
		}
	}
}

// leave gives the agent up. Where the coordinator can't be told, the certificate ends by itself within a day.
func (s *Sandbox) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	if err := s.node.Leave(ctx); err != nil {
		s.o.Log.Warn("the coordinator doesn't know that this agent has left", "error", err)
	}
}

// farewell bounds how long an agent may take to leave.
const farewell = 5 * time.Second
