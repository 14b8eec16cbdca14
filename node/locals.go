// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay"
)

// A daemon has any number of agents besides its own. Each is a Node with a state folder, a key, a name and a trust of its own,
// which talks with the coordinator for itself, and shares the engine: its interface, its UDP port and its relays.

const (
	// localsDir is the folder of their state folders, below the daemon's.
	localsDir = "agents"
	// maxLocals bounds how many there are: a stranger's first message is compared with the keys of all of them.
	maxLocals = 1024
	// localInviteLife is how long the invite of a new one lasts, which is used at once.
	localInviteLife = 10 * time.Minute
)

// locals are a daemon's agents besides its own.
type locals struct {
	begin chan *local // to be run

	mu   sync.Mutex
	list map[string]*local
}

// local is one of them. It doesn't change.
type local struct {
	name   string
	owner  uint32
	node   *Node            // nil: there is none, see failed
	api    *localapi.Server // its own
	failed error
	ctx    context.Context // of node's run
	cancel context.CancelFunc
	ended  chan struct{} // closed when that has ended
}

func newLocals() *locals { return &locals{begin: make(chan *local), list: map[string]*local{}} }

func (ls *locals) put(l *local) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.list[l.name] = l
}

func (ls *locals) get(name string) *local {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.list[name]
}

func (ls *locals) drop(name string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.list, name)
}

// all lists them by name.
func (ls *locals) all() []*local {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	list := make([]*local, 0, len(ls.list))
	for _, l := range ls.list {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b *local) int { return cmp.Compare(a.name, b.name) })
	return list
}

var errBeingMade = errors.New("it is being made")

// reserve takes a name for one that is being made.
func (ls *locals) reserve(name string) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	switch {
	case ls.list[name] != nil:
		return &localapi.Error{Code: localapi.CodeConflict, Message: "this daemon has an agent " + name + " already", Hint: "see them all: pilot agents --local"}
	case len(ls.list) >= maxLocals:
		return &localapi.Error{Code: localapi.CodeConflict, Message: fmt.Sprintf("this daemon has %d agents, as many as one can", maxLocals),
			Hint: "remove one (pilot agents rm NAME), or start another daemon with --state DIR"}
	}
	ls.list[name] = &local{name: name, failed: errBeingMade}
	return nil
}

func (n *Node) localDir(name string) string { return filepath.Join(n.folder.dir, localsDir, name) }

// openLocal reads the state of one, or makes it for a new one's owner.
func (n *Node) openLocal(e *engine, name string, owner *uint32) *local {
	ctx, cancel := context.WithCancel(context.Background())
	l := &local{name: name, ctx: ctx, cancel: cancel, ended: make(chan struct{})}
	log := n.log.With("local", name)
	node, err := newNode(Options{
		StateDir: n.localDir(name), Version: n.opts.Version, Log: log, Now: n.now, System: n.system, Sealing: n.opts.Sealing,
	}, e)
	if err != nil {
		l.failed = err
		return l
	}
	if owner != nil {
		node.saved.Owner = *owner
	}
	l.node, l.owner = node, node.saved.Owner
	l.api = localapi.NewServer(localapi.ServerOptions{
		Daemon: actingDaemon{node}, Trust: node, Checker: node, Proxies: node, Connector: node, Publisher: node, Log: log,
	})
	return l
}

// runLocals runs the agents that are known, and those that are added, until ctx ends. That one fails is its own trouble.
func (n *Node) runLocals(ctx context.Context, e *engine) error {
	entries, err := os.ReadDir(filepath.Join(n.folder.dir, localsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Error("the agents of this daemon can't be read", "error", err)
	}
	var group errgroup.Group
	run := func(l *local) {
		group.Go(func() error {
			defer close(l.ended)
			if l.node == nil {
				n.log.Error("an agent of this daemon can't be read", "local", l.name, "error", l.failed)
				return nil
			}
			defer context.AfterFunc(ctx, l.cancel)()
			defer context.AfterFunc(l.ctx, l.api.Close)()
			if err := l.node.runShared(l.ctx); err != nil {
				n.log.Error("an agent of this daemon ended", "local", l.name, "error", err)
			}
			return nil
		})
	}
	for _, entry := range entries {
		if entry.IsDir() && identity.ValidateName(entry.Name()) == nil {
			l := n.openLocal(e, entry.Name(), nil)
			n.locals.put(l)
			run(l)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return group.Wait()
		case l := <-n.locals.begin:
			run(l)
		}
	}
}

// errNotYours is the answer to those who want to act as an agent of somebody else's. It tells nothing about the agent.
func errNotYours(name string) error {
	return &localapi.Error{Code: localapi.CodeForbidden, Message: fmt.Sprintf("%q is no agent of this daemon that you may act as", name),
		Hint: "only root and the user who added an agent act as it; the agents: pilot agents --local"}
}

// owned finds an agent that belongs to the caller.
func (n *Node) owned(caller net.Conn, name string) (*local, error) {
	who, err := n.opts.Who(caller)
	l := n.locals.get(name)
	if err != nil || l == nil || !who.Owns(l.owner) {
		return nil, errNotYours(name)
	}
	if errors.Is(l.failed, errBeingMade) {
		return nil, &localapi.Error{Code: localapi.CodeConflict, Message: name + " is being made", Hint: "try again in a moment"}
	}
	return l, nil
}

// Acting implements [localapi.Locals].
func (n *Node) Acting(caller net.Conn, name string) (http.Handler, error) {
	l, err := n.owned(caller, name)
	if err != nil {
		return nil, err
	}
	if l.node == nil {
		return nil, explain(l.failed)
	}
	return l.api.Admitted(), nil
}

// AddLocal implements [localapi.Locals].
func (n *Node) AddLocal(ctx context.Context, caller net.Conn, r localapi.LocalRequest) (localapi.LocalAgent, error) {
	who, err := n.opts.Who(caller)
	if err != nil {
		return localapi.LocalAgent{}, explain(err)
	}
	a, err := n.addLocal(ctx, who.UID, r)
	return a, explain(err)
}

func (n *Node) addLocal(ctx context.Context, owner uint32, r localapi.LocalRequest) (a localapi.LocalAgent, err error) {
	if err := identity.ValidateName(r.Name); err != nil {
		return a, err
	}
	m, err := n.current()
	if err != nil {
		return a, err
	}
	if err := n.locals.reserve(r.Name); err != nil {
		return a, err
	}
	l, err := n.makeLocal(ctx, m, owner, r)
	if err != nil {
		n.locals.drop(r.Name)
		return a, err
	}
	n.locals.put(l)
	return n.describeLocal(l, nil), nil
}

// makeLocal makes one whose name is reserved. Where it fails nothing is left of it.
func (n *Node) makeLocal(ctx context.Context, m *membership, owner uint32, r localapi.LocalRequest) (*local, error) {
	if r.Invite == "" {
		made, err := n.invite(ctx, localapi.InviteRequest{Expires: localInviteLife, NoTrust: r.NoTrust})
		if err != nil {
			return nil, err
		}
		r.Invite = made.Invite
	}
	l := n.openLocal(m.engine, r.Name, &owner)
	if l.node == nil {
		return nil, l.failed
	}
	select {
	case n.locals.begin <- l:
	case <-n.stop:
		return nil, errors.Join(errNotUp(), l.node.unlock(), os.RemoveAll(n.localDir(r.Name)))
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), l.node.unlock(), os.RemoveAll(n.localDir(r.Name)))
	}
	_, err := l.node.Up(ctx, localapi.UpRequest{Name: r.Name, Invite: r.Invite, SOCKS5: r.SOCKS5, HTTPProxy: r.HTTPProxy})
	if err == nil || l.node.Member() {
		return l, nil // at the next start it tries again
	}
	return nil, errors.Join(err, n.endLocal(l))
}

// endLocal ends one and deletes all that is known of it.
func (n *Node) endLocal(l *local) error {
	l.cancel()
	<-l.ended
	return os.RemoveAll(n.localDir(l.name))
}

// RemoveLocal implements [localapi.Locals]. Where this daemon's own agent may, it ends the membership too.
func (n *Node) RemoveLocal(ctx context.Context, caller net.Conn, name string) (a localapi.LocalAgent, err error) {
	l, err := n.owned(caller, name)
	if err != nil {
		return a, err
	}
	a = n.describeLocal(l, nil)
	if err := n.revokeLocal(ctx, l); err != nil {
		n.log.Warn("the membership of a removed agent ends with its certificate only", "local", name, "error", err)
	}
	if err := n.endLocal(l); err != nil {
		return a, explain(err)
	}
	n.locals.drop(name)
	a.State, a.Error = localapi.StateDown, nil
	return a, nil
}

func (n *Node) revokeLocal(ctx context.Context, l *local) error {
	if l.node == nil || l.node.key.IsZero() {
		return nil
	}
	m, err := n.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return m.client.Load().Revoke(ctx, api.RevokeRequest{Agent: l.node.key.Public(), Reason: "removed from its host"})
}

// ListLocals implements [localapi.Locals].
func (n *Node) ListLocals(context.Context) (localapi.LocalList, error) {
	list := localapi.LocalList{Agents: []localapi.LocalAgent{}}
	links := map[identity.AgentPublic][]overlay.PeerStatus{}
	if m, err := n.current(); err == nil {
		for _, p := range m.engine.overlay.Status().Peers {
			links[p.Local] = append(links[p.Local], p)
		}
	}
	for _, l := range n.locals.all() {
		list.Agents = append(list.Agents, n.describeLocal(l, links))
	}
	return list, nil
}

// describeLocal tells how things stand with one. links are those of all agents, nil: they are not looked at.
func (n *Node) describeLocal(l *local, links map[identity.AgentPublic][]overlay.PeerStatus) localapi.LocalAgent {
	a := localapi.LocalAgent{Name: l.name, Owner: l.owner, State: localapi.StateStarting}
	if l.node == nil {
		if !errors.Is(l.failed, errBeingMade) {
			a.State, a.Error = localapi.StateDown, problemOf(l.failed)
		}
		return a
	}
	l.node.mu.Lock()
	defer l.node.mu.Unlock()
	m := l.node.member
	if m == nil {
		return a
	}
	a.State, a.FQDN, a.Address, a.Key = localapi.StateUp, l.name+"."+m.zone, identity.Address(m.book.network, m.book.self), m.book.self
	if m.link.err != nil && !m.link.connected {
		a.Error = problemOf(m.link.err)
	}
	for _, p := range links[m.book.self] {
		if m.book.trust(p.Agent, l.node.now()) == localapi.TrustMutual {
			a.Peers++
		}
		if p.State == overlay.StateUp {
			a.Sessions++
		}
		a.RxBytes += p.RxBytes
		a.TxBytes += p.TxBytes
	}
	return a
}

func problemOf(err error) *localapi.Problem {
	p := &localapi.Problem{Code: localapi.CodeInternal, Message: err.Error()}
	if e := (*localapi.Error)(nil); errors.As(explain(err), &e) {
		p.Code, p.Message, p.Hint = e.Code, e.Message, e.Hint
	}
	return p
}

// actingDaemon is an agent besides the daemon's own, as its owner may control it: without what concerns the whole daemon.
type actingDaemon struct{ *Node }

// Up implements [localapi.Daemon].
func (actingDaemon) Up(context.Context, localapi.UpRequest) (localapi.UpResult, error) {
	return localapi.UpResult{}, errUsage("this agent is up as long as its daemon is", "leave out --agent")
}

// Down implements [localapi.Daemon].
func (actingDaemon) Down(context.Context) (localapi.DownResult, error) {
	return localapi.DownResult{}, errUsage("this agent is up as long as its daemon is", "to end it for good: pilot agents rm NAME")
}
