// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// What is sent through the tunnel arrives as it was sent, however bad the network below.

// bytesEnv is how many bytes the bulk test moves in all: a number, with K, M or G for powers of 1024 if it ends so.
// They are shared out among the links as in its table; "make integrity" moves 10 GB.
const bytesEnv = "PILOT_LAB_BYTES"

// tunneled is two hosts in one network of pilots, with an emulated cable between them.
type tunneled struct {
	*Lab
	hosts     [2]*Host
	addresses [2]netip.Addr // inside of the tunnel
	emulator  *Emulator
}

func newTunneled(tb testing.TB, l *Lab, seed uint64) *tunneled {
	tb.Helper()
	x := &tunneled{Lab: l}
	x.hosts[0], x.hosts[1], x.emulator = pairOn(l, seed)
	planner := found(tb, x.hosts[0], "planner")
	x.addresses[0] = planner.Address
	x.addresses[1] = joinBy(tb, x.hosts[1], "warehouse", planner.Invite).Address
	return x
}

// bad is a link that loses, doubles and swaps frames in both directions.
func (x *tunneled) bad(loss float64) {
	i := Impairment{Loss: loss, Duplication: 0.01, Reordering: 0.01}
	x.emulator.Set(i, i)
}

func (x *tunneled) report(t testing.TB) {
	t.Helper()
	out, in := x.emulator.Counters()
	t.Logf("frames of %s: %v; of %s: %v", x.hosts[0].Name(), out, x.hosts[1].Name(), in)
	for _, c := range []Counters{out, in} {
		if c.Lost == 0 || c.Duplicated == 0 || c.Reordered == 0 {
			t.Errorf("the link was not as bad as it was meant to be: %v", c)
		}
	}
}

// byteCount reads a number as in bytesEnv.
func byteCount(text string) (int64, error) {
	unit := int64(1)
	if i := strings.IndexAny("KMG", text[max(0, len(text)-1):]); text != "" && i >= 0 {
		unit, text = 1<<(10*(i+1)), text[:len(text)-1]
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%s=%s is no number of bytes", bytesEnv, text)
	}
	return n * unit, nil
}

func TestIntegrityOfBulkTransfers(t *testing.T) {
	links := []struct {
		loss float64
		part int64
	}{{0.001, 64}, {0.01, 16}, {0.05, 4}}
	const parts = 64 + 16 + 4
	total, err := byteCount(cmp.Or(os.Getenv(bytesEnv), "84M"))
	if err != nil {
		t.Fatal(err)
	}
	x := newTunneled(t, open(t), 1)
	for _, link := range links {
		t.Run(fmt.Sprintf("loss=%v", link.loss), func(t *testing.T) {
			size := total / parts * link.part
			// Far more than it takes: at 20 Mb/s, and then some.
			ctx := deadline(t, 3*time.Minute+time.Duration(size/2_500_000)*time.Second)
			x.bad(link.loss)
			begin := time.Now()
			x.bulk(ctx, t, size)
			took := time.Since(begin)
			t.Logf("%d bytes in %v: %.1f Mb/s in both directions together", size, took.Round(time.Millisecond), float64(size)*8/1e6/took.Seconds())
		})
	}
	x.report(t)
}

// bulk moves this many bytes over four connections, two opened by each host, in both directions at once.
func (x *tunneled) bulk(ctx context.Context, t *testing.T, size int64) {
	t.Helper()
	const connections = 4
	var wg sync.WaitGroup
	for i := range connections {
		from, to := i%2, 1-i%2
		share := max(1, size/(2*connections))
		wg.Go(func() {
			if err := exchange(ctx, x.hosts[from], x.hosts[to], netip.AddrPortFrom(x.addresses[to], uint16(7001+i)), share); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// flow is one of many that are under way at once.
type flow struct {
	from      int // which host opens it
	data      []byte
	datagrams [][]byte // not nil: it is a UDP flow
}

// wholeDatagram is how many bytes a UDP datagram has that just fits into the tunnel's MTU.
const wholeDatagram = 1420 - 40 - 8

// mix makes flows of 1 byte to 64 KiB, small ones as likely as large ones.
func mix(random *rand.Rand, count int) []flow {
	flows := make([]flow, count)
	edges := []int{1, 2, 3, wholeDatagram - 1, wholeDatagram, wholeDatagram + 1, 4096, 65535, 65536}
	source := randomBytes()
	for i := range flows {
		size := int(math.Exp(random.Float64() * math.Log(65536)))
		if i < 4*len(edges) {
			size = edges[i/4]
		}
		f := &flows[i]
		f.from, f.data = i%2, make([]byte, size)
		_, _ = source.Read(f.data) // never fails
		if i/2%2 == 0 {
			continue
		}
		// Most datagrams fit into a packet; some are so large that the host cuts them into fragments.
		limit := wholeDatagram
		if random.IntN(4) == 0 {
			limit = 1<<16 - 1 - 8
		}
		for rest := f.data; len(rest) > 0; {
			n := min(len(rest), limit)
			if limit == wholeDatagram && random.IntN(2) == 0 {
				n = 1 + random.IntN(n)
			}
			f.datagrams, rest = append(f.datagrams, rest[:n]), rest[n:]
		}
	}
	return flows
}

// tally is what became of the flows.
type tally struct {
	large sync.Mutex // a datagram in fragments is a burst, and several at once are more than some queues hold

	mu              sync.Mutex
	tcp, udp        int // flows
	datagrams, back int
}

func TestIntegrityOfManyFlows(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	l := open(t)
	Programs(t, "ping")
	x := newTunneled(t, l, seed)
	t.Run("clean", func(t *testing.T) {
		result := x.flows(t, mix(random, 500), 5*time.Second)
		if result.back != result.datagrams {
			t.Errorf("only %d of %d datagrams came back", result.back, result.datagrams)
		}
	})
	t.Run("loss=0.01", func(t *testing.T) {
		x.bad(0.01)
		result := x.flows(t, mix(random, 500), 100*time.Millisecond)
		if result.back < result.datagrams/2 {
			t.Errorf("only %d of %d datagrams came back", result.back, result.datagrams)
		}
		x.report(t)
	})
}

// flows runs them, some at a time, and looks at every packet that the tunnel hands to its hosts meanwhile.
func (x *tunneled) flows(t *testing.T, flows []flow, patience time.Duration) *tally {
	t.Helper()
	ctx := deadline(t, 2*time.Minute)
	end, _ := ctx.Deadline()
	var at [2]netip.AddrPort
	var watchers [2]*watcher
	for i, h := range x.hosts {
		watchers[i] = watch(t, h, pilot[localapi.Status](t, h, "status").Self.Interface, unix.PACKET_HOST)
		at[i] = netip.AddrPortFrom(x.addresses[i], 7007)
		server, err := startEchoes(h, at[i], end)
		if err != nil {
			t.Fatal(err)
		}
		defer server.close()
	}
	result := &tally{}
	next := make(chan flow)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for f := range next {
				if err := result.run(ctx, x.hosts[f.from], at[1-f.from], f, patience); err != nil {
					t.Errorf("%d bytes from %s, %d datagrams: %v", len(f.data), x.hosts[f.from].Name(), len(f.datagrams), err)
				}
			}
		})
	}
	for _, f := range flows {
		next <- f
	}
	close(next)
	workers.Wait()
	for i, h := range x.hosts {
		// Its own checksums are in the count, and one of them may well get lost.
		h.Run(ctx, "ping", "-n", "-c", "5", "-i", "0.05", "-W", "2", x.addresses[1-i].String())
	}
	x.drops(t)
	t.Logf("%d TCP flows, %d UDP flows with %d datagrams of which %d came back", result.tcp, result.udp, result.datagrams, result.back)
	for i, w := range watchers {
		s := w.stop(t)
		t.Logf("handed to %s: %v", x.hosts[i].Name(), s)
		if len(s.wrong) > 0 || s.dropped > 0 {
			t.Errorf("handed to %s: %d packets went by unseen; packets with wrong checksums:\n%s", x.hosts[i].Name(), s.dropped, s.wrong)
		}
		if s.verified["TCP"]+s.partial == 0 || s.verified["UDP"]+s.partial == 0 || s.verified["ICMPv6"] == 0 {
			t.Errorf("handed to %s: not all protocols were seen: %v", x.hosts[i].Name(), s)
		}
	}
	return result
}

// drops logs where on the way packets got lost, for the one who has to find out why, and wants that none did because
// its host found a wrong checksum.
func (x *tunneled) drops(t *testing.T) {
	t.Helper()
	for _, h := range x.hosts {
		counters := map[string]int{}
		for _, line := range lines(h.must("nstat", "-asz")) {
			var name string
			var value int
			if n, _ := fmt.Sscan(line, &name, &value); n == 2 && value > 0 && drop.MatchString(name) {
				counters[name] = value
				if strings.HasSuffix(name, "CsumErrors") {
					t.Errorf("%s: %d packets had a wrong checksum, says %s", h.Name(), value, name)
				}
			}
		}
		t.Logf("%s: dropped by pilot: %v; by the kernel: %v", h.Name(), pilot[localapi.Status](t, h, "status").Drops, counters)
	}
}

var drop = regexp.MustCompile("Errors|Drop|Discards|ReasmFails")

func (r *tally) run(ctx context.Context, h *Host, to netip.AddrPort, f flow, patience time.Duration) error {
	if f.datagrams == nil {
		r.mu.Lock()
		r.tcp++
		r.mu.Unlock()
		return tcpFlow(ctx, h, to, f.data)
	}
	if slices.ContainsFunc(f.datagrams, func(d []byte) bool { return len(d) > wholeDatagram }) {
		r.large.Lock()
		defer r.large.Unlock()
	}
	back, err := udpFlow(h, to, f.datagrams, patience)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.udp++
	r.datagrams += len(f.datagrams)
	r.back += back
	return err
}
