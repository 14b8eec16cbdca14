// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestRecordFormat(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		a, b := d.connect(epoch)
		prefix := []byte("prefix")
		for counter := range uint64(3) {
			record, err := a.Seal(prefix, FlagControl, []byte("hello"))
			check(t, err)
			if !bytes.HasPrefix(record, prefix) {
				t.Fatal("Seal did not append")
			}
			record = record[len(prefix):]
			if len(record) != len("hello")+Overhead || Kind(record) != KindRecord || RecordIndex(record) != b.LocalIndex() ||
				Flags(record[1]) != FlagControl || binary.BigEndian.Uint64(record[8:]) != counter {
				t.Fatalf("record %x", record)
			}
			plain, flags, err := b.Open(prefix, record)
			check(t, err)
			if string(plain) != "prefixhello" || flags != FlagControl {
				t.Fatalf("opened %q, %v", plain, flags)
			}
		}
	})
}

func TestSealAndOpenInPlace(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		a, b := d.connect(epoch)
		buf := make([]byte, 200)
		copy(buf[HeaderSize:], "in place")
		record, err := a.Seal(buf[:0], 0, buf[HeaderSize:HeaderSize+8])
		check(t, err)
		if &record[0] != &buf[0] {
			t.Fatal("Seal moved")
		}
		plain, _, err := b.Open(record[HeaderSize:HeaderSize], record)
		check(t, err)
		if string(plain) != "in place" || &plain[0] != &buf[HeaderSize] {
			t.Fatalf("opened %q", plain)
		}
	})
}

func TestRecordsReorderedLostDuplicated(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		a, b := d.connect(epoch)
		r := rand.New(rand.NewPCG(7, 7))
		var records [][]byte
		for i := range 2000 {
			record, err := a.Seal(nil, 0, binary.BigEndian.AppendUint32(nil, uint32(i)))
			check(t, err)
			if r.IntN(10) != 0 { // lost
				records = append(records, record)
			}
			if r.IntN(5) == 0 {
				records = append(records, record)
			}
		}
		r.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
		seen := map[uint32]bool{}
		for _, record := range records {
			plain, _, err := b.Open(nil, record)
			i := uint32(binary.BigEndian.Uint64(record[8:]))
			if seen[i] {
				wantError(t, err, ErrReplay)
				continue
			}
			check(t, err)
			if binary.BigEndian.Uint32(plain) != i {
				t.Fatalf("record %d opened as %x", i, plain)
			}
			seen[i] = true
		}
	})
}

func TestRecordCorruptedAnywhere(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		a, b := d.connect(epoch)
		record, err := a.Seal(nil, 0, []byte("some plaintext"))
		check(t, err)
		for i := range record {
			for bit := range 8 {
				bad := bytes.Clone(record)
				bad[i] ^= 1 << bit
				if out, _, err := b.Open([]byte("x"), bad); err == nil || string(out) != "x" {
					t.Fatalf("byte %d bit %d: %q, %v", i, bit, out, err)
				}
			}
		}
		for n := range record {
			if _, _, err := b.Open(nil, record[:n]); err == nil {
				t.Fatalf("accepted %d of %d bytes", n, len(record))
			}
		}
		if _, _, err := b.Open(nil, append(bytes.Clone(record), 0)); err == nil {
			t.Fatal("accepted a byte more")
		}
		if b.Confirmed() {
			t.Fatal("confirmed by a forgery")
		}
		// None of it moved the window or confirmed anything.
		if _, _, err := b.Open(nil, record); err != nil {
			t.Fatal(err)
		}
		_, _, err = a.Open(nil, record)
		if err == nil {
			t.Fatal("a record was reflected to its sender")
		}
	})
}

func TestConfirmation(t *testing.T) {
	d := newDuo(t, bothSuites)
	a, b := d.connect(epoch)
	if !a.Confirmed() || b.Confirmed() {
		t.Fatalf("confirmed: %v %v", a.Confirmed(), b.Confirmed())
	}
	dst := []byte("dst")
	out, err := b.Seal(dst, 0, []byte("too early"))
	wantError(t, err, ErrUnconfirmed)
	if string(out) != "dst" {
		t.Fatalf("wrote %q", out)
	}
	send(t, a, b, nil)
	if !b.Confirmed() {
		t.Fatal("not confirmed by a record")
	}
	send(t, b, a, []byte("now"))
}

func TestSessionLifetime(t *testing.T) {
	d := newDuo(t, bothSuites)
	a, b := d.confirmed(epoch)
	for _, c := range []struct {
		after                  time.Duration
		rekeyA, rekeyB, expire bool
	}{
		{0, false, false, false}, {RekeyAfter - 1, false, false, false}, {RekeyAfter, true, false, false},
		{ExpireAfter - 1, true, false, false}, {ExpireAfter, true, false, true}, {-time.Hour, false, false, false},
	} {
		now := epoch.Add(c.after)
		if a.NeedsRekey(now) != c.rekeyA || b.NeedsRekey(now) != c.rekeyB || a.Expired(now) != c.expire || b.Expired(now) != c.expire {
			t.Errorf("after %v: %v %v %v %v", c.after, a.NeedsRekey(now), b.NeedsRekey(now), a.Expired(now), b.Expired(now))
		}
	}
	a.sent.Store(rekeyAfterRecords)
	if !a.NeedsRekey(epoch) || a.Expired(epoch) {
		t.Error("the counter does not ask for a new session")
	}
	a.sent.Store(maxRecords - 1)
	send(t, a, b, []byte("the last one"))
	_, err := a.Seal(nil, 0, nil)
	wantError(t, err, ErrExhausted)
	if !a.Expired(epoch) {
		t.Error("the counter does not end the session")
	}
	send(t, b, a, []byte("the other way"))
}

func TestWipe(t *testing.T) {
	d := newDuo(t, bothSuites)
	a, b := d.confirmed(epoch)
	record, err := a.Seal(nil, 0, nil)
	check(t, err)
	b.Wipe()
	_, _, err = b.Open(nil, record)
	wantError(t, err, ErrWiped)
	_, err = b.Seal(nil, 0, nil)
	wantError(t, err, ErrWiped)
}

// TestAbuse13RecordReplay hands each record to many readers at once, more than once: each is accepted exactly once.
func TestAbuse13RecordReplay(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		a, b := d.connect(epoch)
		const sealers, openers, each = 4, 4, 500
		records := make([][][]byte, sealers)
		var wg sync.WaitGroup
		for s := range sealers {
			wg.Go(func() {
				for range each {
					record, err := a.Seal(nil, 0, []byte("once"))
					if err != nil {
						t.Error(err)
						return
					}
					records[s] = append(records[s], record)
				}
			})
		}
		wg.Wait()
		var accepted, replayed atomic.Int64
		for o := range openers {
			wg.Go(func() {
				buf := make([]byte, 0, 64)
				for s := range sealers {
					for _, record := range records[(s+o)%sealers] {
						switch _, _, err := b.Open(buf, record); err {
						case nil:
							accepted.Add(1)
						case ErrReplay:
							replayed.Add(1)
						default:
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		if accepted.Load() != sealers*each || replayed.Load() != sealers*each*(openers-1) {
			t.Fatalf("accepted %d, replayed %d", accepted.Load(), replayed.Load())
		}
		// Long after, out of the window.
		a.sent.Store(1 << 20)
		send(t, a, b, nil)
		_, _, err := b.Open(nil, records[0][0])
		wantError(t, err, ErrReplay)
	})
}

// TestSealersAndOpenersAtOnce runs both directions with wiping at the end, for the race detector.
func TestSealersAndOpenersAtOnce(t *testing.T) {
	d := newDuo(t, bothSuites)
	a, b := d.confirmed(epoch)
	var wg sync.WaitGroup
	for range 3 {
		for _, ends := range [][2]*Session{{a, b}, {b, a}} {
			wg.Go(func() {
				for i := range 300 {
					record, err := ends[0].Seal(nil, 0, make([]byte, i))
					if err == nil {
						_, _, err = ends[1].Open(nil, record)
					}
					if err != nil && err != ErrWiped {
						t.Error(err)
					}
					_ = ends[0].NeedsRekey(epoch) || ends[0].Expired(epoch)
				}
			})
		}
	}
	wg.Go(func() { a.Wipe() })
	wg.Wait()
}

func TestNoAllocation(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		a, b := d.confirmed(epoch)
		plain := make([]byte, 1280)
		record, out := make([]byte, 0, 1500), make([]byte, 0, 1500)
		allocs := testing.AllocsPerRun(1000, func() {
			sealed, err := a.Seal(record, 0, plain)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err = b.Open(out, sealed); err != nil {
				t.Fatal(err)
			}
			if _, _, err = b.Open(out, sealed); err != ErrReplay {
				t.Fatal(err)
			}
			sealed[20] ^= 1
			if _, _, err = b.Open(out, sealed); err != ErrAuth {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Fatalf("%v allocations per record", allocs)
		}
	})
}
