// SPDX-License-Identifier: Apache-2.0

package pilot

import (
	"log/slog"
	"net"
	"sync"

	"github.com/pilot-protocol/pilot/node"
)

// system is the host as an embedded node uses it: nothing of it changes.
type system struct {
	node.System
	log         *slog.Logger
	mapped, ask bool
}

func newSystem(dir string, o Options) node.System {
	return &system{System: node.Host(dir, o.Log), log: o.Log, mapped: !o.NoPortMapping, ask: o.LocalAPI}
}

// OpenUnderlay takes any port: the usual one is for this host's daemon.
func (s *system) OpenUnderlay() (node.Underlay, error) { return node.OpenUnderlay(0, s.mapped, s.log) }

// ListenLocal opens the local API's socket if somebody is to ask.
func (s *system) ListenLocal() (net.Listener, error) {
	if s.ask {
		return s.System.ListenLocal()
	}
	return &deaf{closed: make(chan struct{})}, nil
}

// RestoreDNS has nothing to restore.
func (s *system) RestoreDNS() error { return nil }

// deaf is a listener to which nobody can come.
type deaf struct {
	closed chan struct{}
	once   sync.Once
}

func (d *deaf) Accept() (net.Conn, error) {
	<-d.closed
	return nil, net.ErrClosed
}

func (d *deaf) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

func (d *deaf) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }
