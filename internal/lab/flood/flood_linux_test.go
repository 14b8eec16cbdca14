// SPDX-License-Identifier: Apache-2.0

package flood

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receive starts a receiver on loopback.
func receive(t *testing.T, join bool) netip.AddrPort {
	t.Helper()
	v, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), join)
	if err != nil {
		t.Fatal(err)
	}
	at, err := v.Addr()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- v.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return at
}

func TestFlood(t *testing.T) {
	for _, segment := range []bool{false, true} {
		at := receive(t, segment)
		for _, size := range []int{MinSize, 1200} {
			// Slow enough for any machine: what is not lost here has to be counted.
			r, err := Send(t.Context(), Options{To: at, Size: size, Rate: 2000, For: 500 * time.Millisecond, Segment: segment})
			if err != nil {
				t.Fatal(err)
			}
			if r.Sent == 0 || r.Received != r.Sent || r.Twice != 0 || r.Late != 0 || r.Lost() != 0 {
				t.Errorf("%d bytes, segment %v: %+v", size, segment, r)
			}
		}
		// As fast as can be: more than were sent never arrive.
		r, err := Send(t.Context(), Options{To: at, Size: 64, For: 200 * time.Millisecond, Segment: segment})
		if err != nil {
			t.Fatal(err)
		}
		if r.Received == 0 || r.Received > r.Sent || r.Twice != 0 {
			t.Errorf("segment %v: %+v", segment, r)
		}
	}
}

func TestAsk(t *testing.T) {
	at := receive(t, false)
	times, err := Ask(t.Context(), at, 100)
	if err != nil {
		t.Fatal(err)
	}
	if times.Asked != 100 || times.Answered == 0 || times.Answered > 100 || times.Median <= 0 || times.Slow < times.Median {
		t.Errorf("%+v", times)
	}
	got := timesOf(4, []time.Duration{3000, 1000, 2000})
	if want := (Times{Asked: 4, Answered: 3, Median: 2, Slow: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestSendRefuses(t *testing.T) {
	at := receive(t, false)
	for _, size := range []int{0, MinSize - 1, MaxSize + 1} {
		if _, err := Send(t.Context(), Options{To: at, Size: size, For: time.Millisecond}); !errors.Is(err, errSize) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Send(ctx, Options{To: at, Size: 64, For: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func datagram(flood, n uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, flood), n)
}

func TestArrivals(t *testing.T) {
	var a arrivals
	for _, n := range []uint64{0, 1, 3, 2, 3, 200_000, maxSent} {
		if a.take(datagram(7, n)) != nil {
			t.Fatal("nobody asked")
		}
	}
	want := Result{Received: 5, Twice: 1, Late: 1}
	var got Result
	if !got.parseAnswer(a.take(datagram(7, end)), 7) || got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if a.take(datagram(6, 1)) != nil || a.received != 5 {
		t.Error("a straggler of an earlier flood was counted")
	}
	a.take(datagram(8, 3))
	got = Result{}
	if !got.parseAnswer(a.take(datagram(8, end)), 8) || got != (Result{Received: 1}) {
		t.Errorf("the next flood: %+v", got)
	}
	if got.parseAnswer(a.take(datagram(8, end)), 9) {
		t.Error("an answer about another flood was taken")
	}
}

func FuzzTake(f *testing.F) {
	f.Add(datagram(1, 2))
	f.Add(datagram(1, end))
	f.Add(datagram(1, maxSent-1))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, d []byte) {
		var a arrivals
		var r Result
		if answer := a.take(d); answer != nil && !r.parseAnswer(answer, binary.BigEndian.Uint64(d)) {
			t.Errorf("the answer %x cannot be read", answer)
		}
		r.parseAnswer(d, a.flood)
		if a.received > 1 {
			t.Error("one datagram counts for more")
		}
	})
}
