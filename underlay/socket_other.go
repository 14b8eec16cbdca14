// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package underlay

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
)

const (
	// bufferSize is asked for sending and receiving each, in bytes: a burst at 10 Gbit/s lasts some milliseconds, and the
	// kernel's default of about 200 KiB is full after a fraction of one. The kernel gives less where it is limited.
	bufferSize = 7 << 20
	// maxSources bounds the cache of control messages by own address: a host has few.
	maxSources = 64
	// oobSize has room for one packet-info control message of either family.
	oobSize = 64
)

// socket is a UDP socket of one address family.
type socket struct {
	conn *net.UDPConn
	v6   bool
	oob  []byte // of the one goroutine that receives

	sources  atomic.Pointer[map[netip.Addr][]byte] // control message that sets the source, by own address
	sourceMu sync.Mutex                            // guards replacing sources
}

func openSocket(network string, port uint16) (*socket, error) {
	lc := net.ListenConfig{} // the "udp6" network sets IPV6_V6ONLY
	pc, err := lc.ListenPacket(context.Background(), network, hostPort(port))
	if err != nil {
		return nil, err
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(errors.New("not a UDP socket"), pc.Close())
	}
	s := &socket{conn: conn, v6: network == "udp6", oob: make([]byte, oobSize)}
	s.sources.Store(&map[netip.Addr][]byte{})
	// None is fatal: smaller buffers lose bursts, without packet info the kernel chooses the source, and where datagrams can be
	// fragmented the search for their size finds one that may be.
	_ = conn.SetReadBuffer(bufferSize)
	_ = conn.SetWriteBuffer(bufferSize)
	_ = enablePacketInfo(conn, s.v6)
	_ = forbidFragments(conn, s.v6)
	return s, nil
}

// forbidFragments asks that datagrams are sent whole or not at all.
func forbidFragments(conn *net.UDPConn, v6 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = setDontFragment(fd, v6) })
	return errors.Join(err, inner)
}

func (s *socket) port() uint16 {
	a, _ := s.conn.LocalAddr().(*net.UDPAddr)
	return a.AddrPort().Port()
}

func (s *socket) close() error { return s.conn.Close() }

// receive waits for one datagram: on these systems nobody asks without waiting.
func (s *socket) receive(bursts []Burst, _ bool) (int, error) {
	b := &bursts[0]
	n, oobn, _, remote, err := s.conn.ReadMsgUDPAddrPort(b.Data[:cap(b.Data)], s.oob)
	if err != nil {
		return 0, err
	}
	b.Data, b.Size, b.Class = b.Data[:n], n, 0
	b.Path = Path{Remote: unmap(remote), Local: packetDestination(s.oob[:oobn], s.v6)}
	return 1, nil
}

// send sends the datagrams one by one, all of them even if some fail.
func (s *socket) send(remote netip.AddrPort, local netip.Addr, b *Burst) error {
	oob := s.source(local)
	var first error
	for d := range b.Each {
		_, _, err := s.conn.WriteMsgUDPAddrPort(d, oob, remote)
		if err != nil && len(oob) > 0 && isStaleSource(err) {
			_, _, err = s.conn.WriteMsgUDPAddrPort(d, nil, remote)
		}
		if errors.Is(err, errMessageSize) {
			err = ErrTooBig
		}
		if err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (s *socket) sendMany(bursts []Burst) (int, error) {
	for i := range bursts {
		remote, local := endsOf(&bursts[i].Path)
		if err := s.send(remote, local, &bursts[i]); err != nil {
			return i + 1, err
		}
	}
	return len(bursts), nil
}

// source returns the control message that makes the kernel send from our address, nil where it may choose.
func (s *socket) source(local netip.Addr) []byte {
	if !local.IsValid() || local.Is6() != s.v6 {
		return nil
	}
	if oob, ok := (*s.sources.Load())[local]; ok {
		return oob
	}
	return s.addSource(local)
}

func (s *socket) addSource(local netip.Addr) []byte {
	s.sourceMu.Lock()
	defer s.sourceMu.Unlock()
	old := *s.sources.Load()
	if oob, ok := old[local]; ok {
		return oob
	}
	next := make(map[netip.Addr][]byte, len(old)+1)
	if len(old) < maxSources {
		maps.Copy(next, old) // otherwise begin anew: addresses came and went
	}
	next[local] = packetSource(local)
	s.sources.Store(&next)
	return next[local]
}

func unmap(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4In6() {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return a
}

func hostPort(port uint16) string { return ":" + strconv.Itoa(int(port)) }
