// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pilot-protocol/pilot/coordinator"
	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

const (
	defaultNetwork = "pilot"
	defaultListen  = ":7745"
	coordinatorDir = "coordinator" // below the state folder
	// syncLimit is how long up waits for the coordinator before it goes on with what the node knows.
	syncLimit = 5 * time.Second
)

// Up joins the network of the invite, or makes a new one, or goes on with the one that is known. It returns when the
// network is usable.
func (n *Node) Up(ctx context.Context, r localapi.UpRequest) (localapi.UpResult, error) {
	select {
	case n.upLock <- struct{}{}:
		defer func() { <-n.upLock }()
	case <-ctx.Done():
		return localapi.UpResult{}, ctx.Err()
	}
	result, err := n.up(ctx, r)
	if n.shared != nil {
		n.shared.slim.Reset(slimAfter)
	} else {
		slim(n.log)
	}
	return result, explain(err)
}

// slim gives back what coming up took, most of which is needed once: a daemon that has nothing to do should be small. It
// looks at all memory that is in use.
func slim(log *slog.Logger) {
	debug.FreeOSMemory()
	if err := platform.Trim(); err != nil {
		log.Debug("the program's pages stay in memory", "err", err)
	}
}

func (n *Node) up(ctx context.Context, r localapi.UpRequest) (result localapi.UpResult, err error) {
	invite, err := n.checkUp(r)
	if err != nil {
		return result, err
	}
	if n.key.IsZero() {
		if n.key, err = n.folder.agentKey(func() (identity.AgentKey, error) { return identity.NewAgentKey(rand.Reader) }); err != nil {
			return result, err
		}
	}
	if err := n.setAvoided(r.AvoidJurisdictions); err != nil {
		return result, err
	}
	n.setTUN(r.TUN)
	n.setProxies(r)
	if err := n.setRelay(r.Relay); err != nil {
		return result, err
	}
	n.mu.Lock()
	saved, running := n.saved, n.member != nil
	n.mu.Unlock()
	switch {
	case !saved.member() && invite == nil && n.shared != nil:
		return result, errUsage("an agent joins by an invite", "")
	case !saved.member() && invite == nil:
		if err := n.create(ctx, r); err != nil {
			return result, err
		}
		result.Created = true
	case invite != nil:
		m, err := n.join(ctx, *invite, r.Name, "")
		if err != nil {
			return result, err
		}
		if h := n.hosted; h != nil && !saved.Hosted { // of a network that could not be made
			n.hosted = nil
			h.end()
		}
		result.Joined = true
		result.Inviter = inviterName(m, invite.Authority)
	case saved.Hosted && !running:
		if _, err := n.host(ctx, saved.Listen, saved.Network); err != nil {
			return result, err
		}
	}
	if err := n.bringUp(ctx); err != nil {
		return result, err
	}
	n.describe(&result)
	if result.Created {
		made, err := n.Invite(ctx, localapi.InviteRequest{})
		if err != nil {
			result.Warnings = append(result.Warnings, "no invite could be made: "+err.Error()+"; try: pilot invite")
		}
		result.Invite = made.Invite
	}
	return result, nil
}

// checkUp looks for everything that can be refused before anything changes.
func (n *Node) checkUp(r localapi.UpRequest) (*identity.Invite, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.Name != "" {
		if err := identity.ValidateName(r.Name); err != nil {
			return nil, err
		}
		if n.saved.member() && r.Name != n.saved.Name {
			return nil, &localapi.Error{
				Code: localapi.CodeConflict, Message: fmt.Sprintf("this agent is %s already; a name stays with its key", n.saved.Name),
				Hint: "for an agent with another name use another state folder: --state DIR",
			}
		}
	}
	if r.Network != "" {
		if err := identity.ValidateNetworkName(r.Network); err != nil {
			return nil, err
		}
		if n.saved.member() && r.Network != n.saved.Network {
			return nil, n.otherNetwork(r.Network)
		}
	}
	for _, label := range r.AvoidJurisdictions {
		if err := identity.ValidateJurisdiction(label); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(n.checkTUNLocked(r.TUN), n.checkProxiesLocked(r)); err != nil {
		return nil, err
	}
	if h := r.Relay; h != nil {
		if err := relayOptions(*h, "").Check(); err != nil {
			return nil, err
		}
	}
	if r.Invite == "" {
		return nil, nil
	}
	invite, err := identity.ParseInvite(r.Invite)
	if err != nil {
		return nil, &localapi.Error{Code: localapi.CodeInviteInvalid, Message: strings.ReplaceAll(err.Error(), "identity: ", ""),
			Hint: "copy the whole invite, from pilot:// on; or ask for a new one: pilot invite"}
	}
	if !invite.Expires.IsZero() && !n.now().Before(invite.Expires) {
		return nil, &localapi.Error{Code: localapi.CodeInviteExpired, Message: "the invite expired at " + invite.Expires.Format(time.RFC3339),
			Hint: "ask for a new one: pilot invite; is this host's clock right?"}
	}
	if n.saved.member() && invite.Authority != n.saved.Authority {
		return nil, n.otherNetwork(invite.NetworkName)
	}
	return &invite, nil
}

// checkTUNLocked refuses another way for packets to get to programs than the one in use.
func (n *Node) checkTUNLocked(want string) error {
	switch want {
	case "", localapi.TUNAuto:
		return nil
	case localapi.TUNKernel, localapi.TUNUserspace:
	default:
		return errUsage(fmt.Sprintf("tun: %q is no mode", want), "modes are auto, kernel and userspace")
	}
	if n.member == nil {
		return nil
	}
	if _, mode, _ := n.member.seat.describe(); mode != want {
		return &localapi.Error{Code: localapi.CodeConflict, Message: "the network is up in " + mode + " mode",
			Hint: "to change that: pilot down, then pilot up --tun=" + want}
	}
	return nil
}

// setTUN keeps how packets shall get to programs from now on.
func (n *Node) setTUN(want string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member == nil && want != "" {
		n.saved.TUN = want
	}
}

// setAvoided keeps the jurisdictions whose relays are not to be used. It comes before everything that uses relays.
func (n *Node) setAvoided(labels []string) error {
	if labels == nil {
		return nil
	}
	labels = slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(labels))), func(l string) bool { return l == "" })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.saved.AvoidJurisdictions = labels
	if n.member == nil {
		return n.saveLocked()
	}
	return errors.Join(n.applyLocked(), n.saveLocked())
}

// setRelay keeps what kind of relay the coordinator in this process shall be.
func (n *Node) setRelay(h *localapi.HostedRelay) error {
	if h == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.saved.Relay = *h
	return n.saveLocked()
}

// relayOptions are those of the coordinator in this process. The node's own UDP port is left to the node.
func relayOptions(h localapi.HostedRelay, listen string) coordinator.RelayOptions {
	o := coordinator.RelayOptions{Off: h.Off, Name: h.Name, Region: h.Region, Jurisdiction: h.Jurisdiction}
	if _, p, err := net.SplitHostPort(listen); err == nil && p == strconv.Itoa(port) {
		o.UDPPort = port + 1
	}
	return o
}

func (n *Node) otherNetwork(name string) error {
	return &localapi.Error{
		Code: localapi.CodeConflict, Message: fmt.Sprintf("this agent is in the network %s; it can't be in %s as well", n.saved.Network, name),
		Hint: "for a second network use another state folder: --state DIR",
	}
}

// create makes a network: its authority, its coordinator in this process, and this agent as the first member.
func (n *Node) create(ctx context.Context, r localapi.UpRequest) error {
	network, listen := r.Network, r.CoordinatorListen
	if network == "" {
		network = defaultNetwork
	}
	if listen == "" {
		listen = defaultListen
	}
	c, err := n.host(ctx, listen, network)
	if err != nil {
		return err
	}
	listen = chosenPort(listen, c.Addr())
	key, err := identity.NewJoinKey(rand.Reader)
	if err != nil {
		return err
	}
	if err := c.CreateInvite(ctx, api.InviteRequest{
		Join: key.Public(), Uses: 1, Expires: n.now().Add(10 * time.Minute), Tags: []string{api.TagAdmin},
	}); err != nil {
		return err
	}
	founding := identity.Invite{
		NetworkName: network, Authority: c.Authority(), Coordinators: loopback(c.Addr()), Key: key,
	}
	_, err = n.join(ctx, founding, r.Name, listen)
	return err
}

// hosted is the coordinator in this process.
type hosted struct {
	*coordinator.Coordinator
	listen, network string
	end             func() // returns when it has ended
}

// host starts the coordinator in this process, unless it runs since an earlier try. It ends with the daemon.
func (n *Node) host(ctx context.Context, listen, network string) (*coordinator.Coordinator, error) {
	if h := n.hosted; h != nil {
		if h.network == network && (h.listen == listen || chosenPort(h.listen, h.Addr()) == listen) {
			return h.Coordinator, nil
		}
		n.hosted = nil
		h.end()
	}
	n.mu.Lock()
	authority, relay := n.saved.Authority, n.saved.Relay
	n.mu.Unlock()
	var advertise []string // port 0: nobody knows it yet
	if _, port, err := net.SplitHostPort(listen); err == nil && port != "0" {
		advertise = n.advertised(authority, listen)
	}
	c, err := coordinator.New(coordinator.Options{
		Listen: listen, StateDir: filepath.Join(n.folder.dir, coordinatorDir), Network: network,
		Log: n.log.With("part", "coordinator"), Now: n.now, Advertise: advertise, Relay: relayOptions(relay, listen), Sealing: n.opts.Sealing,
	})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &localapi.Error{Code: localapi.CodePortTaken, Message: "the coordinator's address " + listen + " is in use",
			Hint: "choose another with --coordinator-listen HOST:PORT; or join the network that is there, with an invite"}
	}
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, errUsage("the coordinator can't listen on "+listen+": that is no address of this host",
			"give --coordinator-listen an address of this host, or a port alone, as :7745")
	}
	if err != nil {
		return nil, err
	}
	wanted, unwanted := context.WithCancel(context.Background())
	ended := make(chan struct{})
	err = n.start(ctx, func(ctx context.Context) error {
		defer close(ended)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(wanted, cancel)()
		if err := c.Run(ctx); ctx.Err() == nil {
			return err
		}
		return nil // ended on purpose, perhaps while it was still starting
	})
	if err != nil {
		unwanted()
		c.Close()
		return nil, err
	}
	n.served.Store(c)
	n.hosted = &hosted{Coordinator: c, listen: listen, network: network, end: func() { unwanted(); <-ended }}
	return c, nil
}

// chosenPort puts the port that the system chose in the place of a 0, so that the coordinator keeps it.
func chosenPort(listen string, a net.Addr) string {
	host, port, err := net.SplitHostPort(listen)
	t, ok := a.(*net.TCPAddr)
	if err != nil || !ok || port != "0" {
		return listen
	}
	return net.JoinHostPort(host, strconv.Itoa(t.Port))
}

// advertised lists host:port of a coordinator on this host as others reach it, at most eight.
func (n *Node) advertised(network identity.AuthorityPublic, listen string) []string {
	addrs, err := n.system.Addresses()
	if err != nil {
		n.log.Warn("this host's addresses can't be read", "error", err)
	}
	// The overlay's own address is no way in.
	return coordinator.Advertised(listen, slices.DeleteFunc(addrs, identity.NetworkPrefix(network).Contains))
}

// loopback is how this host itself reaches a coordinator that listens on a.
func loopback(a net.Addr) []string {
	t, ok := a.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return []string{a.String()}
	}
	return []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(t.Port)), net.JoinHostPort("::1", strconv.Itoa(t.Port))}
}
