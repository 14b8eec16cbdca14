// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"syscall"
)

// flow is a connection as its own end sees it.
type flow struct {
	protocol      uint8
	local, remote netip.AddrPort
}

// quoted reads the flow of a packet of ours from an error about it, which has at least its first bytes. Packets with
// extension headers are not looked into: the stack sends none but fragments.
func quoted(p []byte) (flow, bool) {
	if len(p) < ipv6HeaderLen+4 || p[0]>>4 != 6 {
		return flow{}, false
	}
	f := flow{
		protocol: p[offNextHeader],
		local: netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[offSource:offDestination])),
			binary.BigEndian.Uint16(p[ipv6HeaderLen:])),
		remote: netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[offDestination:ipv6HeaderLen])),
			binary.BigEndian.Uint16(p[ipv6HeaderLen+2:])),
	}
	return f, f.protocol == nextHeaderTCP || f.protocol == nextHeaderUDP
}

// keptRefusals is how many are remembered: those that a program has not asked about yet.
const keptRefusals = 64

// refusals remembers why the last flows were refused. It is asked only after gVisor has said that one was.
type refusals struct {
	mu   sync.Mutex
	last [keptRefusals]struct {
		flow flow
		code uint8
	}
	next int
}

func (r *refusals) add(f flow, code uint8) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[r.next].flow, r.last[r.next].code = f, code
	r.next = (r.next + 1) % keptRefusals
}

// why returns what the kernel would have told the program (Linux, net/ipv6/icmp.c: icmpv6_err_convert), or otherwise.
func (r *refusals) why(f flow, otherwise error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range keptRefusals {
		l := &r.last[(r.next+2*keptRefusals-1-i)%keptRefusals]
		if l.flow != f {
			continue
		}
		switch l.code {
		case codeNoRoute:
			return syscall.ENETUNREACH
		case codeProhibited, codePolicy, codeReject:
			return syscall.EACCES
		case codeBeyondScope, codeAddress:
			return syscall.EHOSTUNREACH
		case codePortUnreach:
			return syscall.ECONNREFUSED
		}
		break
	}
	return otherwise
}
