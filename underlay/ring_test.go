// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
)

var (
	overA = Path{Relay: 7, Remote: netip.MustParseAddrPort("[fd00::1]:0")}
	overB = Path{Relay: 7, Remote: netip.MustParseAddrPort("[fd00::2]:0")}
)

func single(p Path, d string) *Burst { return &Burst{Path: p, Data: []byte(d), Size: len(d)} }

func TestRingJoinsWhatFollowsOneAnother(t *testing.T) {
	r, err := newRing()
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for _, b := range []*Burst{
		single(overA, "aaa"), single(overA, "bbb"), single(overA, "c"), // the short one is the last of its burst
		single(overA, "ddd"), single(overA, "longer"), single(overB, "eee"), {Path: overB, Data: []byte("ffffgg"), Size: 4},
		{Path: overB, Data: []byte("h"), Size: 1, Class: 2}, {Path: overB},
	} {
		r.put(b)
	}
	in := arena(10)
	n, err := r.receive(in, true)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range in[:n] {
		for d := range b.Each {
			got = append(got, string(d))
		}
		got = append(got, "|")
	}
	if s := string(bytes.Join([][]byte{[]byte("aaa"), []byte("bbb"), []byte("c"), []byte("|"), []byte("ddd"), []byte("|"), []byte("longer"), []byte("|"),
		[]byte("eee"), []byte("|"), []byte("ffff"), []byte("gg"), []byte("|"), []byte("h"), []byte("|")}, nil)); s != join(got) {
		t.Errorf("got %q", got)
	}
	if in[4].Path != overB || in[5].Class != 2 {
		t.Errorf("%+v", in[4:6])
	}
	if n, err := r.receive(in, false); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func join(s []string) (all string) {
	for _, x := range s {
		all += x
	}
	return all
}

func TestRingThatIsFullDrops(t *testing.T) {
	r, _ := newRing()
	for i := range ringSlots + 5 {
		p := overA
		if i%2 == 1 {
			p = overB
		}
		r.put(single(p, "x"))
	}
	if n := r.dropped.Load(); n != 3 { // two joined the last one
		t.Errorf("%d dropped", n)
	}
	total, in := 0, arena(64)
	for {
		n, _ := r.receive(in, false)
		if n == 0 {
			break
		}
		total += n
	}
	if total != ringSlots {
		t.Errorf("%d came out", total)
	}
	done := make(chan error)
	go func() {
		_, err := r.receive(in, true)
		done <- err
	}()
	r.close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	r.put(single(overA, "late"))
}

func TestRingDoesNotAllocate(t *testing.T) {
	r, _ := newRing()
	defer r.close()
	r.poll()
	in, b := arena(4), single(overA, string(make([]byte, 1400)))
	run := func() {
		for range 5 {
			r.put(b)
		}
		if n, err := r.receive(in, true); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	for range ringSlots {
		run()
	}
	if n := testing.AllocsPerRun(1000, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
