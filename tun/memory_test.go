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

func TestMemoryReads(t *testing.T) {
	m := NewMemory("mem0", 1420)
	buf, h := make([]byte, 100), Header{Kind: KindTCP}
	if p, err := m.Read(buf, &h, false); p != nil || err != nil {
		t.Fatalf("nothing: %x, %v", p, err)
	}
	for i := range 3 {
		if !m.Inject([]byte{byte(i), 0xaa}) {
			t.Fatalf("packet %d dropped", i)
		}
	}
	for i := range 3 {
		p, err := m.Read(buf, &h, i == 0)
		if err != nil || !bytes.Equal(p, []byte{byte(i), 0xaa}) || h != (Header{}) {
			t.Fatalf("packet %d is %x, %+v, %v", i, p, h, err)
		}
	}
}

func TestMemoryKeepsItsOwnCopies(t *testing.T) {
	m := NewMemory("mem0", 1420)
	p := []byte{1, 2, 3}
	if err := m.Write(nil, [][]byte{p[:1], p[1:]}); err != nil {
		t.Fatal(err)
	}
	p[0] = 9
	if got := <-m.Sent(); !bytes.Equal(got, []byte{1, 2, 3}) {
		t.Errorf("sent %x", got)
	}
}

func TestMemoryDropsWhatDoesNotFit(t *testing.T) {
	m := NewMemory("mem0", 1420)
	for range memoryQueue {
		m.Inject([]byte{1})
		_ = m.Write(nil, [][]byte{{1}})
	}
	if m.Dropped() != 0 {
		t.Fatalf("dropped %d before the queues were full", m.Dropped())
	}
	if m.Inject([]byte{1}) {
		t.Error("a full queue took a packet")
	}
	if err := m.Write(nil, [][]byte{{1}}); err != nil {
		t.Errorf("write to a full queue: %v", err)
	}
	if m.Dropped() != 2 {
		t.Errorf("dropped %d, want 2", m.Dropped())
	}
	// A packet that is larger than the buffer is lost, the one behind it isn't.
	m = NewMemory("mem0", 1420)
	m.Inject(make([]byte, 50))
	m.Inject([]byte{7})
	buf, h := make([]byte, 10), Header{}
	if p, err := m.Read(buf, &h, true); len(p) != 1 || err != nil || p[0] != 7 {
		t.Errorf("read behind a long packet: %x, %v", p, err)
	}
}

func TestMemoryCloseUnblocksRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory("mem0", 1420)
		result := make(chan error, 1)
		go func() {
			_, err := m.Read(make([]byte, 100), &Header{}, true)
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
		if err := m.Write(nil, [][]byte{{1}}); !errors.Is(err, os.ErrClosed) {
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

func BenchmarkMemory(b *testing.B) {
	m := NewMemory("mem0", 1420)
	p, buf, h := make([]byte, 1400), make([]byte, 2048), Header{}
	b.SetBytes(1400)
	for b.Loop() {
		m.Inject(p)
		if got, _ := m.Read(buf, &h, true); len(got) != len(p) {
			b.Fatalf("%d bytes", len(got))
		}
	}
}
