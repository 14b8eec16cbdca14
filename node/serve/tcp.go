// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/pilot-protocol/pilot/node/splice"
)

// serveTCP passes connections on.
func (p *published) serveTCP(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, peer, err := p.accept(ctx)
		if err != nil {
			return
		}
		running.Go(func() {
			defer p.flows.done(peer)
			p.pass(ctx, conn)
		})
	}
}

// accept returns the next connection that there is room for, counted; all others are reset. Its error is the end.
func (p *published) accept(ctx context.Context) (net.Conn, netip.Addr, error) {
	for {
		conn, err := p.tcp.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil, netip.Addr{}, net.ErrClosed
			}
			p.s.log.Warn("a published port can't accept", "port", p.Port.Port, "error", err)
			if !pause(ctx) {
				return nil, netip.Addr{}, net.ErrClosed
			}
			continue
		}
		if peer := addrOf(conn.RemoteAddr()); p.flows.add(peer) {
			return conn, peer, nil
		}
		splice.Abort(conn)
	}
}

// pass makes one connection of a peer's and one to the target. Where that doesn't answer the peer gets a reset, as from a
// closed port.
func (p *published) pass(ctx context.Context, conn net.Conn) {
	far, err := p.s.dial(ctx, p.Target, p.Publisher)
	if ctx.Err() == nil {
		p.reached(err)
	}
	if err != nil {
		splice.Abort(conn)
		return
	}
	// How it ends is told to both ends by how they are closed.
	_ = p.s.splicer.Join(ctx, conn, far, splice.Options{Idle: idleLimit, Half: halfLimit, Counters: []*splice.Counters{&p.moved}})
}

// addrOf is the address of a peer's end.
func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().WithZone("")
	case *net.UDPAddr:
		return a.AddrPort().Addr().WithZone("")
	}
	return netip.Addr{}
}
