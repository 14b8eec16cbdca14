// SPDX-License-Identifier: Apache-2.0

// Package overlay moves IP packets between the virtual interface, the userspace stack and the sealed sessions with
// peers.
//
// There are loops that touch packets, and there is control. The loops read what control publishes (a snapshot of peers
// and rules, each link's current session) through atomic pointers, and run each packet to completion: no queue, no lock
// that control holds, no allocation, no log line. Control makes and ends sessions; it is one goroutine with a heap of
// timers, helped by one that does the handshakes' arithmetic, and all that they share lies under Overlay.mu.
//
// Files by direction: outbound.go and inbound.go are the loops in the order in which a packet meets them, control.go and
// handshake.go the timers as named events.
package overlay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// Underlay is what the overlay needs of package underlay. All methods are called concurrently.
type Underlay interface {
	// Send sends datagrams along a path, in order. It does not keep them.
	Send(p underlay.Path, datagrams [][]byte) error
	// SendBursts sends bursts, each of at most underlay.MaxBurst bytes and underlay.MaxSegments datagrams, in their order
	// until one is refused. It returns how many it has dealt with: where there is an error it is about the last of those.
	// It does not keep them.
	SendBursts(bursts []underlay.Burst) (int, error)
	// Receive waits for datagrams of one loop, and fills bursts; the error is net.ErrClosed after Close.
	Receive(loop int, bursts []underlay.Burst) (int, error)
	// Accept takes a datagram that is no record and no handshake: see underlay.Underlay. It does not keep it.
	Accept(d []byte, from underlay.Path) (inner []byte, path underlay.Path, ok bool)
	// Fan opens n more sockets towards a peer's address, and returns the paths from them.
	Fan(remote netip.AddrPort, n int) ([]underlay.Path, error)
	// Unfan closes those that none of the paths needs.
	Unfan(keep []underlay.Path)
	// Loops is how many goroutines may call Receive, each with its own number from 0.
	Loops() int
	// Close ends Receive. It may be called more than once.
	Close() error
}

// Stack answers at the network's service address.
type Stack interface {
	// Deliver takes a copy of a packet.
	Deliver(p []byte)
	// ReadPackets waits for packets, and fills bufs[i][offset:offset+sizes[i]].
	ReadPackets(ctx context.Context, bufs [][]byte, sizes []int, offset int) (int, error)
}

// Options of New.
type Options struct {
	Network  identity.AuthorityPublic
	Device   tun.Device // Run closes it: nothing else ends a waiting Read
	Hosted   tun.Device // has all local agents but the first; nil: Device has them too. Run closes it
	Underlay Underlay   // Run closes it too
	Stack    Stack      // nil: nothing answers at the service address
	AES      bool       // the machine has AES instructions
	Now      func() time.Time
	Rand     io.Reader // cryptographic source, safe for concurrent use; nil: crypto/rand
	Log      *slog.Logger
}

const (
	eventBuffer     = 256
	handshakeBuffer = 256 // datagrams that wait for the handshake worker
	messageBuffer   = 256 // control messages that wait for control
)

// Overlay is the data plane of one node.
type Overlay struct {
	network identity.AuthorityPublic
	device  tun.Device
	hosted  tun.Device // nil: all agents are behind device
	mtu     int
	under   Underlay
	stack   Stack
	clock   func() time.Time
	epoch   time.Time
	log     *slog.Logger
	noise   *noise.Machine
	// processors decides how many threads move packets.
	processors int

	snap     atomic.Pointer[snapshot]
	sessions sessionTable
	flows    *flowTable
	limiter  *packet.Limiter
	counters counters
	echoes   echoes

	events     eventSink
	handshakes chan arrival
	messages   chan message
	wakes      wakeList
	used       atomic.Bool // noise.Machine, since control last had it forget

	mu      sync.Mutex // guards control, never taken by the loops; it is released by unlock
	control control
}

// control is the state of the links' timers and of what waits for them.
type control struct {
	timers     timerHeap
	pings      map[uint64]*ping
	attempts   uint64 // serial number of the last handshake attempt
	generation uint64
	answers    answerer
	ended      bool
	letters    []letter  // leave when the lock is released
	fans       []fanWish // are opened by controlLoop without the lock
	unfan      bool      // likewise: sockets are to be closed that no link needs
}

// moment is a reading of the clock: for people and certificates, and as a distance that only grows.
type moment struct {
	wall time.Time
	at   time.Duration // since an hour before New, so that 0 always means never
}

// New makes an overlay that knows no agent yet: see Set.
func New(o Options) (*Overlay, error) {
	if o.Device == nil || o.Underlay == nil {
		return nil, errors.New("overlay: Options.Device and Options.Underlay are needed")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	v := &Overlay{
		network: o.Network, device: o.Device, hosted: o.Hosted, mtu: o.Device.MTU(), under: o.Underlay, stack: o.Stack,
		clock: o.Now, epoch: o.Now().Add(-time.Hour), log: o.Log, processors: runtime.NumCPU(),
		flows: newFlowTable(), limiter: packet.NewLimiter(),
		handshakes: make(chan arrival, handshakeBuffer),
		messages:   make(chan message, messageBuffer),
		wakes:      wakeList{kick: make(chan struct{}, 1)},
	}
	v.events.init()
	v.echoes.kick = v.wakes.signal
	v.control.pings = make(map[uint64]*ping)
	v.control.answers.init(v)
	v.snap.Store(emptySnapshot(o.Network))
	m, err := noise.NewMachine(noise.Options{Network: o.Network, Rand: o.Rand, AES: o.AES, Admit: v.admit})
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	v.noise = m
	return v, nil
}

func (o *Overlay) now() moment {
	wall := o.clock()
	return moment{wall: wall, at: wall.Sub(o.epoch)}
}

// Run moves packets until ctx ends or the device or the underlay fails. It closes both, since only that ends a loop
// that waits for one of them, and returns when all its goroutines have ended: nil if ctx ended.
func (o *Overlay) Run(ctx context.Context) error {
	o.reserve()
	group, inner := errgroup.WithContext(ctx)
	d := newDuplex(o)
	group.Go(func() error {
		<-inner.Done()
		o.farewell()
		err := errors.Join(o.device.Close(), o.under.Close(), d.wake())
		if o.hosted != nil {
			err = errors.Join(err, o.hosted.Close())
		}
		return err
	})
	if d != nil {
		group.Go(func() error { return d.run(inner) })
	} else {
		group.Go(func() error { return o.outboundLoop(inner, o.device) })
		for loop := range o.under.Loops() {
			group.Go(func() error { return o.inboundLoop(inner, loop) })
		}
	}
	if o.hosted != nil {
		group.Go(func() error { return o.outboundLoop(inner, o.hosted) })
	}
	if o.stack != nil {
		group.Go(func() error { return o.stackLoop(inner) })
	}
	group.Go(func() error { return o.handshakeLoop(inner) })
	group.Go(func() error { return o.controlLoop(inner) })
	err := errors.Join(group.Wait(), d.close())
	o.forgetAll()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// reserve sees to it that the loops, each of which holds one of Go's processors while it is in the kernel, leave some to
// everybody else: where there are none to spare the scheduler keeps taking theirs away and giving them back.
func (o *Overlay) reserve() {
	const others = 2
	if need := 1 + o.under.Loops() + others; runtime.GOMAXPROCS(0) < need {
		runtime.GOMAXPROCS(need)
	}
}

// deviceOf is the device that has the agent which a packet is for.
func (o *Overlay) deviceOf(snap *snapshot, p []byte) tun.Device {
	if o.hosted == nil || [16]byte(p[24:40]) == snap.first.Source() {
		return o.device
	}
	return o.hosted
}

// Segments is how many full packets of an MTU fit in one send of the underlay: it is best if the kernel makes its bursts no
// longer than that.
func Segments(mtu int) int {
	return min(underlay.MaxSegments, max(1, underlay.MaxBurst/(mtu+noise.Overhead)))
}

// ended tells whether an error of a loop is just the end of Run.
func ended(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) || errors.Is(err, context.Canceled) ||
		errors.Is(err, io.EOF))
}

// Events delivers what happened, for the node to act on. The channel is never closed; an event that finds it full is
// dropped and counted.
func (o *Overlay) Events() <-chan Event { return o.events.ch }
