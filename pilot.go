// SPDX-License-Identifier: Apache-2.0

package pilot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// Options of Up. The zero value is of use only where there is a state folder already.
type Options struct {
	// Name is the agent's wished name: a-z, 0-9 and hyphens. Empty: the one it has, or the host's.
	Name string
	// Invite to a network, pilot://…, as pilot invite and Node.Invite make it. It is not used where the state folder is a
	// member of that network already. It is a secret.
	Invite string
	// NewNetwork makes a network of that name, with its coordinator inside of this node, where there is neither an invite
	// nor a state.
	NewNetwork string
	// CoordinatorListen is host:port of that coordinator; empty: port 7745 of all addresses.
	CoordinatorListen string
	// StateDir is a folder of this agent's alone, made with 0700. Empty: pilot/sdk/Name in the user's folder for states,
	// such as ~/.local/state.
	StateDir string
	// NoPortMapping leaves the gateway of this host's network alone.
	NoPortMapping bool
	// LocalAPI lets the CLI look at the node, by a socket in the state folder: pilot status --state DIR.
	LocalAPI bool
	// Log may be nil. It gets no secrets.
	Log *slog.Logger
}

// Node is an agent in this process. Its methods are safe for concurrent use.
type Node struct {
	node  *node.Node
	self  Agent
	http  *http.Transport
	stop  context.CancelFunc
	ended chan struct{}
	err   error // of Run, once ended is closed
}

// Up makes this process an agent and returns when its network is usable. ctx is for that only: the node goes on until Close.
// An Up that ctx interrupts returns an error that is ctx.Err().
func Up(ctx context.Context, o Options) (*Node, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := o.stateDir()
	if err != nil {
		return nil, err
	}
	inner, err := node.New(node.Options{StateDir: dir, Version: version(), Log: o.Log, System: newSystem(dir, o)})
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	n := &Node{node: inner, stop: stop, ended: make(chan struct{})}
	n.http = &http.Transport{
		DialContext: n.DialContext, ForceAttemptHTTP2: true, MaxIdleConns: 100, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: time.Second,
	}
	go func() {
		n.err = inner.Run(running)
		stop()
		close(n.ended)
	}()
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(running, cancel)() // there would be nobody to do it
	if err := n.up(alive, o); err != nil {
		// What was interrupted may call it something else, such as a coordinator that can't be reached.
		if why := ctx.Err(); why != nil && !errors.Is(err, why) {
			err = fmt.Errorf("%w: %w", why, err)
		}
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// up joins, makes or resumes the network.
func (n *Node) up(ctx context.Context, o Options) error {
	request := localapi.UpRequest{
		Name: o.Name, Network: o.NewNetwork, Invite: o.Invite, CoordinatorListen: o.CoordinatorListen,
		TUN: localapi.TUNUserspace, SOCKS5: localapi.ProxyOff, HTTPProxy: localapi.ProxyOff,
	}
	switch {
	case o.Invite != "" && o.NewNetwork != "":
		return &localapi.Error{Code: localapi.CodeUsage, Message: "an invite names its network already", Hint: "leave Invite or NewNetwork out"}
	case n.invited(o.Invite):
		request.Invite = ""
	case o.Invite == "" && o.NewNetwork == "" && !n.node.Member():
		return &localapi.Error{Code: localapi.CodeUsage, Message: "this agent is in no network yet",
			Hint: "give an Invite (pilot invite makes one), or a name as NewNetwork"}
	}
	result, err := n.node.Up(ctx, request)
	if err != nil {
		select {
		case <-n.ended:
			return errors.Join(n.err, err)
		default:
			return err
		}
	}
	n.self = Agent{Name: result.Name, FQDN: result.FQDN, Key: result.Key.String(), Address: result.Address}
	for _, w := range result.Warnings {
		o.Log.Warn(w)
	}
	return nil
}

// invited reports whether an invite leads where this agent is already.
func (n *Node) invited(text string) bool {
	invite, err := identity.ParseInvite(text)
	return err == nil && n.node.MemberOf(invite.Authority)
}

// stateDir is where the agent's state is kept.
func (o Options) stateDir() (string, error) {
	if o.StateDir != "" {
		return filepath.Abs(o.StateDir)
	}
	if err := identity.ValidateName(o.Name); err != nil {
		return "", &localapi.Error{Code: localapi.CodeUsage, Message: "the agent's state has no place: " + strings.TrimPrefix(err.Error(), "identity: "),
			Hint: "give a StateDir, or a Name of a-z, 0-9 and hyphens"}
	}
	base := platform.UserStateDir()
	if base == "" {
		base = platform.DefaultStateDir()
	}
	return filepath.Join(base, "sdk", o.Name), nil
}

// version is this module's, as the program was built with it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == "github.com/pilot-protocol/pilot" {
			return m.Version
		}
	}
	return ""
}

// settleLimit is how long Close waits for other agents to get what was written to connections that were closed before.
const settleLimit = time.Second

// Close ends the node and returns when nothing of it is left. The agent stays a member: Up brings it back.
func (n *Node) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
	defer cancel()
	n.node.Settle(ctx)
	n.stop()
	<-n.ended
	n.http.CloseIdleConnections()
	return n.err
}

// Done is closed when the node has ended, by Close or by a failure that Close returns.
func (n *Node) Done() <-chan struct{} { return n.ended }

// Addr is the agent's address. It never changes.
func (n *Node) Addr() netip.Addr { return n.self.Address }

// Self is this agent, as others see it.
func (n *Node) Self() Agent { return n.self }

// Listen listens on a TCP port of the agent's address: Listen("tcp", ":80"). Only agents with whom trust is mutual get
// through to it. Port 0 chooses one.
func (n *Node) Listen(network, address string) (net.Listener, error) {
	return n.node.Listen(context.Background(), network, address)
}

// ListenPacket is Listen for UDP: ListenPacket("udp", ":53").
func (n *Node) ListenPacket(network, address string) (net.PacketConn, error) {
	return n.node.ListenPacket(context.Background(), network, address)
}

// DialContext connects to an agent's name or address and a port, by "tcp" or "udp".
func (n *Node) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return n.node.DialContext(ctx, network, address)
}

// Dial is DialContext without a context.
func (n *Node) Dial(network, address string) (net.Conn, error) {
	return n.DialContext(context.Background(), network, address)
}

// HTTPClient returns a client whose requests go to agents: http://planner/. It uses no proxy, and has no limit of time.
func (n *Node) HTTPClient() *http.Client { return &http.Client{Transport: n.http} }
