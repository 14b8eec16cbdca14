// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/pilot-protocol/pilot/identity"
)

const (
	headerLen = 12
	missQueue = 64
	missAgain = 5 * time.Second
	missSeen  = 1024
)

// misses remembers which unknown names were told lately.
type misses struct {
	now   func() time.Time
	names chan string

	mu   sync.Mutex
	seen map[string]time.Time
}

func (m *misses) report(name string) {
	if identity.ValidateName(name) != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if at, ok := m.seen[name]; ok && now.Sub(at) < missAgain {
		return
	}
	if len(m.seen) >= missSeen {
		for n, at := range m.seen {
			if now.Sub(at) >= missAgain {
				delete(m.seen, n)
			}
		}
		if len(m.seen) >= missSeen {
			return
		}
	}
	select {
	case m.names <- name:
		m.seen[name] = now
	default: // the reader is behind: it will be asked for again
	}
}

// respond gives the answer to a message as it came from the wire, nil for none.
func (s *Server) respond(ctx context.Context, wire []byte, udp bool) []byte {
	if len(wire) < headerLen || wire[2]&0x80 != 0 {
		return nil // too short to answer, or an answer itself
	}
	if opcode := int(wire[2]>>3) & 15; opcode != dns.OpcodeQuery {
		return headerReply(wire, dns.RcodeNotImplemented)
	}
	if binary.BigEndian.Uint16(wire[4:]) != 1 {
		return headerReply(wire, dns.RcodeFormatError)
	}
	var query dns.Msg
	if err := query.Unpack(wire); err != nil || len(query.Question) != 1 {
		return headerReply(wire, dns.RcodeFormatError)
	}
	opt, ok := onlyOPT(&query)
	if !ok {
		return headerReply(wire, dns.RcodeFormatError)
	}
	reply, limit := new(dns.Msg), dns.MaxMsgSize
	reply.SetReply(&query)
	reply.Rcode = dns.RcodeSuccess
	reply.RecursionAvailable = true
	if udp {
		limit = dns.MinMsgSize
	}
	if opt != nil {
		reply.SetEdns0(maxUDP, opt.Do())
		if udp {
			limit = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		}
	}
	if opt != nil && opt.Version() != 0 {
		reply.Rcode = dns.RcodeBadVers
	} else {
		s.answer(ctx, &query, reply)
	}
	reply.Truncate(limit)
	reply.Compress = true
	out, err := reply.Pack()
	if err != nil || len(out) > limit {
		s.log.Debug("answer could not be packed", "err", err)
		return headerReply(wire, dns.RcodeServerFailure)
	}
	return out
}

// headerReply is an answer without sections, to what wasn't understood.
func headerReply(wire []byte, rcode int) []byte {
	reply := make([]byte, headerLen)
	copy(reply, wire[:2])
	reply[2] = 0x80 | wire[2]&0x79 // QR; opcode and RD as they came
	reply[3] = 0x80 | byte(rcode)  // RA
	return reply
}

// onlyOPT finds the OPT record; more than one is an error (RFC 6891, section 6.1.1).
func onlyOPT(m *dns.Msg) (opt *dns.OPT, ok bool) {
	for _, rr := range m.Extra {
		if o, is := rr.(*dns.OPT); is {
			if opt != nil {
				return nil, false
			}
			opt = o
		}
	}
	return opt, true
}

// answer fills in the reply to a well-formed query.
func (s *Server) answer(ctx context.Context, query, reply *dns.Msg) {
	q := query.Question[0]
	switch {
	case q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY:
		refuse(reply, "only class IN is served")
		return
	case q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR || q.Qtype == dns.TypeMAILA || q.Qtype == dns.TypeMAILB:
		refuse(reply, "zone transfers are not served")
		return
	case q.Qtype == dns.TypeNone || q.Qtype == dns.TypeOPT:
		reply.Rcode = dns.RcodeFormatError
		return
	}
	z, name := s.zone.Load(), dns.CanonicalName(q.Name)
	labels := dns.CountLabel(name)
	if apex := z.apexOf(name); apex != "" {
		if !z.answer(reply, q, name, apex) && apex == z.apex && labels == dns.CountLabel(apex)+1 {
			s.misses.report(strings.TrimSuffix(name, "."+apex))
		}
		return
	}
	switch {
	case dns.IsSubDomain("localhost.", name):
		loopback(reply, q)
	case labels == 1:
		s.singleLabel(z, reply, q, name)
	case q.Qtype == dns.TypeANY:
		reply.Answer = append(reply.Answer, &dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"})
	default:
		s.forwardTo(ctx, z, query, reply)
	}
}

// singleLabel answers a name that came without a domain. Such names are agents'
// or nobody's; what is asked about top-level domains themselves is refused, since
// to deny that they exist would be false.
func (s *Server) singleLabel(z *zone, reply *dns.Msg, q dns.Question, name string) {
	if z.apex != "" {
		full := name + z.apex
		if _, ok := z.records[full]; ok {
			z.answer(reply, q, full, z.apex)
			return
		}
	}
	switch q.Qtype {
	case dns.TypeDS, dns.TypeDNSKEY, dns.TypeNS, dns.TypeSOA:
		refuse(reply, "single-label names are not forwarded")
		return
	}
	if z.apex != "" {
		s.misses.report(strings.TrimSuffix(name, "."))
	}
	reply.Rcode = dns.RcodeNameError
	extend(reply, dns.ExtendedErrorCodeFiltered, "single-label names are not forwarded")
}

// loopback answers localhost and what is below it (RFC 6761, section 6.3).
func loopback(reply *dns.Msg, q dns.Question) {
	switch q.Qtype {
	case dns.TypeA:
		reply.Answer = append(reply.Answer, &dns.A{Hdr: header(q.Name, dns.TypeA), A: net.IPv4(127, 0, 0, 1)})
	case dns.TypeAAAA, dns.TypeANY:
		reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA), AAAA: net.IPv6loopback})
	}
}

func (s *Server) forwardTo(ctx context.Context, z *zone, query, reply *dns.Msg) {
	q := query.Question[0]
	if s.gate != nil && !s.gate.Ask(plain(q.Name)) {
		// Programs try again for a while where they are told REFUSED.
		reply.Rcode = dns.RcodeNameError
		extend(reply, dns.ExtendedErrorCodeProhibited, "no rule allows this name")
		return
	}
	key := question{name: dns.CanonicalName(q.Name), kind: q.Qtype, class: q.Qclass, cd: query.CheckingDisabled}
	if opt := query.IsEdns0(); opt != nil {
		key.do = opt.Do()
	}
	m, err := s.forward.ask(ctx, key, z.upstreams)
	if err != nil {
		reply.Rcode = dns.RcodeServerFailure
		code, text := dns.ExtendedErrorCodeNetworkError, "no resolver answered"
		switch {
		case errors.Is(err, errNoUpstreams):
			code, text = dns.ExtendedErrorCodeNoReachableAuthority, errNoUpstreams.Error()
		case errors.Is(err, errBusy):
			code, text = dns.ExtendedErrorCodeOther, errBusy.Error()
		}
		extend(reply, code, text)
		s.log.Debug("question not answered by any upstream", "err", err)
		return
	}
	reply.Rcode = m.Rcode & 15
	reply.AuthenticatedData = m.AuthenticatedData && (key.do || query.AuthenticatedData)
	if s.gate != nil {
		s.admit(q, m, reply)
		return
	}
	reply.Answer, reply.Ns = m.Answer, m.Ns
	extra := make([]dns.RR, 0, len(m.Extra)+1)
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			extra = append(extra, rr)
		}
	}
	reply.Extra = append(extra, reply.Extra...)
	reply.Truncated = m.Truncated
}

// admit fills in the part of an answer that the gate lets through. What else an answer may have, nobody needs.
func (s *Server) admit(q dns.Question, m, reply *dns.Msg) {
	name, refused := plain(q.Name), false
	for _, rr := range m.Answer {
		if a, ok := address(rr); ok && !s.gate.Admit(name, a, time.Duration(rr.Header().Ttl)*time.Second) {
			refused = true
			continue
		}
		reply.Answer = append(reply.Answer, withoutHints(rr))
	}
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			reply.Ns = append(reply.Ns, rr)
		}
	}
	if refused {
		reply.AuthenticatedData = false
		extend(reply, dns.ExtendedErrorCodeFiltered, "an address that the name has must not be reached by it")
	}
	reply.Truncated = m.Truncated
}

// plain is a name as a Gate has it.
func plain(name string) string { return strings.TrimSuffix(dns.CanonicalName(name), ".") }

// address returns the address that a record gives.
func address(rr dns.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		a, ok := netip.AddrFromSlice(rr.A)
		return a.Unmap(), ok || len(rr.A) > 0
	case *dns.AAAA:
		a, ok := netip.AddrFromSlice(rr.AAAA)
		return a, ok || len(rr.AAAA) > 0
	}
	return netip.Addr{}, false
}

// withoutHints takes the addresses out of a service record (RFC 9460, section 7.3): they can be asked for.
func withoutHints(rr dns.RR) dns.RR {
	var values *[]dns.SVCBKeyValue
	switch rr := rr.(type) {
	case *dns.SVCB:
		values = &rr.Value
	case *dns.HTTPS:
		values = &rr.Value
	default:
		return rr
	}
	*values = slices.DeleteFunc(slices.Clone(*values), func(v dns.SVCBKeyValue) bool {
		return v.Key() == dns.SVCB_IPV4HINT || v.Key() == dns.SVCB_IPV6HINT
	})
	return rr
}

func refuse(reply *dns.Msg, why string) {
	reply.Rcode = dns.RcodeRefused
	extend(reply, dns.ExtendedErrorCodeProhibited, why)
}

// extend says why, to clients that speak EDNS (RFC 8914).
func extend(reply *dns.Msg, code uint16, text string) {
	if opt := reply.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: text})
	}
}
