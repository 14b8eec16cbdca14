// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

func benchmarkSuites(b *testing.B, f func(b *testing.B, d *duo)) {
	b.Run("AESGCM", func(b *testing.B) { f(b, newDuo(b, bothSuites)) })
	b.Run("ChaChaPoly", func(b *testing.B) { f(b, newDuo(b, identity.SuiteChaCha)) })
}

const benchmarkPacket = 1420

func BenchmarkSeal(b *testing.B) {
	benchmarkSuites(b, func(b *testing.B, d *duo) {
		s, _ := d.confirmed(epoch)
		b.SetBytes(benchmarkPacket)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			plain, dst := make([]byte, benchmarkPacket), make([]byte, 0, benchmarkPacket+Overhead)
			for pb.Next() {
				if _, err := s.Seal(dst, 0, plain); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

func BenchmarkOpen(b *testing.B) {
	benchmarkSuites(b, func(b *testing.B, d *duo) {
		from, to := d.confirmed(epoch)
		plain, dst := make([]byte, benchmarkPacket), make([]byte, 0, benchmarkPacket)
		const batch = 1024
		records := make([][]byte, batch)
		b.SetBytes(benchmarkPacket)
		b.ReportAllocs()
		b.ResetTimer()
		for i := 0; i < b.N; i++ {
			if i%batch == 0 {
				b.StopTimer()
				for j := range records {
					var err error
					if records[j], err = from.Seal(records[j][:0], 0, plain); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
			}
			if _, _, err := to.Open(dst, records[i%batch]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkHandshake is both ends' work for one session.
func BenchmarkHandshake(b *testing.B) {
	benchmarkSuites(b, func(b *testing.B, d *duo) {
		b.ReportAllocs()
		now := epoch
		for b.Loop() {
			now = now.Add(50 * time.Millisecond)
			if now.After(epoch.Add(20 * time.Hour)) {
				now = epoch
			}
			x, y := d.connect(now)
			d.ma.Release(x.LocalIndex())
			d.mb.Release(y.LocalIndex())
		}
	})
}

// BenchmarkStranger is what a datagram with a wrong mac1 costs a port with a hundred agents.
func BenchmarkStranger(b *testing.B) {
	d := newDuo(b, bothSuites)
	var agents []*agent
	for i := range 100 {
		agents = append(agents, d.agent("agent"+string(rune('a'+i/10))+string(rune('a'+i%10)), bothSuites))
	}
	m := d.machine(agents...)
	datagram := d.initiate(epoch).Datagrams[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Handle(epoch, datagram, addrA); err != ErrMAC {
			b.Fatal(err)
		}
	}
}
