// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	upstreamTimeout = 2 * time.Second
	forwardTimeout  = 5 * time.Second // what a stub resolver commonly waits
	deadFor         = 15 * time.Second
	maxForwards     = 256 // questions that may wait for upstreams at once
)

var (
	errNoUpstreams = errors.New("this machine has no other resolver to ask")
	errBusy        = errors.New("too many questions are waiting")
	errMismatch    = errors.New("the answer is to another question")
)

// Exchanger asks one upstream one question over "udp" or "tcp" and gives its
// answer, whose ID it has checked. It ends when ctx does.
type Exchanger interface {
	Exchange(ctx context.Context, network string, upstream netip.AddrPort, query *dns.Msg) (*dns.Msg, error)
}

// sockets is the Exchanger of the real network: a socket of its own for each
// question, so that the kernel chooses a fresh random port.
type sockets struct{ dialer net.Dialer }

func (s *sockets) Exchange(ctx context.Context, network string, upstream netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	conn, err := s.dialer.DialContext(ctx, network, upstream.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client := dns.Client{Net: network, UDPSize: maxUDP, Timeout: upstreamTimeout}
	answer, _, err := client.ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: conn, UDPSize: maxUDP})
	return answer, err
}

// forwarder asks upstreams. Safe for concurrent use; it starts no goroutine.
type forwarder struct {
	exchanger Exchanger
	now       func() time.Time
	cache     cache
	slots     chan struct{}

	mu      sync.Mutex
	flights map[question]*flight
	dead    map[netip.AddrPort]time.Time // when an upstream failed
}

// flight is a question that is out. The fields are read after done is closed.
type flight struct {
	done   chan struct{}
	answer *dns.Msg
	err    error
}

func newForwarder(e Exchanger, now func() time.Time) *forwarder {
	return &forwarder{
		exchanger: e, now: now, slots: make(chan struct{}, maxForwards),
		flights: make(map[question]*flight), dead: make(map[netip.AddrPort]time.Time),
	}
}

// reset forgets what was learned from former upstreams.
func (f *forwarder) reset() {
	f.cache.clear()
	f.mu.Lock()
	clear(f.dead)
	f.mu.Unlock()
}

// ask answers from the cache, from an equal question that is out, or from the
// first upstream that answers. The caller owns the message.
func (f *forwarder) ask(ctx context.Context, q question, upstreams []netip.AddrPort) (*dns.Msg, error) {
	if len(upstreams) == 0 {
		return nil, errNoUpstreams
	}
	if m := f.cache.get(q, f.now()); m != nil {
		return m, nil
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errBusy
	}
	f.mu.Lock()
	fl, out := f.flights[q]
	if !out {
		fl = &flight{done: make(chan struct{})}
		f.flights[q] = fl
	}
	f.mu.Unlock()
	if out {
		select {
		case <-fl.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	} else {
		f.fly(ctx, q, upstreams, fl)
	}
	if fl.err != nil {
		return nil, fl.err
	}
	return fl.answer.Copy(), nil
}

// fly does the asking for everybody who waits for fl.
func (f *forwarder) fly(ctx context.Context, q question, upstreams []netip.AddrPort, fl *flight) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	fl.answer, fl.err = f.tryAll(ctx, q, f.order(upstreams))
	if fl.err == nil {
		f.cache.put(q, fl.answer, f.now())
	}
	f.mu.Lock()
	delete(f.flights, q)
	f.mu.Unlock()
	close(fl.done)
}

// order puts the upstreams that failed lately last, the longest ago first.
func (f *forwarder) order(upstreams []netip.AddrPort) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	failed := func(u netip.AddrPort) int64 {
		if at, ok := f.dead[u]; ok && now.Sub(at) < deadFor {
			return at.UnixNano()
		}
		return 0
	}
	upstreams = slices.Clone(upstreams)
	slices.SortStableFunc(upstreams, func(a, b netip.AddrPort) int { return cmp.Compare(failed(a), failed(b)) })
	return upstreams
}

func (f *forwarder) mark(u netip.AddrPort, alive bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if alive {
		delete(f.dead, u)
	} else {
		f.dead[u] = f.now()
	}
}

func (f *forwarder) tryAll(ctx context.Context, q question, upstreams []netip.AddrPort) (*dns.Msg, error) {
	var failures []error
	var unwilling *dns.Msg
	for _, u := range upstreams {
		m, err := f.tryOne(ctx, q, u)
		switch {
		case err == nil && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError):
			f.mark(u, true)
			return m, nil
		case err == nil: // it is there, but another one may know better
			f.mark(u, true)
			if unwilling == nil {
				unwilling = m
			}
		case errors.Is(ctx.Err(), context.Canceled):
			return nil, ctx.Err() // we are stopping: says nothing about the upstream
		default:
			f.mark(u, false)
			failures = append(failures, fmt.Errorf("%v: %w", u, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if unwilling != nil {
		return unwilling, nil
	}
	return nil, errors.Join(failures...)
}

// tryOne asks one upstream, over TCP too if it must, and without EDNS if the
// upstream doesn't know it.
func (f *forwarder) tryOne(ctx context.Context, q question, u netip.AddrPort) (*dns.Msg, error) {
	m, err := f.exchange(ctx, "udp", u, newQuery(q, true))
	if err == nil && !q.do && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		m, err = f.exchange(ctx, "udp", u, newQuery(q, false))
	}
	if err == nil && m.Truncated {
		m, err = f.exchange(ctx, "tcp", u, newQuery(q, true))
	}
	return m, err
}

func newQuery(q question, edns bool) *dns.Msg {
	m := &dns.Msg{Question: []dns.Question{{Name: q.name, Qtype: q.kind, Qclass: q.class}}}
	m.Id = dns.Id()
	m.RecursionDesired = true
	m.CheckingDisabled = q.cd
	m.AuthenticatedData = true // RFC 6840, section 5.7: tell us whether it was validated
	if edns {
		m.SetEdns0(maxUDP, q.do)
	}
	return m
}

func (f *forwarder) exchange(ctx context.Context, network string, u netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	m, err := f.exchanger.Exchange(ctx, network, u, query)
	if err != nil {
		return nil, err
	}
	// RFC 5452, section 9.1.
	if m == nil || !m.Response || m.Id != query.Id || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 ||
		!strings.EqualFold(m.Question[0].Name, query.Question[0].Name) ||
		m.Question[0].Qtype != query.Question[0].Qtype || m.Question[0].Qclass != query.Question[0].Qclass {
		return nil, errMismatch
	}
	return m, nil
}
