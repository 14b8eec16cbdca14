// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"net"
	"time"

	"github.com/pilot-protocol/pilot/node/splice"
)

// udpIdle is how long a flow lives on which nothing moves (RFC 4787, REQ-5).
const udpIdle = 2 * time.Minute

// serveUDP passes the datagrams of each peer's port on by a socket of its own.
func (p *published) serveUDP(ctx context.Context) {
	conn, ok := p.udp.(splice.PacketConn)
	if !ok {
		p.s.log.Error("a UDP socket of a kind that can't be served", "port", p.Port.Port)
		return
	}
	p.s.splicer.Flows(ctx, conn, splice.FlowOptions{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return p.s.o.Dial(ctx, "udp", p.Target.Addr.String())
		},
		Admit: p.flows.add, Done: p.flows.done, Reached: p.reached, Idle: udpIdle, Counters: &p.moved,
	})
}
