// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/serve"
	"github.com/pilot-protocol/pilot/platform"
)

// savedPort is a published port in node.json, with who published it: that decides what it may lead to.
type savedPort struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
	Target   string `json:"target"`
	UID      uint32 `json:"uid,omitempty"`
	Full     bool   `json:"full,omitempty"` // by root, or the daemon's own user
}

// servedPorts are those that were saved.
func servedPorts(saved []savedPort) ([]serve.Port, error) {
	var ports []serve.Port
	for _, s := range saved {
		t, err := serve.ParseTarget(s.Target, s.Port)
		if err != nil {
			return nil, err
		}
		if s.Port == 0 || !serve.Known(s.Protocol) {
			return nil, fmt.Errorf("port %d of %q can't be published", s.Port, s.Protocol)
		}
		ports = append(ports, serve.Port{Protocol: s.Protocol, Port: s.Port, Target: t, Publisher: serve.Publisher{UID: s.UID, Full: s.Full}})
	}
	return ports, nil
}

func savedPorts(ports []serve.Port) []savedPort {
	var saved []savedPort
	for _, p := range ports {
		saved = append(saved, savedPort{Protocol: p.Protocol, Port: p.Port, Target: p.Target.String(), UID: p.Publisher.UID, Full: p.Publisher.Full})
	}
	return saved
}

// peers is the network as published ports see it.
type peers struct {
	sockets
	node *Node
}

func (p peers) Caller(a netip.Addr) (localapi.Agent, error) { return p.node.Caller(a) }

// newServer makes what publishes ports of an agent's.
func (n *Node) newServer(s *seat) *serve.Server {
	return serve.New(serve.Options{
		Network: peers{sockets: s.sockets, node: n}, Prefix: s.engine.prefix, Socket: s.engine.socket, Log: n.log.With("part", "serve"),
	})
}

// republishPorts publishes what was published before. What can't be is tried again, and shown.
func (n *Node) republishPorts(ctx context.Context, m *membership) error {
	select {
	case n.serveLock <- struct{}{}:
		defer func() { <-n.serveLock }()
	case <-ctx.Done():
		return nil
	}
	n.mu.Lock()
	saved := n.saved.Served
	n.mu.Unlock()
	ports, err := servedPorts(saved)
	if err != nil {
		return damaged(nodeFile, err)
	}
	if err := m.served.Set(ctx, ports); err != nil && ctx.Err() == nil {
		n.log.Warn("not all ports can be published", "error", err)
	}
	return nil
}

// publisher says who asks for a port.
func publisher(ctx context.Context) (serve.Publisher, error) {
	conn := localapi.CallerConn(ctx)
	if conn == nil { // a program that embeds this node
		return serve.Publisher{Full: true, UID: ownUID()}, nil
	}
	return publisherOf(platform.PeerCaller(conn))
}

func publisherOf(c platform.Caller, err error) (serve.Publisher, error) {
	if err != nil || !c.Known {
		return serve.Publisher{}, &localapi.Error{Code: localapi.CodePermission, Message: "it can't be told who asks"}
	}
	// On Windows whoever could open the pipe is an administrator or this user.
	full := runtime.GOOS == "windows" || c.UID == 0 || c.UID == ownUID()
	return serve.Publisher{UID: c.UID, Full: full}, nil
}

func ownUID() uint32 { return uint32(max(os.Geteuid(), 0)) }

// ServeList lists what is published.
func (n *Node) ServeList(context.Context) (localapi.ServeList, error) {
	m, err := n.current()
	if err != nil {
		return localapi.ServeList{}, err
	}
	return localapi.ServeList{Served: m.served.Status()}, nil
}

// Serve publishes a port of this host, or takes it back. It holds over restarts.
func (n *Node) Serve(ctx context.Context, r localapi.ServeRequest) (localapi.ServeList, error) {
	select {
	case n.serveLock <- struct{}{}:
		defer func() { <-n.serveLock }()
	case <-ctx.Done():
		return localapi.ServeList{}, ctx.Err()
	}
	if r.Port == 0 || r.Protocol != "" && !serve.Known(r.Protocol) {
		return localapi.ServeList{}, errUsage(fmt.Sprintf("%q, port %d can't be published", r.Protocol, r.Port), "protocols are tcp, udp and http, ports 1 to 65535")
	}
	switch r.Action {
	case localapi.ActionPublish:
		list, err := n.publishPort(ctx, r)
		return list, explain(err)
	case localapi.ActionRemove:
		list, err := n.unpublish(ctx, r)
		return list, explain(err)
	}
	return localapi.ServeList{}, errUsage("unknown action "+r.Action, "actions are publish and remove")
}

func (n *Node) publishPort(ctx context.Context, r localapi.ServeRequest) (list localapi.ServeList, err error) {
	p := serve.Port{Protocol: r.Protocol, Port: r.Port}
	if p.Protocol == "" {
		p.Protocol = localapi.ServeTCP
	}
	if p.Target, err = serve.ParseTarget(r.Target, r.Port); err != nil {
		return list, err
	}
	if p.Publisher, err = publisher(ctx); err != nil {
		return list, err
	}
	m, before, err := n.servedNow()
	if err != nil {
		return list, err
	}
	if err := m.served.Admit(ctx, p); err != nil {
		return list, err
	}
	after := append(slices.DeleteFunc(slices.Clone(before), p.Same), p)
	if err := m.served.Set(ctx, after); err != nil {
		if failing := m.served.Failing(p); failing != nil {
			_ = m.served.Set(ctx, before) // its errors are shown by the status
			return list, failing
		}
	}
	return n.keepPorts(m, after, p.Same)
}

func (n *Node) unpublish(ctx context.Context, r localapi.ServeRequest) (list localapi.ServeList, err error) {
	m, before, err := n.servedNow()
	if err != nil {
		return list, err
	}
	unwanted := func(p serve.Port) bool { return p.Port == r.Port && (r.Protocol == "" || p.Protocol == r.Protocol) }
	for _, s := range m.served.Status() {
		if s.Port == r.Port && (r.Protocol == "" || s.Protocol == r.Protocol) {
			list.Served = append(list.Served, s)
		}
	}
	after := slices.DeleteFunc(slices.Clone(before), unwanted)
	if len(after) == len(before) {
		return list, &localapi.Error{Code: localapi.CodeNotFound, Message: fmt.Sprintf("port %d is not published", r.Port), Hint: "see: pilot serve ls"}
	}
	if err := m.served.Set(ctx, after); err != nil {
		n.log.Warn("not all ports can be published", "error", err)
	}
	_, err = n.keepPorts(m, after, func(serve.Port) bool { return false })
	return list, err
}

// servedNow returns the ports that are to be published.
func (n *Node) servedNow() (*membership, []serve.Port, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member == nil {
		return nil, nil, errNotUp()
	}
	ports, err := servedPorts(n.saved.Served)
	return n.member, ports, err
}

// keepPorts saves what is published now, and lists those that are asked for.
func (n *Node) keepPorts(m *membership, ports []serve.Port, of func(serve.Port) bool) (list localapi.ServeList, err error) {
	n.mu.Lock()
	n.saved.Served = savedPorts(ports)
	err = n.saveLocked()
	n.mu.Unlock()
	list.Served = []localapi.Served{}
	for _, s := range m.served.Status() {
		if of(serve.Port{Protocol: s.Protocol, Port: s.Port}) {
			list.Served = append(list.Served, s)
		}
	}
	return list, err
}
