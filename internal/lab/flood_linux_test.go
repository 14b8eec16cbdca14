// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/pilot-protocol/pilot/internal/lab/flood"
	"testing"
)

const (
	floodPort   = 7008
	joinPort    = 7009  // the receiver takes datagrams in a row as one
	loadRate    = 40e3  // datagrams a second that every carrier carries
	floodSecond = "0.5" // how long one try of a rate takes
	echoCount   = 4000
	maxLost     = 0.01
)

// startFlood starts the receivers, and a carrier that only copies packets.
func (r *race) startFlood() {
	r.flood = r.build("flood")
	for port, join := range map[int]string{floodPort: "-join=false", joinPort: "-join"} {
		r.wait("counting", r.right.Start(r.flood, "-listen", fmt.Sprintf("[::]:%d", port), join))
	}
	forward := r.build("forward")
	bound := &carrier{name: "copying only", address: "fd78::2", bound: true}
	for i, h := range []*Host{r.left, r.right} {
		p := h.Start(forward, "copy0", fmt.Sprintf("192.0.2.%d:9999", 1+i), fmt.Sprintf("192.0.2.%d:9999", 2-i))
		r.wait("copying", p)
		h.must("ip", "addr", "add", fmt.Sprintf("fd78::%d/64", i+1), "dev", "copy0", "nodad")
		h.must("ip", "link", "set", "copy0", "up")
		bound.pids = append(bound.pids, p.cmd.Process.Pid)
	}
	r.carriers = append(r.carriers, bound)
}

// build compiles one of the lab's own programs.
func (r *race) build(name string) string {
	r.tb.Helper()
	path := filepath.Join(r.Dir(), name)
	cmd := exec.Command("go", "build", "-o", path, "./cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.tb.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// runFlood runs the sender until it gets an answer, which may itself be lost.
func runFlood[T any](r *race, c *carrier, port int, args ...string) (answer T) {
	r.tb.Helper()
	to := c.address
	if c.address[0] == 'f' {
		to = "[" + to + "]"
	}
	Eventually(r.tb, time.Minute, func(ctx context.Context) error {
		out := r.left.Run(ctx, append([]string{r.flood, "-to", fmt.Sprintf("%s:%d", to, port)}, args...)...)
		if !out.OK() {
			return fmt.Errorf("through %s: %v", c.name, out)
		}
		return json.Unmarshal([]byte(out.Stdout), &answer)
	})
	return answer
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }

// attempt is what a rate came to.
type attempt struct{ sent, arrived float64 } // a second

func (a attempt) ok() bool { return a.sent > 0 && a.arrived >= (1-maxLost)*a.sent }

// highest is how much arrives at the highest rate at which no more than maxLost of the datagrams is lost. It climbs from
// a rate that surely passes, and closes in on the first that twice does not: something else may have wanted the processors.
func highest(try func(rate float64) attempt) (best float64) {
	const step = 1.2
	most := try(0)
	if most.ok() || quick() {
		return most.arrived
	}
	twice := func(rate float64) bool {
		for range 2 {
			if a := try(rate); a.ok() {
				best = max(best, a.arrived)
				return a.sent > rate*(1-2*maxLost) // otherwise the sender can't do more
			}
		}
		return false
	}
	low := most.arrived * 0.6
	for low > 1000 && !twice(low) && best == 0 {
		low /= 2
	}
	for twice(low * step) {
		low *= step
	}
	high := low * step
	for range 2 {
		if middle := (low + high) / 2; twice(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return best
}

// What the search finds is what a link carries, whether the sender can do more than that or not.
func TestHighest(t *testing.T) {
	t.Setenv("PILOT_BENCH_QUICK", "")
	for _, c := range []struct{ sender, link, want float64 }{
		{1e6, 2e6, 1e6}, {1e6, 300e3, 300e3}, {1e6, 40e3, 40e3}, {1e6, 0, 0},
	} {
		tries := 0
		got := highest(func(rate float64) attempt {
			tries++
			sent := c.sender
			if rate > 0 {
				sent = min(rate, c.sender)
			}
			arrived := min(sent, c.link)
			if sent > c.link {
				arrived *= 0.9 // one that is overrun does worse
			}
			return attempt{sent: sent, arrived: arrived}
		})
		if got > c.want || got < 0.9*c.want || tries > 50 {
			t.Errorf("sender %.0f, link %.0f: found %.0f after %d tries", c.sender, c.link, got, tries)
		}
	}
}

// udp searches with iperf3, which makes a call of the kernel for each datagram.
func (r *race) udp(c *carrier, size int) {
	r.note(fmt.Sprintf("UDP, %d bytes, iperf3, kpps", size), c, highest(func(rate float64) attempt {
		s := r.iperf(c, "-u", "-t", "1", "-w", "4M", "-l", strconv.Itoa(size), "-b", number(rate*float64(size)*8)).End.Sum
		sent := s.Packets / s.Seconds
		return attempt{sent: sent, arrived: sent * (1 - s.LostPercent/100)}
	})/1e3)
}

// floods searches with a program that makes a call for many datagrams: sendmmsg, or segmentation offload.
func (r *race) floods(c *carrier, size int, segment bool) {
	row, port, how := "sendmmsg", floodPort, "-segment=false"
	if segment {
		row, port, how = "segments", joinPort, "-segment"
	}
	r.note(fmt.Sprintf("UDP, %d bytes, %s, kpps", size, row), c, highest(func(rate float64) attempt {
		f := runFlood[flood.Result](r, c, port, "-size", strconv.Itoa(size), "-rate", number(rate), "-seconds", floodSecond, how)
		return attempt{sent: float64(f.Sent) / f.Seconds, arrived: float64(f.Received) / f.Seconds}
	})/1e3)
}

// load measures what a datagram costs the daemons at a rate that all carry.
func (r *race) load(c *carrier) {
	if len(c.pids) == 0 {
		return
	}
	before := r.cpu(c)
	f := runFlood[flood.Result](r, c, floodPort, "-size", "64", "-rate", number(loadRate), "-seconds", "2")
	r.note(fmt.Sprintf("UDP, 64 bytes at %.0f kpps, daemons' CPU us each", loadRate/1e3), c, (r.cpu(c)-before)*1e6/float64(max(1, f.Received)))
}

// echo measures round trips of one small datagram at a time, between two programs that wait in the kernel.
func (r *race) echo(c *carrier) {
	t := runFlood[flood.Times](r, c, floodPort, "-ask", strconv.Itoa(echoCount))
	r.note("round trip, median, us", c, t.Median)
	r.note("round trip, 99th percentile, us", c, t.Slow)
}
