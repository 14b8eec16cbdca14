// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// way is one by which programs without privileges get out of a network namespace of their own.
type way struct {
	name string
	run  func(program ...string) []string // a command line
}

// BenchmarkSandbox compares the ways out of a sandbox: pilot run's, and slirp4netns as it is by default and with the long
// packets that Podman gives it. It measures; it judges nothing.
func BenchmarkSandbox(b *testing.B) {
	if testing.Short() {
		b.Skip("the lab starts real programs in network namespaces: not in a short run")
	}
	l := New(b)
	Programs(b, "iperf3", "nsenter", "unshare", "setpriv", "slirp4netns")
	left, right := l.Host("left"), l.Host("right")
	l.cable(left, right, "5.5.5.1/24", "5.5.5.2/24")
	u := left.user()
	found(b, left, "planner")
	invite := u.invite(b, left)
	l.wait("Server listening", right.Start("iperf3", "-s", "--forceflush"))
	r := &race{Lab: l, tb: b, left: left, right: right, results: map[string]map[string][]float64{}}
	ways := []way{
		{"pilot run", func(program ...string) []string {
			return u.run("bench", append([]string{"--quiet", "--invite-file", invite, "--egress", "5.5.5.2", "--"}, program...)...)
		}},
		u.slirp(b, "slirp4netns, defaults"),
		u.slirp(b, "slirp4netns, 65520", "--mtu=65520"),
		{"no sandbox", func(program ...string) []string { return u.as(program...) }},
	}
	rounds := benchRounds(2)
	for _, w := range ways {
		r.carriers = append(r.carriers, &carrier{name: w.name})
	}
	for b.Loop() {
		for range rounds {
			for i, w := range ways {
				for _, m := range []struct {
					row  string
					args []string
				}{
					{"upload, 1 stream", nil}, {"download, 1 stream", []string{"-R"}},
					{"upload, 4 streams", []string{"-P", "4"}}, {"download, 4 streams", []string{"-P", "4", "-R"}},
				} {
					args := append([]string{"iperf3", "-J", "-c", "5.5.5.2", "-t", strconv.Itoa(benchSeconds(2))}, m.args...)
					r.note(m.row+", Gb/s", r.carriers[i], u.iperf(b, w.run(args...)).End.SumReceived.Rate/1e9)
				}
			}
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-26s %-22s %8s %8s %8s\n", "", "", "median", "least", "most")
	for _, row := range r.order {
		for _, w := range ways {
			v := r.results[row][w.name]
			fmt.Fprintf(&table, "%-26s %-22s %8.2f %8.2f %8.2f\n", row, w.name, median(v), slices.Min(v), slices.Max(v))
		}
		name := strings.NewReplacer(" ", "-", ",", "", "/", "p").Replace(row)
		b.ReportMetric(median(r.results[row][ways[0].name])/median(r.results[row][ways[1].name]), name+"/slirp4netns")
		b.ReportMetric(median(r.results[row][ways[0].name])/median(r.results[row][ways[2].name]), name+"/slirp4netns-65520")
	}
	b.Log(table.String())
	b.ReportMetric(0, "ns/op")
}

// iperf runs a client until its server takes it.
func (u *user) iperf(tb testing.TB, command []string) (rep report) {
	tb.Helper()
	Eventually(tb, time.Minute, func(ctx context.Context) error {
		rep = report{}
		out := u.Run(ctx, command...)
		err := json.Unmarshal([]byte(out.Stdout), &rep)
		if err != nil || rep.Error != "" {
			return fmt.Errorf("iperf3: %w %s %v", err, rep.Error, out)
		}
		return nil
	})
	return rep
}

// slirp starts slirp4netns for a network namespace that a process waits in.
func (u *user) slirp(tb testing.TB, name string, options ...string) way {
	tb.Helper()
	file := u.home + "/" + strings.Map(func(r rune) rune {
		if r == ' ' || r == ',' {
			return '-'
		}
		return r
	}, name)
	u.Start(u.as("unshare", "-Urn", "sh", "-c", "echo $$ > "+file+"; exec sleep 1000000")...)
	var pid string
	Eventually(tb, 10*time.Second, func(context.Context) error {
		text, err := os.ReadFile(u.Path(file))
		if pid = strings.TrimSpace(string(text)); err == nil && pid == "" {
			err = os.ErrNotExist
		}
		return err
	})
	u.Start(u.as(append(append([]string{"slirp4netns", "--configure"}, options...), pid, "tap0")...)...)
	run := func(program ...string) []string {
		return u.as(append([]string{"nsenter", "--preserve-credentials", "-U", "-n", "-t", pid}, program...)...)
	}
	Eventually(tb, 10*time.Second, func(ctx context.Context) error {
		if r := u.Run(ctx, run("ip", "route", "get", "5.5.5.2")...); !r.OK() {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	return way{name, run}
}
