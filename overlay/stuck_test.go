// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// stuckPort is a port whose socket takes nothing for one address: each send waits as long as a real one would, and fails.
type stuckPort struct {
	*port
	to    netip.AddrPort
	stuck atomic.Bool
}

const stuckPatience = 100 * time.Millisecond

func (p *stuckPort) Send(path underlay.Path, datagrams [][]byte) error {
	if p.stuck.Load() && path.Remote == p.to {
		return syscall.EAGAIN // without waiting: control holds its lock, and virtual time stands still while a lock is waited for
	}
	return p.port.Send(path, datagrams)
}

func (p *stuckPort) SendBursts(bursts []underlay.Burst) (int, error) {
	return underlay.SendEach(bursts, p.SendBurst)
}

func (p *stuckPort) SendBurst(b *underlay.Burst) error {
	if p.stuck.Load() && b.Path.Remote == p.to {
		time.Sleep(stuckPatience) // virtual
		return syscall.EAGAIN
	}
	return p.port.SendBurst(b)
}

// stuckDevice refuses packets while it is told to.
type stuckDevice struct {
	tun.Device
	refuse *atomic.Bool
}

func (d stuckDevice) Write(h *tun.Header, pieces [][]byte) error {
	if d.refuse.Load() {
		return syscall.ENOBUFS
	}
	return d.Device.Write(h, pieces)
}

// What can't be sent is dropped and counted, and others get through meanwhile, in both directions.
func TestStuckSocketHoldsNobodyUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.idleNode(w.agent(), addrA), w.node(addrB), w.node(addrC)
		socket := &stuckPort{port: a.port, to: netip.MustParseAddrPort(addrB)}
		a.o.under = socket
		a.run()
		trust(a, b)
		trust(a, c)
		never := udpPacket(a.addr, b.addr, 1, 2, "arrives while the socket works")
		a.dev.Inject(never)
		b.want(time.Second, never)
		socket.stuck.Store(true)
		to, from := udpPacket(a.addr, c.addr, 1, 2, "out"), udpPacket(c.addr, a.addr, 2, 1, "back")
		for range 20 {
			a.dev.Inject(never)
			a.dev.Inject(to)
			c.dev.Inject(from)
			c.want(time.Second, to)
			a.want(time.Second, from)
		}
		b.silent(0)
		if n := a.drops("send-failed"); n < 20 {
			t.Errorf("%d drops of 20 were counted", n)
		}
	})
}

func TestRefusingDeviceHoldsNobodyUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var refuse atomic.Bool
		a, b := w.idleNode(w.agent(), addrA), w.node(addrB)
		a.o.device = stuckDevice{a.dev, &refuse}
		a.run()
		trust(a, b)
		out, in := udpPacket(a.addr, b.addr, 1, 2, "out"), udpPacket(b.addr, a.addr, 2, 1, "in")
		a.dev.Inject(out)
		b.want(time.Second, out)
		refuse.Store(true)
		for range 10 {
			b.dev.Inject(in)
			a.dev.Inject(out)
			b.want(time.Second, out)
		}
		a.silent(time.Second)
		if n := a.drops("device"); n != 10 {
			t.Errorf("%d drops of 10 were counted", n)
		}
		refuse.Store(false)
		b.dev.Inject(in)
		a.want(time.Second, in)
	})
}
