// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pacedScript is a web server that takes about twelve seconds for the file "big" in its folder, in small pieces at equal
// distances, so that a pause at the other end is one of the network.
const pacedScript = `
import http.server, os, time
class Paced(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = open("big", "rb").read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        piece, begin = len(data) // 1200, time.time()
        for i in range(0, len(data), piece):
            self.wfile.write(data[i:i+piece])
            time.sleep(max(0, begin + i / piece / 100 - time.time()))
class Server(http.server.ThreadingHTTPServer):
    address_family = __import__("socket").AF_INET6
server = Server(("::", 8080), Paced)
print("pacing")
server.serve_forever()
`

// disruption is something that happens during a download.
type disruption struct {
	name     string
	from, to Kind // of the site that downloads, and of the one that has the file
	path     func(path string) bool
	// happen returns the moment from which on the pause counts.
	happen func(t *testing.T, m *mesh, a, b *Site) time.Time
	// limit is generous. What is aimed at is 5 s.
	limit time.Duration
}

// flushable is a home router whose ports change when it forgets its mappings.
func flushable(s *Site) {
	s.Gateway.Set(Rules{NAT: true, Filtering: AddressDependent})
}

// freezeEnv asks for another time than a minute for which a host is stopped.
const freezeEnv = "PILOT_LAB_FREEZE"

func disruptions(stop time.Duration) []disruption {
	now := func(f func(m *mesh, a, b *Site)) func(*testing.T, *mesh, *Site, *Site) time.Time {
		return func(_ *testing.T, m *mesh, a, b *Site) time.Time {
			begin := time.Now()
			f(m, a, b)
			return begin
		}
	}
	const limit = 15 * time.Second
	return []disruption{
		{"mappings flushed, receiver", EIM, EIM, direct, now(func(_ *mesh, a, _ *Site) { a.Gateway.Flush() }), limit},
		{"mappings flushed, sender", EIM, EIM, direct, now(func(_ *mesh, _, b *Site) { b.Gateway.Flush() }), limit},
		{"new public address, receiver", EIM, EIM, direct, now(func(_ *mesh, a, _ *Site) { a.renumber() }), limit},
		{"new public address, sender", EIM, EIM, direct, now(func(_ *mesh, _, b *Site) { b.renumber() }), limit},
		{"direct path eats the data", EIM, EIM, direct, now(func(_ *mesh, a, b *Site) { a.Gateway.Deafen(b.Gateway.Public()) }), limit},
		{"direct path eats the acknowledgements", EIM, EIM, direct, now(func(_ *mesh, a, b *Site) { b.Gateway.Deafen(a.Gateway.Public()) }), limit},
		{"relay killed", APDM, APDM, relayed, killRelay, limit},
		{"relay killed, by TLS", UDPBlocked, UDPBlocked, relayed, killRelay, limit},
		{"host stopped for " + stop.String(), EIM, EIM, direct, func(t *testing.T, _ *mesh, a, _ *Site) time.Time {
			freeze(t, a.Host, stop)
			return time.Now()
		}, limit},
	}
}

// renumber gives the site's router an address of the backbone that nobody has.
func (s *Site) renumber() { s.Gateway.Renumber(fmt.Sprintf("198.51.100.%d/24", 128+s.number)) }

// killRelay ends the relay by which a reaches b.
func killRelay(t *testing.T, m *mesh, a, b *Site) time.Time {
	t.Helper()
	p, err := peer(a.Host, b.Name())
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Fields(p.Path + " ?")[1]
	r := m.relays[name]
	if r == nil {
		t.Fatalf("no relay in the path %q", p.Path)
	}
	begin := time.Now()
	r.process.Kill()
	return begin
}

// freeze stops all programs of a host for a while, as when a laptop sleeps or a virtual machine is moved.
func freeze(t *testing.T, h *Host, length time.Duration) {
	t.Helper()
	stopped := h.Processes()
	for pid := range stopped {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(length)
	for pid := range stopped {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever happens to the network in the middle of a download, it goes on within seconds and ends well.
func TestDisruptions(t *testing.T) {
	beside(t)
	m := openMesh(t, 10*time.Millisecond, "eu-1", "eu-2")
	const size = 12 << 20
	stop := time.Minute
	if text := os.Getenv(freezeEnv); text != "" {
		var err error
		if stop, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	all := disruptions(stop)
	sites := make([][2]*Site, len(all))
	var flat []*Site
	sums := make([][32]byte, len(all))
	for i, d := range all {
		a, b := m.Site(fmt.Sprintf("a%d", i), d.from), m.Site(fmt.Sprintf("b%d", i), d.to)
		for _, s := range []*Site{a, b} {
			if s.Kind == EIM {
				flushable(s)
			}
		}
		sites[i], flat = [2]*Site{a, b}, append(flat, a, b)
		sums[i] = writeRandom(t, b.Host, "big", size)
	}
	m.join(flat...)
	m.trust(sites...)
	for _, pair := range sites {
		m.wait("pacing", pair[1].Start("python3", "-c", pacedScript))
	}
	// Those that end a relay come after the others and one after the other; the others don't meddle with each other.
	for _, alone := range []bool{false, true} {
		t.Run(map[bool]string{false: "together", true: "alone"}[alone], func(t *testing.T) {
			for i, d := range all {
				if strings.HasPrefix(d.name, "relay") != alone {
					continue
				}
				t.Run(d.name, func(t *testing.T) {
					if !alone {
						t.Parallel()
					}
					d.run(t, m, sites[i][0], sites[i][1], size, sums[i], stop)
					if alone {
						m.revive()
					}
				})
			}
		})
	}
}

// run downloads a file while the disruption happens.
func (d disruption) run(t *testing.T, m *mesh, a, b *Site, size int64, sum [32]byte, frozen time.Duration) {
	ctx := deadline(t, 3*time.Minute+frozen)
	// The path has to be the wanted one before, and stay it.
	if r := tryPilot(a.Host, "", "ping", b.Name(), "--count", "3", "--interval", "200ms"); !r.OK() {
		t.Fatal(r)
	}
	traffic, stop := context.WithCancel(ctx)
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		a.Run(traffic, "ping", "-q", "-i", "0.2", b.Name())
	}()
	err := awaitPath(a.Host, b.Name(), 60*time.Second, d.path)
	stop()
	<-sending
	if err != nil {
		t.Fatal(err)
	}
	x := startTransfer(a.Host, "http://"+b.Name()+":8080/", "100M")
	x.reach(t, size/6)
	growth := watchGrowth(ctx, x)
	quietly := time.Now()
	time.Sleep(time.Second)
	usual := growth.longest(quietly)
	begin := d.happen(t, m, a, b)
	x.finish(ctx, t, sum)
	gap := growth.longest(begin)
	p, err := peer(a.Host, b.Name())
	t.Logf("%s: a gap of %v (before: %v); the path afterwards: %q, %v", d.name, gap.Round(10*time.Millisecond),
		usual.Round(10*time.Millisecond), p.Path, err)
	if gap > d.limit {
		t.Errorf("%s: the download stood still for %v", d.name, gap)
	}
}

// growth is when the file of a download became longer.
type growth struct {
	mu    sync.Mutex
	times []time.Time
}

// watchGrowth looks at the file of a download a hundred times a second until that has ended.
func watchGrowth(ctx context.Context, x transfer) *growth {
	g := &growth{}
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for last := int64(-1); ctx.Err() == nil && x.process.Running(); <-tick.C {
			info, err := os.Stat(x.path)
			if err != nil || info.Size() == last {
				continue
			}
			last = info.Size()
			g.mu.Lock()
			g.times = append(g.times, time.Now())
			g.mu.Unlock()
		}
	}()
	return g
}

// longest is the longest time after begin in which nothing came.
func (g *growth) longest(begin time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	var gap time.Duration
	for _, at := range g.times {
		if at.After(begin) {
			gap, begin = max(gap, at.Sub(begin)), at
		}
	}
	return gap
}
