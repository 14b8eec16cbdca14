// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/platform/proxy"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// MTU is the overlay's, in bytes: 1420 leaves room for the record and the outer headers on a path of 1500.
const MTU = 1420

const mtu = MTU

// port is the UDP port that a node asks for; it takes another one where this is in use.
const port = 7745

// Underlay is what the node needs of package underlay.
type Underlay interface {
	overlay.Underlay
	Port() uint16
	// Run ends when Close is called.
	Run(context.Context) error
	Set(underlay.State)
	Status() underlay.Status
	// Changes tells that Status has changed in what others should know.
	Changes() <-chan struct{}
	// Gone delivers paths along which nothing arrives, by what their relay says.
	Gone() <-chan underlay.Path
	// Refresh says that this host moved to another network, or slept.
	Refresh()
	Netcheck(context.Context) (underlay.Report, error)
}

// Fence is what the node needs of a platform.Fence.
type Fence interface {
	Refresh() (again bool, err error)
	Dropped() (packets uint64, err error)
	Close() error
}

// System is the host as the node uses it. Tests put an in-memory one in its place.
type System interface {
	// OpenTUN makes the virtual interface.
	OpenTUN() (tun.Device, error)
	// Configure gives it its address and route, and has them used by others neither. The fence is nil where none is needed; it
	// may have failed, which its Refresh tells.
	Configure(platform.Interface) (Fence, error)
	// OpenUnderlay opens the UDP sockets.
	OpenUnderlay() (Underlay, error)
	// OpenDNS finds out how this host resolves names.
	OpenDNS() (platform.DNS, error)
	// RestoreDNS undoes what a daemon that was killed left behind.
	RestoreDNS() error
	// Addresses lists where this host can be reached. No overlay's own address is among them: a tunnel inside another
	// network's tunnel would depend on that one.
	Addresses() ([]netip.Addr, error)
	// WatchNetwork tells when they may have changed. The channel is closed when ctx ends.
	WatchNetwork(context.Context) (<-chan struct{}, error)
	// ListenLocal opens the local API's socket.
	ListenLocal() (net.Listener, error)
}

// dialLimit bounds how long one TCP connection to a relay may take to be made.
const dialLimit = 10 * time.Second

// Host returns the real System, of a node with this state folder: for a System that differs from it in some ways.
func Host(stateDir string, log *slog.Logger) System { return host{stateDir: stateDir, log: log} }

// host is the real System.
type host struct {
	stateDir string
	guard    []string // see platform.Options
	log      *slog.Logger
}

func (h host) OpenUnderlay() (Underlay, error) { return OpenUnderlay(port, true, h.log) }
func (h host) RestoreDNS() error               { return platform.RestoreDNS(h.stateDir, h.log) }

// Configure puts the fence up first: there is no moment at which the address can be reached past it. Where that fails the
// interface is used all the same, and whoever asks the fence again hears why.
func (h host) Configure(i platform.Interface) (Fence, error) {
	fence := platform.NewFence(i)
	_, _ = fence.Refresh()
	if err := platform.ConfigureInterface(i); err != nil {
		return nil, errors.Join(err, fence.Close())
	}
	return fence, nil
}

// OpenUnderlay opens this host's UDP sockets on a port, or on another one if that is in use; mapped says whether the gateway is
// asked to forward it.
func OpenUnderlay(port uint16, mapped bool, log *slog.Logger) (Underlay, error) {
	direct := &net.Dialer{Timeout: dialLimit, KeepAlive: -1} // connections to relays have their own signs of life
	way := proxy.New(proxy.Options{Dial: direct.DialContext})
	o := underlay.Options{Port: port, Dial: way.DialContext, Proxy: way.Proxy, Log: log}
	if mapped {
		o.Gateway = platform.Gateway
	}
	u, err := underlay.New(o)
	if err != nil {
		return nil, err // and not a nil *underlay.Underlay in an interface
	}
	return u, nil
}

// OpenTUN takes the first name that is free: a host may run daemons of several networks.
func (h host) OpenTUN() (d tun.Device, err error) {
	for i := range maxInterfaces {
		if d, err = tun.Open(platform.InterfacePrefix+strconv.Itoa(i), mtu); !errors.Is(err, tun.ErrBusy) {
			return d, err
		}
	}
	return nil, err
}

func (h host) OpenDNS() (platform.DNS, error) {
	return platform.OpenDNS(platform.Options{Log: h.log, StateDir: h.stateDir, Guard: h.guard})
}

func (h host) Addresses() ([]netip.Addr, error) {
	return platform.InterfaceAddresses(platform.InterfacePrefix)
}

func (h host) WatchNetwork(ctx context.Context) (<-chan struct{}, error) {
	return platform.WatchNetwork(ctx)
}

func (h host) ListenLocal() (net.Listener, error) {
	return platform.ListenLocal(platform.SocketPath(h.stateDir))
}

// maxInterfaces bounds the search for a name that is free.
const maxInterfaces = 16
