// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// packetConn is a UDP socket, connected or not, as [net.UDPConn] is. Several goroutines may read at once, and several write.
type packetConn struct {
	socket
	local, remote netip.AddrPort // remote: zero where it is not connected
	// where checks an address to send to. nil: only a connected socket sends.
	where func(netip.AddrPort) (tcpip.FullAddress, error)
	// why knows more about a refusal than gVisor.
	why func(flow, error) error
	// readers and writers hold what a call needs besides its stack.
	readers, writers sync.Pool
}

var (
	_ net.Conn       = (*packetConn)(nil)
	_ net.PacketConn = (*packetConn)(nil)
)

func newPacketConn(core *core, ep tcpip.Endpoint, wq *waiter.Queue, s *Stack) *packetConn {
	c := &packetConn{}
	c.init(core, ep, wq)
	local, _ := ep.GetLocalAddress()
	c.local = addrPort(local)
	if remote, e := ep.GetRemoteAddress(); e == nil {
		c.remote = addrPort(remote)
	}
	if s != nil {
		c.where, c.why = s.remote, s.refusals.why
	}
	c.readers.New = func() any { return new(tcpip.SliceWriter) }
	c.writers.New = func() any { return new(datagram) }
	return c
}

// datagram is one to be sent.
type datagram struct {
	bytes.Reader
	to tcpip.FullAddress
}

func (c *packetConn) failed(op string, to netip.AddrPort, err error) error {
	o := &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Err: err}
	if to.IsValid() {
		o.Addr = net.UDPAddrFromAddrPort(to)
	}
	return o
}

// refused is the error of an operation about which the other end may have said something.
func (c *packetConn) refused(e tcpip.Error) error {
	err := c.fault(e)
	if _, ok := e.(*tcpip.ErrConnectionRefused); ok && c.why != nil {
		return c.why(flow{nextHeaderUDP, c.local, c.remote}, err)
	}
	return err
}

func (c *packetConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// RemoteAddr implements [net.Conn]; it is nil where the socket is not connected.
func (c *packetConn) RemoteAddr() net.Addr {
	if !c.remote.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(c.remote)
}

// Read implements [net.Conn].
func (c *packetConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFromUDPAddrPort(b)
	return n, err
}

// ReadFrom implements [net.PacketConn].
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// ReadFromUDPAddrPort is [net.UDPConn.ReadFromUDPAddrPort]. What doesn't fit into b is lost.
func (c *packetConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	w := c.readers.Get().(*tcpip.SliceWriter)
	defer func() {
		*w = nil
		c.readers.Put(w)
	}()
	for {
		err := c.may(&c.readBy)
		if err == nil {
			*w = b
			r, e := c.ep.Read(w, tcpip.ReadOptions{NeedRemoteAddr: true})
			switch e.(type) {
			case nil:
				c.touch()
				signal(c.readable)
				return r.Count, addrPort(r.RemoteAddr), nil
			case *tcpip.ErrWouldBlock:
				err = c.wait(c.readable, &c.readBy)
			case *tcpip.ErrClosedForReceive:
				err = net.ErrClosed
			default:
				err = c.refused(e)
			}
		}
		if err != nil {
			signal(c.readable)
			return 0, netip.AddrPort{}, c.failed("read", c.remote, err)
		}
	}
}

// Write implements [net.Conn].
func (c *packetConn) Write(b []byte) (int, error) {
	if !c.remote.IsValid() {
		return 0, c.failed("write", netip.AddrPort{}, syscall.EDESTADDRREQ)
	}
	return c.send(b, netip.AddrPort{}, nil)
}

// WriteTo implements [net.PacketConn].
func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	ua, ok := to.(*net.UDPAddr)
	if !ok || ua == nil {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: ErrAddress}
	}
	return c.WriteToUDPAddrPort(b, ua.AddrPort())
}

// WriteToUDPAddrPort is [net.UDPConn.WriteToUDPAddrPort].
func (c *packetConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if c.remote.IsValid() {
		return 0, c.failed("write", to, net.ErrWriteToConnected)
	}
	if c.where == nil {
		return 0, c.failed("write", to, ErrAddress)
	}
	full, err := c.where(to)
	if err != nil {
		return 0, c.failed("write", to, ErrAddress)
	}
	return c.send(b, to, &full)
}

func (c *packetConn) send(b []byte, to netip.AddrPort, full *tcpip.FullAddress) (int, error) {
	d := c.writers.Get().(*datagram)
	defer func() {
		d.Reset(nil)
		c.writers.Put(d)
	}()
	var o tcpip.WriteOptions
	if full != nil {
		d.to = *full
		o.To = &d.to
	}
	for {
		err := c.may(&c.writeBy)
		if err == nil {
			d.Reset(b)
			_, e := c.ep.Write(d, o)
			switch e.(type) {
			case nil, *tcpip.ErrNoBufferSpace: // the latter is lost on the way out, as a kernel's full queue loses it
				c.touch()
				signal(c.writable)
				return len(b), nil
			case *tcpip.ErrWouldBlock:
				err = c.wait(c.writable, &c.writeBy)
			default:
				err = c.refused(e)
			}
		}
		if err != nil {
			signal(c.writable)
			return 0, c.failed("write", to, err)
		}
	}
}

// Close implements [net.Conn].
func (c *packetConn) Close() error {
	if !c.close() {
		return c.failed("close", netip.AddrPort{}, net.ErrClosed)
	}
	return nil
}
