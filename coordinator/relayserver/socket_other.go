// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package relayserver

import (
	"net"
	"net/netip"
)

// socket is a UDP socket of one address family. It takes and gives datagrams one by one.
type socket struct {
	conn *net.UDPConn
}

func openSocket(at netip.AddrPort) (*socket, error) {
	network := "udp4"
	if at.Addr().Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	return &socket{conn: conn}, nil
}

func (s *socket) port() uint16 {
	if a, ok := s.conn.LocalAddr().(*net.UDPAddr); ok {
		return a.AddrPort().Port()
	}
	return 0
}

func (s *socket) close() error { return s.conn.Close() }

// receive waits for a datagram. It returns net.ErrClosed once the socket is closed.
func (s *socket) receive(in []message) (int, error) {
	m := &in[0]
	n, from, err := s.conn.ReadFromUDPAddrPort(m.data[:messageSize])
	if err != nil || n == 0 {
		return 0, err
	}
	m.data, m.size = m.data[:n], n
	m.remote = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	m.local, m.class = netip.Addr{}, 0
	return 1, nil
}

// send sends the datagrams of a burst one by one.
func (s *socket) send(b *burst) error {
	var first error
	for _, p := range b.parts[:b.n] {
		for len(p) > 0 {
			n := min(len(p), b.size)
			if _, err := s.conn.WriteToUDPAddrPort(p[:n], b.to.remote); err != nil && first == nil {
				first = err
			}
			p = p[n:]
		}
	}
	return first
}
