// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func buffers(n, size int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	return bufs, make([]int, n)
}

func TestMemoryReadsBursts(t *testing.T) {
	m := NewMemory("mem0", 1420)
	for i := range 5 {
		if !m.Inject([]byte{byte(i), 0xaa}) {
			t.Fatalf("packet %d dropped", i)
		}
	}
	bufs, sizes := buffers(3, 100)
	n, err := m.Read(bufs, sizes, Headroom)
	if err != nil || n != 3 {
		t.Fatalf("first burst: %d, %v", n, err)
	}
	for i := range n {
		if got := bufs[i][Headroom : Headroom+sizes[i]]; !bytes.Equal(got, []byte{byte(i), 0xaa}) {
			t.Errorf("packet %d is %x", i, got)
		}
	}
	if n, err = m.Read(bufs, sizes, Headroom); err != nil || n != 2 {
		t.Fatalf("second burst: %d, %v", n, err)
	}
	if bufs[1][Headroom] != 4 {
		t.Errorf("last packet is %x", bufs[1][Headroom])
	}
}

func TestMemoryKeepsItsOwnCopies(t *testing.T) {
	m := NewMemory("mem0", 1420)
	p := append(make([]byte, Headroom), 1, 2, 3)
	if n, err := m.Write([][]byte{p}, Headroom); n != 1 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	p[Headroom] = 9
	if got := <-m.Sent(); !bytes.Equal(got, []byte{1, 2, 3}) {
		t.Errorf("sent %x", got)
	}
}

func TestMemoryDropsWhatDoesNotFit(t *testing.T) {
	m := NewMemory("mem0", 1420)
	for range memoryQueue {
		m.Inject([]byte{1})
		m.Write([][]byte{make([]byte, Headroom+1)}, Headroom)
	}
	if m.Dropped() != 0 {
		t.Fatalf("dropped %d before the queues were full", m.Dropped())
	}
	if m.Inject([]byte{1}) {
		t.Error("a full queue took a packet")
	}
	if n, err := m.Write([][]byte{make([]byte, Headroom+1)}, Headroom); n != 1 || err != nil {
		t.Errorf("write to a full queue: %d, %v", n, err)
	}
	if m.Dropped() != 2 {
		t.Errorf("dropped %d, want 2", m.Dropped())
	}
	// A packet that is larger than the buffer is lost, the one behind it isn't.
	m = NewMemory("mem0", 1420)
	m.Inject(make([]byte, 50))
	m.Inject([]byte{7})
	bufs, sizes := buffers(1, Headroom+10)
	if n, err := m.Read(bufs, sizes, Headroom); n != 1 || err != nil || bufs[0][Headroom] != 7 {
		t.Errorf("read behind a long packet: %d, %v, %x", n, err, bufs[0][Headroom])
	}
}

func TestMemoryCloseUnblocksRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory("mem0", 1420)
		result := make(chan error, 1)
		go func() {
			bufs, sizes := buffers(1, 100)
			_, err := m.Read(bufs, sizes, Headroom)
			result <- err
		}()
		synctest.Wait()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
		if err := m.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if m.Inject([]byte{1}) {
			t.Error("a closed device took a packet")
		}
		if _, err := m.Write([][]byte{make([]byte, Headroom+1)}, Headroom); !errors.Is(err, os.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
	})
}

func TestNames(t *testing.T) {
	for _, ok := range []string{"pilot0", "utun", "a-b_c.d", "fifteen-chars-x"} {
		if !validName(ok) {
			t.Errorf("%q refused", ok)
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a b", "tun%d", "sixteen-chars-xx", "a\x00", "ü"} {
		if validName(bad) {
			t.Errorf("%q accepted", bad)
		}
		var e *OpenError
		if _, err := Open(bad, 1420); !errors.Is(err, ErrName) || !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("Open(%q): %v", bad, err)
		}
	}
	for wish, want := range map[string]string{"pilot0": "utun", "utun": "utun", "utun7": "utun7", "utun07": "utun", "utun-1": "utun", "utunx": "utun"} {
		if got := utunName(wish); got != want {
			t.Errorf("utunName(%q) = %q, want %q", wish, got, want)
		}
	}
}

func TestMTURange(t *testing.T) {
	for _, mtu := range []int{-1, 0, 1279, 65536} {
		if _, err := Open("pilot0", mtu); !errors.Is(err, ErrMTU) {
			t.Errorf("Open with MTU %d: %v", mtu, err)
		}
	}
}

func BenchmarkMemoryBurst(b *testing.B) {
	m := NewMemory("mem0", 1420)
	bufs, sizes := buffers(memoryBatch, 2048)
	p := make([]byte, 1400)
	b.SetBytes(memoryBatch * 1400)
	for b.Loop() {
		for range memoryBatch {
			m.Inject(p)
		}
		if n, _ := m.Read(bufs, sizes, Headroom); n != memoryBatch {
			b.Fatalf("burst of %d", n)
		}
	}
}
