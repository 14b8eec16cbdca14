// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxUDP      = 1232 // bytes; passes every path of the minimum IPv6 MTU
	udpRead     = 4096 // bytes; longer questions are cut and so refused
	maxQueries  = 2 * maxForwards
	maxConns    = 64
	maxPipeline = 32 // questions of one connection that are answered at once
	idleTimeout = 10 * time.Second
	writeLimit  = 5 * time.Second
	maxFailures = 16 // read errors in a row that end Serve
)

// Options says what a Server is made of.
type Options struct {
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Forward asks upstreams; nil means over the real network.
	Forward Exchanger
	// Gate decides about other names than the network's; nil lets all of them through, with all their addresses.
	Gate Gate
}

// Gate decides about the names that are forwarded. Its methods are called concurrently.
type Gate interface {
	// Ask reports whether a name may be asked for. It is in lower case, without a dot at its end.
	Ask(name string) bool
	// Admit reports whether the answer to a question for name may show an address, which is used for about ttl from then on.
	Admit(name string, a netip.Addr, ttl time.Duration) bool
}

// Server answers DNS questions. All methods may be called concurrently.
type Server struct {
	log     *slog.Logger
	zone    atomic.Pointer[zone]
	forward *forwarder
	gate    Gate // may be nil
	misses  misses

	setMu  sync.Mutex // orders Set calls
	serial uint32     // of the SOA; guarded by setMu
}

// New makes a Server that knows no names and no upstreams until Set.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Forward == nil {
		o.Forward = &sockets{}
	}
	s := &Server{
		log:     o.Log,
		forward: newForwarder(o.Forward, o.Now),
		gate:    o.Gate,
		misses:  misses{now: o.Now, names: make(chan string, missQueue), seen: make(map[string]time.Time)},
		serial:  uint32(o.Now().Unix()), // grows over restarts too
	}
	s.zone.Store(compile(State{}, s.serial, o.Log))
	return s
}

// Set replaces what the server knows; questions that come in later are answered
// from it. Hosts with an impossible name or an address outside of the prefix, and
// upstreams that would lead back here, are left out and logged. The State must
// not be changed afterwards. Other upstreams than before also empty the cache.
func (s *Server) Set(st State) {
	s.setMu.Lock()
	defer s.setMu.Unlock()
	s.serial++
	z := compile(st, s.serial, s.log)
	before := s.zone.Swap(z)
	if !slices.Equal(before.upstreams, z.upstreams) {
		s.forward.reset()
	}
}

// Misses gives the names of agents (without the zone) that were asked for and
// aren't known. A name is given once in some seconds; where nobody reads, names
// are dropped. The channel is never closed.
func (s *Server) Misses() <-chan string { return s.misses.names }

// Serve answers on both sockets until ctx ends or one of them fails, closes them
// and returns when all its goroutines have ended: with nil after ctx's end, else
// with the failure. Either socket may be nil.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	if udp != nil {
		stop := context.AfterFunc(ctx, func() { udp.Close() })
		defer stop()
		wg.Go(func() { cancel(s.serveUDP(ctx, udp)) })
	}
	if tcp != nil {
		stop := context.AfterFunc(ctx, func() { tcp.Close() })
		defer stop()
		wg.Go(func() { cancel(s.serveTCP(ctx, tcp)) })
	}
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func (s *Server) serveUDP(ctx context.Context, conn net.PacketConn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxQueries)
	buf := make([]byte, udpRead)
	failures := 0
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return context.Canceled
		}
		if err != nil {
			// Some systems report an ICMP error about an earlier answer here.
			if failures++; failures == maxFailures || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
				return fmt.Errorf("magicdns: UDP socket: %w", err)
			}
			continue
		}
		failures = 0
		select {
		case slots <- struct{}{}:
		default:
			continue // overload: the client asks again
		}
		query := slices.Clone(buf[:n])
		wg.Go(func() {
			defer func() { <-slots }()
			if reply := s.respond(ctx, query, true); reply != nil {
				// A client that has gone away isn't our failure.
				_, _ = conn.WriteTo(reply, from)
			}
		})
	}
}

func (s *Server) serveTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxConns)
	failures := 0
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return context.Canceled
		}
		if err != nil {
			if failures++; failures == maxFailures || errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("magicdns: TCP listener: %w", err)
			}
			continue
		}
		failures = 0
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.serveConn(ctx, conn)
		})
	}
}

// serveConn answers the questions of one connection, many at once, until it is
// idle for too long, broken or ctx ends.
func (s *Server) serveConn(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	var writing sync.Mutex
	slots := make(chan struct{}, maxPipeline)
	for {
		slots <- struct{}{}
		query, err := readTCP(conn)
		if err != nil {
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			reply := s.respond(ctx, query, false)
			if reply == nil {
				return
			}
			framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)
			writing.Lock()
			defer writing.Unlock()
			_ = conn.SetWriteDeadline(time.Now().Add(writeLimit))
			if _, err := conn.Write(framed); err != nil {
				conn.Close() // ends the reader too
			}
		})
	}
}

func readTCP(conn net.Conn) ([]byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	query := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(conn, query)
	return query, err
}
