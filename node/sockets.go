// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/netstack"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/tun"
)

// sockets are how this process itself talks to other agents, from its agent's address: through the host's kernel, or
// through a stack of its own.
type sockets interface {
	// Dial connects by "tcp" or "udp".
	Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	ListenTCP(ctx context.Context, port uint16) (net.Listener, error)
	ListenUDP(ctx context.Context, port uint16) (net.PacketConn, error)
}

// kernelSockets are the host's. What listens goes on when the network is taken down: its owner closes it.
type kernelSockets struct{ self netip.Addr }

func (s kernelSockets) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	from := netip.AddrPortFrom(s.self, 0)
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from)}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(from)
	}
	return d.DialContext(ctx, network, to.String())
}

func (s kernelSockets) ListenTCP(ctx context.Context, port uint16) (net.Listener, error) {
	var c net.ListenConfig
	return c.Listen(ctx, "tcp", netip.AddrPortFrom(s.self, port).String())
}

func (s kernelSockets) ListenUDP(ctx context.Context, port uint16) (net.PacketConn, error) {
	var c net.ListenConfig
	return c.ListenPacket(ctx, "udp", netip.AddrPortFrom(s.self, port).String())
}

// userSockets are those of a stack in this process, and end with it.
type userSockets struct {
	stack *netstack.Stack
	self  netip.Addr
}

func (s userSockets) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	return s.stack.Dial(ctx, network, s.self, to)
}

func (s userSockets) ListenTCP(_ context.Context, port uint16) (net.Listener, error) {
	return s.stack.ListenTCP(netip.AddrPortFrom(s.self, port))
}

func (s userSockets) ListenUDP(_ context.Context, port uint16) (net.PacketConn, error) {
	return s.stack.ListenUDP(netip.AddrPortFrom(s.self, port))
}

// userspaceName stands where the name of an interface would.
const userspaceName = "userspace"

// openDevice makes what the overlay moves packets for: an interface of the kernel's or, where that is wanted or there can
// be no such, a stack in this process.
func (e *engine) openDevice(o engineOptions) error {
	self := identity.Address(o.network, o.self)
	if o.tun != localapi.TUNUserspace {
		err := e.openInterface(o.system, self)
		if err == nil {
			e.others, err = newUserStack(e.service, e.prefix, o.log)
			return err
		}
		if o.tun == localapi.TUNKernel || !noInterface(err) {
			return err
		}
		e.tunWhy = err.Error()
		e.log.Info("no interface can be had: packets are handled in this process", "error", err)
	}
	stack, err := newUserStack(self, e.prefix, o.log)
	if err != nil {
		return err
	}
	e.user, e.device = stack, stack.Device(userspaceName)
	return nil
}

// newUserStack makes a stack that agents have their addresses on.
func newUserStack(first netip.Addr, network netip.Prefix, log *slog.Logger) (*netstack.Stack, error) {
	return netstack.New(netstack.Options{
		Addresses: []netip.Addr{first}, Routes: []netip.Prefix{network}, MTU: mtu, Segments: overlay.Segments(mtu), Log: log,
	})
}

// openInterface makes an interface of the kernel's with the agent's address.
func (e *engine) openInterface(system System, self netip.Addr) error {
	device, err := system.OpenTUN()
	if err != nil {
		return err
	}
	fence, err := system.Configure(platform.Interface{
		Name: device.Name(), MTU: mtu, Address: self, Route: e.prefix, Segments: overlay.Segments(mtu),
	})
	if err != nil {
		return errors.Join(fmt.Errorf("configure %s: %w", device.Name(), err), device.Close())
	}
	e.device, e.fence = device, fence
	e.refreshFence()
	return nil
}

// noInterface tells whether it is this host that has no interface for us, or gives us none.
func noInterface(err error) bool {
	return errors.Is(err, tun.ErrNoTUN) || errors.Is(err, fs.ErrPermission)
}
