// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxQuote is how much of a packet an error about it has, in bytes: with the headers before it no more than 576, which
// every path carries (RFC 792, RFC 1812, section 4.3.2.3; RFC 4443 would allow more).
const maxQuote = 512

// deliver takes a packet from the sandbox.
func (g *Gateway) deliver(pieces [][]byte, size int, verified bool) {
	switch g.judge(pieces[0], size) {
	case judgedUnwanted:
	case judgedProhibited:
		whole := gather(pieces, size)
		g.answer(whole.AsSlice()[:min(size, maxQuote)], syscall.EACCES)
		whole.Release()
	case judgedFit:
		g.inject(gather(pieces, size), verified)
	}
}

type judgement int

const (
	judgedUnwanted   judgement = iota // not to be answered
	judgedProhibited                  // to be answered with an error
	judgedFit
)

// judge looks at a packet before the stack does. TCP and UDP pass, at once or in fragments, and so does what a path says
// about the length of packets. All other extension headers, of which nobody has a use outside, are prohibited: what decides
// about a flow can be no other header than the one that was looked at.
func (g *Gateway) judge(p []byte, size int) judgement {
	switch {
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6 && size <= maxPacket:
		return g.judge6(p)
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4 && size <= maxMTU:
		return g.judge4(p)
	}
	return judgedUnwanted
}

func (g *Gateway) judge6(p []byte) judgement {
	src, dst := netip.AddrFrom16([16]byte(p[offSource:offDestination])), netip.AddrFrom16([16]byte(p[offDestination:ipv6HeaderLen]))
	if !g.mayTalk(src, dst) {
		return judgedUnwanted
	}
	upper := p[ipv6HeaderLen:]
	switch p[offNextHeader] {
	case nextHeaderTCP, nextHeaderUDP:
		return judgedFit
	case nextHeaderFragment:
		if len(upper) >= header.IPv6FragmentHeaderSize && (upper[0] == nextHeaderTCP || upper[0] == nextHeaderUDP) {
			return judgedFit
		}
	case nextHeaderICMPv6:
		switch {
		case len(upper) < icmpHeaderLen:
			return judgedUnwanted
		case upper[0] == icmpTooBig:
			return judgedFit
		case upper[0] != icmpEchoRequest:
			return judgedUnwanted
		}
	}
	return judgedProhibited
}

func (g *Gateway) judge4(p []byte) judgement {
	src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	if !g.mayTalk(src, dst) {
		return judgedUnwanted
	}
	upper := p[min(len(p), int(p[0]&15)*4):]
	switch p[9] {
	case nextHeaderTCP, nextHeaderUDP:
		if p[0]&15 == 5 { // no options: source routes are of no use to anybody honest
			return judgedFit
		}
	case protocolICMPv4:
		switch {
		case len(upper) < icmpHeaderLen, p[6]&0x1f != 0, p[7] != 0: // a later fragment has no type
			return judgedUnwanted
		case upper[0] == icmpv4Unreachable && upper[1] == icmpv4TooBig:
			return judgedFit
		case upper[0] != icmpv4EchoRequest:
			return judgedUnwanted
		}
	}
	return judgedProhibited
}

const (
	nextHeaderFragment = 44
	icmpTooBig         = 2

	protocolICMPv4    = 1
	icmpv4Unreachable = 3
	icmpv4EchoRequest = 8
	icmpv4TooBig      = 4
	icmpv4Net         = 0
	icmpv4Host        = 1
	icmpv4Port        = 3
	icmpv4Prohibited  = 13 // RFC 1812, section 5.2.7.1
)

// mayTalk reports whether an answer to such a packet could be right.
func (g *Gateway) mayTalk(src, dst netip.Addr) bool {
	if dst.IsMulticast() || dst.IsUnspecified() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || dst.Is4In6() || src == dst {
		return false
	}
	for _, p := range g.o.Sources {
		if p.Contains(src) {
			return true
		}
	}
	return false
}

// quoteOf returns the beginning of a packet, as an error about it has it.
func quoteOf(pkt *stack.PacketBuffer) []byte {
	quote := make([]byte, 0, maxQuote)
	for _, part := range [][]byte{pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()} {
		quote = append(quote, part[:min(len(part), maxQuote-len(quote))]...)
	}
	if n := min(pkt.Data().Size(), maxQuote-len(quote)); n > 0 {
		if data, ok := pkt.Data().PullUp(n); ok {
			quote = append(quote, data...)
		}
	}
	return quote
}

// refusedPort reports whether an error means that there is a host, and nothing there.
func refusedPort(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}

// codesOf returns the codes of ICMPv6's and ICMP's "destination unreachable" that say what err says.
func codesOf(err error) (v6, v4 uint8) {
	switch {
	case refusedPort(err):
		return codePortUnreach, icmpv4Port
	case errors.Is(err, syscall.ENETUNREACH):
		return codeNoRoute, icmpv4Net
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded):
		return codeAddress, icmpv4Host
	}
	return codeProhibited, icmpv4Prohibited
}

// answer sends an error about a packet, which its destination seems to send: the gateway has no address of its own.
func (g *Gateway) answer(quote []byte, err error) {
	if g.open() != nil {
		return
	}
	v6, v4 := codesOf(err)
	var view *buffer.View
	switch {
	case len(quote) >= header.IPv6MinimumSize && quote[0]>>4 == 6:
		view = unreachable6(quote, v6)
	case len(quote) >= header.IPv4MinimumSize && quote[0]>>4 == 4:
		view = unreachable4(quote, v4)
	default:
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	g.queue.put(pkt)
	pkt.DecRef()
}

// unreachable6 is RFC 4443, section 3.1.
func unreachable6(quote []byte, code uint8) *buffer.View {
	const head = header.IPv6MinimumSize + icmpHeaderLen
	view := buffer.NewViewSize(head + len(quote))
	b := view.AsSlice()
	about := header.IPv6(quote)
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(b) - header.IPv6MinimumSize), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64,
		SrcAddr: about.DestinationAddress(), DstAddr: about.SourceAddress(),
	})
	copy(b[head:], quote)
	icmp := header.ICMPv6(b[header.IPv6MinimumSize:])
	icmp.SetType(header.ICMPv6DstUnreachable)
	icmp.SetCode(header.ICMPv6Code(code))
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: icmp, Src: about.DestinationAddress(), Dst: about.SourceAddress(),
	}))
	return view
}

// unreachable4 is RFC 792.
func unreachable4(quote []byte, code uint8) *buffer.View {
	const head = header.IPv4MinimumSize + icmpHeaderLen
	view := buffer.NewViewSize(head + len(quote))
	b := view.AsSlice()
	about := header.IPv4(quote)
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: protocolICMPv4,
		SrcAddr: tcpip.AddrFrom4(about.DestinationAddress().As4()), DstAddr: tcpip.AddrFrom4(about.SourceAddress().As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	copy(b[head:], quote)
	icmp := b[header.IPv4MinimumSize:]
	icmp[0], icmp[1] = icmpv4Unreachable, code
	binary.BigEndian.PutUint16(icmp[2:], ^checksum.Checksum(icmp, 0))
	return view
}
