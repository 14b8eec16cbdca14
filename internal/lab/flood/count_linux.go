// SPDX-License-Identifier: Apache-2.0

package flood

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// A datagram begins with the number of the flood and its own number, which is end for the question how many arrived. The
// answer is the number of the flood, end, and an arrivals.
const (
	header     = 16
	end        = ^uint64(0)
	answerSize = header + 3*8

	// MinSize and MaxSize bound a datagram, in bytes.
	MinSize = answerSize
	MaxSize = 1400
	// maxSent bounds the receiver's memory: a bit for each datagram.
	maxSent = 1 << 27
)

// Options of Send.
type Options struct {
	To   netip.AddrPort
	Size int           // of each datagram, in bytes
	Rate float64       // datagrams a second; 0: as many as can be sent
	For  time.Duration // how long
	// Segment has the kernel cut large sends into datagrams (UDP_SEGMENT); otherwise each call gives it many datagrams
	// (sendmmsg).
	Segment bool
}

// Result of a flood.
type Result struct {
	Sent     uint64  `json:"sent"`
	Seconds  float64 `json:"seconds"`  // that sending took
	Received uint64  `json:"received"` // without those that came twice
	Twice    uint64  `json:"twice"`
	Late     uint64  `json:"late"` // that came after one with a higher number
}

// Lost is which part of the datagrams did not arrive.
func (r *Result) Lost() float64 {
	if r.Sent == 0 {
		return 0
	}
	return 1 - float64(r.Received)/float64(r.Sent)
}

var (
	errSize   = errors.New("flood: the size must be within MinSize and MaxSize")
	errSilent = errors.New("flood: the receiver does not answer")
)

// Times are how long answers took.
type Times struct {
	Asked    int     `json:"asked"`
	Answered int     `json:"answered"`
	Median   float64 `json:"median"` // in microseconds
	Slow     float64 `json:"slow"`   // 99 of 100 are faster
}

func timesOf(asked int, took []time.Duration) Times {
	t := Times{Asked: asked, Answered: len(took)}
	if len(took) > 0 {
		slices.Sort(took)
		at := func(i int) float64 { return float64(took[i].Nanoseconds()) / 1e3 }
		t.Median, t.Slow = at(len(took)/2), at(len(took)*99/100)
	}
	return t
}

// arrivals is what the receiver knows of one flood.
type arrivals struct {
	flood                 uint64
	received, twice, late uint64
	next                  uint64 // one more than the highest number
	seen                  []uint64
}

func (a *arrivals) add(n uint64) {
	if n >= maxSent {
		return
	}
	for uint64(len(a.seen)) <= n/64 {
		a.seen = append(a.seen, make([]uint64, 1<<14)...)
	}
	word, bit := &a.seen[n/64], uint64(1)<<(n%64)
	switch {
	case *word&bit != 0:
		a.twice++
		return
	case n < a.next:
		a.late++
	default:
		a.next = n + 1
	}
	*word |= bit
	a.received++
}

// take counts a datagram. It returns what is to be answered, if that is asked.
func (a *arrivals) take(d []byte) []byte {
	if len(d) < header {
		return nil
	}
	flood, n := binary.BigEndian.Uint64(d), binary.BigEndian.Uint64(d[8:])
	if flood != a.flood {
		if flood < a.flood {
			return nil // of an earlier one, which has ended
		}
		*a = arrivals{flood: flood, seen: a.seen[:0]}
	}
	if n != end {
		a.add(n)
		return nil
	}
	answer := binary.BigEndian.AppendUint64(make([]byte, 0, answerSize), flood)
	for _, v := range [...]uint64{end, a.received, a.twice, a.late} {
		answer = binary.BigEndian.AppendUint64(answer, v)
	}
	return answer
}

// parseAnswer fills a result from the answer about a flood.
func (r *Result) parseAnswer(d []byte, flood uint64) bool {
	if len(d) < answerSize || binary.BigEndian.Uint64(d) != flood || binary.BigEndian.Uint64(d[8:]) != end {
		return false
	}
	r.Received, r.Twice, r.Late = binary.BigEndian.Uint64(d[16:]), binary.BigEndian.Uint64(d[24:]), binary.BigEndian.Uint64(d[32:])
	return true
}

// due is how many datagrams should have been sent by now.
func (o *Options) due(elapsed time.Duration) uint64 {
	if o.Rate == 0 {
		return maxSent
	}
	return min(maxSent, uint64(o.Rate*elapsed.Seconds()))
}

// batchOf is how many datagrams one call sends.
func batchOf(o *Options) int {
	const most = 32
	return min(most, 65_000/o.Size)
}
