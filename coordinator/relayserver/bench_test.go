// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"context"
	"crypto/rand"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

const (
	benchDatagram = 1408
	udpWindow     = 2 << 20 // bytes that are on their way at once
	tlsWindow     = queueLimit / 4
)

// fastMember is a client whose UDP goes in bursts, as a node's does.
type fastMember struct {
	*relay.Client
	addr     netip.Addr
	socket   *socket
	received atomic.Int64 // bytes of datagrams
	progress chan struct{}
}

func (p *place) fast(b *testing.B, udp bool) *fastMember {
	b.Helper()
	key := must(identity.NewAgentKey(rand.Reader))
	pass := p.pass(key, 1, time.Hour)
	m := &fastMember{
		progress: make(chan struct{}, 1),
		addr:     identity.Address(p.authority.Public(), key.Public()), socket: must(openSocket(netip.MustParseAddrPort("127.0.0.1:0"))),
	}
	o := relay.Options{
		Statement: p.statement, Network: p.authority.Public(), Key: key, Pass: func() []byte { return pass },
		Deliver: func(_ netip.Addr, d []byte) { m.count(len(d)) },
	}
	if udp {
		o.SendUDP = func(to netip.AddrPort, d []byte) error {
			var out burst
			out.add(&endpoint{remote: to}, d, len(d), 0)
			return m.socket.send(&out)
		}
	}
	m.Client = must(relay.New(o))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- m.Run(ctx) }()
	go func() { ended <- m.receive() }()
	b.Cleanup(func() {
		cancel()
		_ = m.socket.close()
		for range cap(ended) {
			<-ended
		}
	})
	for m.Status().State != relay.StateConnected || udp && m.Status().Transport != relay.TransportUDP {
		time.Sleep(time.Millisecond)
	}
	return m
}

func (m *fastMember) count(n int) {
	m.received.Add(int64(n))
	select {
	case m.progress <- struct{}{}:
	default:
	}
}

func (m *fastMember) receive() error {
	in := make([]message, batch)
	for i := range in {
		in[i].data = make([]byte, 0, messageSize)
	}
	for {
		n, err := m.socket.receive(in)
		if err != nil {
			return err
		}
		for _, msg := range in[:n] {
			for d := msg.data; len(d) > 0; {
				k := min(msg.size, len(d))
				if inner, _, ok := m.Accept(d[:k], msg.remote); ok {
					m.count(len(inner))
				}
				d = d[k:]
			}
		}
	}
}

// flood sends as fast as they arrive, and reports how fast that is.
func flood(b *testing.B, window int64, send func() int, to *fastMember) {
	b.Helper()
	b.ReportAllocs()
	start, sent := time.Now(), int64(0)
	before := to.received.Load()
	lost := time.NewTimer(time.Hour)
	defer lost.Stop()
	for b.Loop() {
		sent += int64(send())
		for sent-(to.received.Load()-before) > window {
			lost.Reset(50 * time.Millisecond)
			select {
			case <-to.progress:
			case <-lost.C:
				sent = to.received.Load() - before
			}
		}
	}
	got := to.received.Load() - before
	b.ReportMetric(float64(got)*8/1e6/time.Since(start).Seconds(), "Mbit/s")
}

// BenchmarkUDP is the throughput between two clients over UDP, in bursts of 44 datagrams.
func BenchmarkUDP(b *testing.B) {
	p := newPlace(b, func(o *Options) { o.Rate = -1 })
	from, to := p.fast(b, true), p.fast(b, true)
	way, _ := from.UDP()
	var data []byte
	count := 0
	for ; len(data)+relay.HeaderSize+benchDatagram <= maxBurst; count++ {
		data = append(from.AppendHeader(data, to.addr), make([]byte, benchDatagram)...)
	}
	flood(b, udpWindow, func() int {
		var out burst
		out.add(&endpoint{remote: way}, data, relay.HeaderSize+benchDatagram, 0)
		if err := from.socket.send(&out); err != nil {
			return 0
		}
		return count * benchDatagram
	}, to)
}

// BenchmarkTLS is the throughput between two clients over TLS.
func BenchmarkTLS(b *testing.B) {
	p := newPlace(b, func(o *Options) { o.Rate = -1 })
	from, to := p.fast(b, false), p.fast(b, false)
	d := make([]byte, benchDatagram)
	flood(b, tlsWindow, func() int {
		sent := 0
		for range 44 {
			if from.SendTLS(to.addr, d) == nil {
				sent += len(d)
			}
		}
		if sent == 0 {
			runtime.Gosched()
		}
		return sent
	}, to)
}
