// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// meeting is what came of one pair of sites.
type meeting struct {
	from, to  *Site
	firstByte time.Duration // of a page, by curl: name, session, connection and answer
	path      string        // in the end
	direct    time.Duration // from the same beginning until the path was direct; 0: it never was
	err       error         // why there is no path
}

// promised tells whether two kinds of sites have to get a direct path: both can use UDP, they have a kind of address
// in common, and not both choose another port for each address that they send to.
func promised(a, b Kind) bool {
	silent := func(k Kind) bool { return k == UDPBlocked || k == ProxyOnly }
	hard := func(k Kind) bool { return k == ADM || k == APDM }
	families := func(k Kind) (v4, v6 bool) { return k != IPv6Only, k == IPv6Only || k == Public }
	a4, a6 := families(a)
	b4, b6 := families(b)
	return !silent(a) && !silent(b) && (a4 && b4 || a6 && b6) && !(hard(a) && hard(b))
}

// Where one side has to be found among random ports, luck decides: each try finds it with 98 of 100, and there is one
// in a minute.
func byLuck(a, b Kind) bool {
	hard := func(k Kind) bool { return k == ADM || k == APDM }
	strict := func(k Kind) bool { return k == EIM || k == CGNAT }
	return hard(a) && strict(b) || strict(a) && hard(b)
}

// Sites of every two kinds connect, without any configuration, and directly wherever that is possible.
func TestMatrix(t *testing.T) {
	beside(t)
	m := openMesh(t, 10*time.Millisecond, "eu-1", "eu-2")
	kinds := Kinds()
	var left, right []*Site
	for i, kind := range kinds {
		left = append(left, m.Site(fmt.Sprintf("a%d", i), kind))
		right = append(right, m.Site(fmt.Sprintf("b%d", i), kind))
	}
	all := slices.Concat(left, right)
	begin := time.Now()
	m.join(all...)
	var pairs [][2]*Site
	for i := range kinds {
		for j := i; j < len(kinds); j++ {
			pairs = append(pairs, [2]*Site{left[i], right[j]})
		}
	}
	// What the table has no place for.
	near := [][2]*Site{{left[1], m.Beside("lan1", left[1])}, {left[3], m.Beside("lan3", left[3])}, {left[4], m.Customer("customer", left[4])}}
	for _, pair := range near {
		m.join(pair[1])
		right, pairs = append(right, pair[1]), append(pairs, pair)
	}
	m.trust(pairs...)
	for _, s := range right {
		s.WriteFile("index.html", s.Name(), 0o644)
		serve(s.Host)
	}
	t.Logf("%d agents are up after %v", len(all), time.Since(begin).Round(time.Millisecond))

	meetings := make([]meeting, len(pairs))
	m.schedule(pairs, 3, func(i int) { meetings[i] = meet(pairs[i][0], pairs[i][1]) })
	inTable := meetings[:len(pairs)-len(near)]
	t.Logf("a page from each kind of site to each other: the path in the end, the time to the first byte, and to a direct path\n\n%s",
		table(kinds, inTable))
	for i, x := range meetings {
		if x.err != nil {
			t.Errorf("%s does not reach %s: %v", x.from.Kind, x.to.Kind, x.err)
			continue
		}
		if i >= len(inTable) {
			t.Logf("%s and %s, neighbours (%s): %s, %.2f s, %.1f s", x.from.Name(), x.to.Name(), x.from.Kind, x.path, x.firstByte.Seconds(), x.direct.Seconds())
		}
		if (i >= len(inTable) || promised(x.from.Kind, x.to.Kind)) && !direct(x.path) {
			t.Errorf("%s and %s have no direct path but %q", x.from.Kind, x.to.Kind, x.path)
		}
		if x.firstByte > 5*time.Second {
			t.Errorf("%s to %s: the first byte took %v", x.from.Kind, x.to.Kind, x.firstByte)
		}
	}
}

// schedule runs f for each pair, so many at once, none of which share a site: what one does is no help to another.
func (m *mesh) schedule(pairs [][2]*Site, atOnce int, f func(int)) {
	m.t.Helper()
	var mu sync.Mutex
	busy, done := map[*Site]bool{}, make([]bool, len(pairs))
	freed := sync.NewCond(&mu)
	next := func() int {
		mu.Lock()
		defer mu.Unlock()
		for {
			left := false
			for i, pair := range pairs {
				if done[i] {
					continue
				}
				if left = true; !busy[pair[0]] && !busy[pair[1]] {
					done[i], busy[pair[0]], busy[pair[1]] = true, true, true
					return i
				}
			}
			if !left {
				return -1
			}
			freed.Wait()
		}
	}
	m.each(atOnce, atOnce, func(int) error {
		for i := next(); i >= 0; i = next() {
			f(i)
			mu.Lock()
			busy[pairs[i][0]], busy[pairs[i][1]] = false, false
			freed.Broadcast()
			mu.Unlock()
		}
		return nil
	})
}

// meet fetches a page, and goes on to send something until the path is direct or is not going to be.
func meet(a, b *Site) (x meeting) {
	x.from, x.to = a, b
	patience := 6 * time.Second
	switch {
	case a.LAN == b.LAN && a.LAN != nil:
		patience = 20 * time.Second
	case byLuck(a.Kind, b.Kind):
		patience = 200 * time.Second
	case promised(a.Kind, b.Kind):
		patience = 40 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience+30*time.Second)
	defer cancel()
	begin := time.Now()
	r := a.Run(ctx, "curl", "-sS", "--fail", "--max-time", "20", "-w", "\n%{time_starttransfer}", "http://"+b.Name()+"/")
	page, seconds, _ := strings.Cut(r.Stdout, "\n")
	took, err := strconv.ParseFloat(seconds, 64)
	if !r.OK() || page != b.Name() || err != nil {
		p, err := peer(a.Host, b.Name())
		x.err = fmt.Errorf("%v\nthe peer is %s, path %q, %v, %v", r, p.State, p.Path, p.Problem, err)
		return x
	}
	x.firstByte = time.Duration(took * float64(time.Second))

	traffic, stop := context.WithCancel(ctx)
	var sending sync.WaitGroup
	sending.Go(func() { a.Run(traffic, "ping", "-q", "-i", "0.2", b.Name()) })
	defer sending.Wait()
	defer stop()
	if awaitPath(a.Host, b.Name(), patience, direct) == nil {
		x.direct = time.Since(begin)
	}
	p, err := peer(a.Host, b.Name())
	x.path, x.err = p.Path, err
	return x
}

// table shows meetings as a table in Markdown, of which one half is empty: pairs have no direction.
func table(kinds []Kind, meetings []meeting) string {
	var b strings.Builder
	b.WriteString("| |")
	for _, k := range kinds {
		fmt.Fprintf(&b, " %s |", k)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(kinds)) + "\n")
	for _, row := range kinds {
		fmt.Fprintf(&b, "| **%s** |", row)
		for _, column := range kinds {
			i := slices.IndexFunc(meetings, func(x meeting) bool { return x.from.Kind == row && x.to.Kind == column })
			if i < 0 {
				b.WriteString(" |")
				continue
			}
			x := meetings[i]
			if x.err != nil {
				b.WriteString(" **fails** |")
				continue
			}
			kind, _, _ := strings.Cut(x.path, " ")
			fmt.Fprintf(&b, " %s, %.2f s", kind, x.firstByte.Seconds())
			if x.direct > 0 {
				fmt.Fprintf(&b, ", %.1f s", x.direct.Seconds())
			}
			b.WriteString(" |")
		}
		b.WriteString("\n")
	}
	return b.String()
}
