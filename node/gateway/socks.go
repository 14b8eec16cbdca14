// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// serveSOCKS answers SOCKS5 on l, which it closes, until ctx ends.
func (g *Gateway) serveSOCKS(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	const again = 50 * time.Millisecond
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("SOCKS5 proxy: %w", err)
		case err != nil: // there may be descriptors again in a moment
			g.log.Warn("the SOCKS5 proxy can't take a connection", "error", err)
			select {
			case <-time.After(again):
			case <-ctx.Done():
			}
			continue
		case !g.begin():
			c.Close()
			continue
		}
		go func() {
			defer g.flows.Done()
			defer c.Close()
			if err := g.socks(ctx, c); err != nil {
				g.log.Debug("a caller of the SOCKS5 proxy is not served", "error", err)
			}
		}()
	}
}

// socks serves one caller.
func (g *Gateway) socks(ctx context.Context, c net.Conn) error {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetDeadline(time.Now().Add(greetLimit)); err != nil {
		return err
	}
	if err := g.greet(c); err != nil {
		return err
	}
	command, d, err := readRequest(c)
	switch {
	case errors.Is(err, errAddress):
		return g.refuse(c, replyAddressType, err)
	case errors.Is(err, errName):
		return g.refuse(c, replyNoHost, err)
	case err != nil:
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	switch command {
	case commandConnect:
		return g.connect(ctx, c, d)
	case commandAssociate:
		return g.associate(ctx, c)
	}
	return g.refuse(c, replyCommand, fmt.Errorf("command %d is not supported", command))
}

// greet lets a caller show who it is.
func (g *Gateway) greet(c net.Conn) error {
	password, err := readGreeting(c)
	if err != nil {
		return err
	}
	if !password {
		_, err := c.Write([]byte{socksVersion, methodNone})
		return errors.Join(errMethod, err)
	}
	if _, err := c.Write([]byte{socksVersion, methodPassword}); err != nil {
		return err
	}
	user, secret, err := readPassword(c)
	if err != nil {
		return err
	}
	if !g.admits(user, secret) {
		_, err := c.Write([]byte{passwordVersion, 1})
		return errors.Join(errors.New("wrong user or password"), err)
	}
	_, err = c.Write([]byte{passwordVersion, 0})
	return err
}

// refuse tells a caller why not.
func (g *Gateway) refuse(c net.Conn, reply byte, why error) error {
	_, err := c.Write(appendReply(nil, reply, netip.AddrPort{}))
	return errors.Join(why, err)
}

// connect makes the caller's connection one to where it wants to go.
func (g *Gateway) connect(ctx context.Context, c net.Conn, d destination) error {
	far, err := g.dial(ctx, d.host, d.port)
	if err != nil {
		return g.refuse(c, replyTo(err), fmt.Errorf("to %s: %w", d.host, err))
	}
	defer far.Close()
	if _, err := c.Write(appendReply(nil, replySucceeded, addrOf(far.LocalAddr()))); err != nil {
		return err
	}
	g.join(ctx, c, far)
	return nil
}

// replyTo is what a failure is in SOCKS.
func replyTo(err error) byte {
	switch outcomeOf(err) {
	case outcomeForbidden:
		return replyForbidden
	case outcomeRefused:
		return replyRefused
	case outcomeNoNetwork:
		return replyNoNetwork
	case outcomeNoHost:
		return replyNoHost
	case outcomeTimeout:
		return replyTimeout
	}
	return replyFailed
}

// addrOf is the address and port of a socket.
func addrOf(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}
