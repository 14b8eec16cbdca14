// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net"
	"net/netip"
)

// listenOn opens a TCP listener on a host.
func listenOn(h *Host, at netip.AddrPort) (listener *net.TCPListener, err error) {
	err = h.In(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		return err
	})
	return listener, err
}

// dialFrom opens a TCP connection from a host. All that happens on it has to happen before the context's deadline.
func dialFrom(ctx context.Context, h *Host, to netip.AddrPort) (conn *net.TCPConn, err error) {
	end, _ := ctx.Deadline()
	err = h.In(func() error {
		c, err := (&net.Dialer{Deadline: end}).Dial("tcp", to.String())
		if err == nil {
			conn = c.(*net.TCPConn)
			err = conn.SetDeadline(end)
		}
		return err
	})
	return conn, err
}
