// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	maxDatagram = 65535
	// maxNames is how many names of one caller's destinations are remembered.
	maxNames = 256
)

// association is a caller that sends and receives UDP, as long as its TCP connection stands (RFC 1928, section 7).
type association struct {
	g *Gateway
	// near is for the caller, far for the agents.
	near, far net.PacketConn
	// host is the caller's, at whose first port that sends a datagram it stays.
	host   netip.Addr
	caller atomic.Pointer[netip.AddrPort]
	names  map[string]netip.Addr // of sending's goroutine
}

// associate serves a caller that wants to send datagrams.
func (g *Gateway) associate(ctx context.Context, c net.Conn) error {
	here := addrOf(c.LocalAddr())
	near, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(here.Addr(), 0)))
	if err != nil {
		return g.refuse(c, replyFailed, err)
	}
	defer near.Close()
	far, err := g.o.Network.ListenPacket(ctx, "udp", ":0")
	if err != nil {
		return g.refuse(c, replyTo(err), err)
	}
	defer far.Close()
	if _, err := c.Write(appendReply(nil, replySucceeded, addrOf(near.LocalAddr()))); err != nil {
		return err
	}
	a := &association{g: g, near: near, far: far, host: addrOf(c.RemoteAddr()).Addr().Unmap(), names: make(map[string]netip.Addr)}
	var wg sync.WaitGroup
	wg.Go(func() { a.send(ctx) })
	wg.Go(a.receive)
	// Nothing more is said here, but for the end.
	_, err = io.Copy(io.Discard, c)
	near.Close()
	far.Close()
	wg.Wait()
	return err
}

// send passes on what the caller sends.
func (a *association) send(ctx context.Context) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := a.near.ReadFrom(buf)
		if err != nil {
			if gone(err) {
				return
			}
			continue
		}
		if !a.admits(addrOf(from)) {
			continue
		}
		d, data, err := parseDatagram(buf[:n])
		if err != nil || d.port == 0 {
			continue
		}
		to, ok := a.resolve(ctx, d.host)
		if !ok {
			continue
		}
		// A datagram that is not sent is a datagram that is lost.
		_, _ = a.far.WriteTo(data, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, d.port)))
	}
}

// admits takes datagrams of the caller only: of the host that it is on, from the port that was the first to send.
func (a *association) admits(from netip.AddrPort) bool {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if from.Addr() != a.host {
		return false
	}
	if known := a.caller.Load(); known != nil {
		return *known == from
	}
	a.caller.Store(&from)
	return true
}

// resolve is the network's, remembered: a stream of datagrams has one destination.
func (a *association) resolve(ctx context.Context, host string) (netip.Addr, bool) {
	if addr, ok := a.names[host]; ok {
		return addr, true
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	addr, err := a.g.o.Network.Resolve(ctx, host)
	if err != nil {
		a.g.log.Debug("a datagram is not sent", "error", err)
		return addr, false
	}
	if len(a.names) == maxNames {
		clear(a.names)
	}
	a.names[host] = addr
	return addr, true
}

// gone tells whether a socket is closed. Other errors are about one datagram.
func gone(err error) bool { return errors.Is(err, net.ErrClosed) }

// receive passes on what agents answer.
func (a *association) receive() {
	buf := make([]byte, maxDatagram)
	out := make([]byte, 0, maxDatagram)
	for {
		n, from, err := a.far.ReadFrom(buf)
		if err != nil {
			if gone(err) {
				return
			}
			continue
		}
		caller := a.caller.Load()
		if caller == nil {
			continue
		}
		out = append(appendDatagram(out[:0], addrOf(from)), buf[:n]...)
		_, _ = a.near.WriteTo(out, net.UDPAddrFromAddrPort(*caller))
	}
}
