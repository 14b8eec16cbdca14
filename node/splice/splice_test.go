// SPDX-License-Identifier: Apache-2.0

package splice

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipe is an end of a connection in memory that can be closed by half and broken off.
type pipe struct {
	net.Conn // for what is not used
	r        *io.PipeReader
	w        *io.PipeWriter
	linger   atomic.Int64
}

func pipes() (a, b *pipe) {
	ra, wb := io.Pipe()
	rb, wa := io.Pipe()
	a, b = &pipe{r: ra, w: wa}, &pipe{r: rb, w: wb}
	a.linger.Store(-1)
	b.linger.Store(-1)
	return a, b
}

func (p *pipe) Read(b []byte) (int, error)  { return p.r.Read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p *pipe) CloseWrite() error           { return p.w.Close() }
func (p *pipe) SetLinger(sec int) error     { p.linger.Store(int64(sec)); return nil }

func (p *pipe) Close() error {
	if p.linger.Load() == 0 {
		return errors.Join(p.r.CloseWithError(syscall.ECONNRESET), p.w.CloseWithError(syscall.ECONNRESET))
	}
	return errors.Join(p.r.CloseWithError(net.ErrClosed), p.w.Close())
}

// join runs a splice; near and far are what is outside of it.
func join(ctx context.Context, o Options) (near, far *pipe, ended chan error) {
	near, a := pipes()
	b, far := pipes()
	ended = make(chan error, 1)
	go func() { ended <- New().Join(ctx, a, b, o) }()
	return near, far, ended
}

func send(t *testing.T, from, to *pipe, text string) {
	t.Helper()
	go func() { _, _ = io.WriteString(from, text) }() // fails where the test does
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("%q: %q %v", text, got, err)
	}
}

// One side may have said all while the other goes on.
func TestHalfClose(t *testing.T) {
	var c Counters
	near, far, ended := join(t.Context(), Options{Counters: []*Counters{&c}})
	send(t, near, far, "question")
	if err := near.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	send(t, far, near, "answer")
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	if c.Forth.Load() != 8 || c.Back.Load() != 6 {
		t.Errorf("counted %d and %d bytes", c.Forth.Load(), c.Back.Load())
	}
}

// A connection that broke off is broken off at its other end too: half of an answer must not look like all of it.
func TestResetIsPassedOn(t *testing.T) {
	near, far, ended := join(t.Context(), Options{})
	send(t, far, near, "half an ans")
	_ = far.SetLinger(0)
	far.Close()
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the other side meets %v", err)
	}
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it ended with %v", err)
	}
}

func TestContextEndsIt(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	near, far, ended := join(ctx, Options{})
	send(t, near, far, "x")
	why := errors.New("removed")
	cancel(why)
	if err := <-ended; err != why {
		t.Errorf("it ended with %v", err)
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the caller meets %v", err)
	}
}

// What is long comes through whole, whatever the buffers are, also small after large.
func TestAllSizes(t *testing.T) {
	near, far, ended := join(t.Context(), Options{})
	var sent []byte
	for i := range 200 {
		sent = append(sent, bytes.Repeat([]byte{byte(i)}, 1+(i*7919)%(2*fullSize))...)
	}
	go func() {
		for rest, i := sent, 0; len(rest) > 0; i++ {
			n := min(len(rest), 1+(i*104729)%(3*smallSize))
			if i%5 == 0 {
				n = min(len(rest), 2*fullSize)
			}
			if _, err := near.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		near.Close()
	}()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes, %v", len(got), len(sent), err)
	}
	far.Close()
	<-ended
}

func TestDatagrams(t *testing.T) {
	near, far, ended := join(t.Context(), Options{Datagrams: true})
	for _, size := range []int{1, smallSize + 1, 60000} {
		go func() { _, _ = near.Write(make([]byte, size)) }() // fails where the test does
		buf := make([]byte, fullSize)
		if n, err := far.Read(buf); n != size || err != nil {
			t.Errorf("a datagram of %d bytes: %d %v", size, n, err)
		}
	}
	near.CloseWrite()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestIdle(t *testing.T) {
	for _, c := range []struct {
		name string
		half bool
		want time.Duration
	}{{"both may speak", false, time.Hour}, {"one has said all", true, time.Minute}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far, ended := join(t.Context(), Options{Idle: time.Hour, Half: time.Minute})
				for range 5 { // one that moves now and then stays
					time.Sleep(50 * time.Minute)
					send(t, far, near, ".")
				}
				if c.half {
					if err := near.CloseWrite(); err != nil {
						t.Fatal(err)
					}
					if _, err := far.Read(make([]byte, 1)); err != io.EOF {
						t.Fatal(err)
					}
				}
				began := time.Now()
				if err := <-ended; err != ErrIdle || time.Since(began) != c.want {
					t.Errorf("it ended after %v with %v", time.Since(began), err)
				}
			})
		})
	}
}

// What is joined does not allocate for what moves.
func TestBuffersAreReused(t *testing.T) {
	b := buffer{pool: &New().full}
	for range 3 {
		b.read(len(b.next()))
		if len(b.next()) != fullSize {
			t.Fatal("no large buffer after much")
		}
		for range quiet {
			b.read(1)
			b.next()
		}
		if len(b.next()) != smallSize {
			t.Fatal("no small buffer after little")
		}
	}
	b.release()
}

// Each port that sends has a connection of its own, which ends when nothing moves.
func TestFlows(t *testing.T) {
	echo := listenUDP(t)
	go func() {
		buf := make([]byte, fullSize)
		for {
			n, from, err := echo.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDPAddrPort(append([]byte("echo: "), buf[:n]...), from)
		}
	}()
	defer echo.Close()
	near := listenUDP(t)
	var c Counters
	var open atomic.Int64
	failures := make(chan error, 100)
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", echo.LocalAddr().String())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		New().Flows(t.Context(), near, FlowOptions{
			Dial: dial, Idle: time.Minute, Counters: &c,
			Admit: func(netip.Addr) bool { return open.Add(1) <= 3 }, Done: func(netip.Addr) { open.Add(-1) },
			Reached: func(err error) {
				if err != nil {
					failures <- err
				}
			},
		})
	}()
	for range 3 {
		u, err := net.Dial("udp", near.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		for _, text := range []string{"one", "another"} {
			if _, err := io.WriteString(u, text); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if n, err := u.Read(buf); string(buf[:n]) != "echo: "+text || err != nil {
				t.Errorf("%q %v", buf[:n], err)
			}
		}
	}
	if open.Load() != 3 || c.Forth.Load() != 30 || c.Back.Load() != 30+6*6 {
		t.Errorf("%d flows, %d and %d bytes", open.Load(), c.Forth.Load(), c.Back.Load())
	}
	near.Close()
	<-ended
	if open.Load() != 0 || len(failures) > 0 {
		t.Errorf("%d flows are left; %d failures", open.Load(), len(failures))
	}
}

func listenUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A flow on which nothing moves ends; one that moves now and then stays.
func TestFlowsEndWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newPackets(), make(chan *pipe, 2)
		over := make(chan netip.Addr, 2)
		go New().Flows(t.Context(), near, FlowOptions{
			Dial: func(context.Context) (net.Conn, error) { a, b := pipes(); far <- b; return a, nil },
			Idle: time.Minute, Counters: new(Counters), Admit: func(netip.Addr) bool { return true },
			Done: func(a netip.Addr) { over <- a }, Reached: func(error) {},
		})
		from := netip.MustParseAddrPort("[fd00::1]:1234")
		near.in <- packet{[]byte("x"), from}
		b := <-far
		buf := make([]byte, 10)
		if n, err := b.Read(buf); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		for range 3 {
			time.Sleep(50 * time.Second)
			if _, err := b.Write([]byte("answer")); err != nil {
				t.Fatal(err)
			}
			if p := <-near.out; string(p.data) != "answer" || p.at != from {
				t.Errorf("%q to %v", p.data, p.at)
			}
		}
		began := time.Now()
		if a := <-over; a != from.Addr() || time.Since(began) != time.Minute {
			t.Errorf("%v ended after %v", a, time.Since(began))
		}
		near.Close()
	})
}

// packets is a UDP socket in memory.
type packets struct {
	net.PacketConn // for what is not used
	in, out        chan packet
	closed         chan struct{}
}

type packet struct {
	data []byte
	at   netip.AddrPort
}

func newPackets() *packets {
	return &packets{in: make(chan packet), out: make(chan packet, 10), closed: make(chan struct{})}
}

func (p *packets) Close() error { close(p.closed); return nil }

func (p *packets) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case d := <-p.in:
		return copy(b, d.data), d.at, nil
	case <-p.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (p *packets) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	p.out <- packet{append([]byte(nil), b...), to}
	return len(b), nil
}
