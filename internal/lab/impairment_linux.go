// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Impairment is what happens to Ethernet frames in one direction of a link. The zero value does nothing to them.
type Impairment struct {
	Loss        float64       // probability that a frame is lost, from 0 to 1
	Duplication float64       // probability that a frame that is not lost arrives twice, from 0 to 1
	Reordering  float64       // probability that a frame or its duplicate is late, so that others overtake it, from 0 to 1
	Late        time.Duration // by how much; 0 stands for 1 ms
	Delay       time.Duration // of every frame
	Queue       int           // frames under way at a time, from 1; those beyond are dropped; 0 stands for 4096
}

// withDefaults fills in what was left out.
func (i Impairment) withDefaults() (Impairment, error) {
	for _, p := range []float64{i.Loss, i.Duplication, i.Reordering} {
		if !(p >= 0 && p <= 1) {
			return i, fmt.Errorf("%v is no probability", p)
		}
	}
	if i.Late < 0 || i.Delay < 0 || i.Queue < 0 {
		return i, fmt.Errorf("neither a time nor a queue can be negative: %+v", i)
	}
	if i.Late == 0 {
		i.Late = time.Millisecond
	}
	if i.Queue == 0 {
		i.Queue = 4096
	}
	return i, nil
}

// Counters tell what became of the frames of one direction. Every frame, and every duplicate, is in Received or
// Duplicated when it comes, and in one of Lost, Overflowed, Oversized, Refused and Delivered when it is gone.
type Counters struct {
	Received   uint64 // frames that came in
	Duplicated uint64 // frames that were added as the second of two
	Lost       uint64 // by Impairment.Loss
	Overflowed uint64 // more than Impairment.Queue were under way
	Oversized  uint64 // longer than an Ethernet frame of the link's MTU: none, unless the kernel is wrong
	Refused    uint64 // the far end was down
	Delivered  uint64 // frames that went out
	Reordered  uint64 // those of them that a later frame had overtaken
}

func (c Counters) String() string {
	return fmt.Sprintf("%d in, %d added, %d lost, %d overflowed, %d oversized, %d refused, %d out, %d of these overtaken",
		c.Received, c.Duplicated, c.Lost, c.Overflowed, c.Oversized, c.Refused, c.Delivered, c.Reordered)
}

// maxFrame is the length of an Ethernet frame of 1500 bytes with its header.
const maxFrame = 1514

// packet is a frame on its way.
type packet struct {
	due   time.Time
	order uint64 // in which it came in
	size  int
	frame [maxFrame]byte
}

// direction decides the fate of frames. It has no clock and does no I/O: the same seed and the same frames at the
// same times have the same fate. It may be used by several goroutines.
type direction struct {
	mu         sync.Mutex
	impairment Impairment
	random     *rand.Rand
	queue      packets
	free       []*packet
	came       uint64 // order of the newest frame that came
	newest     uint64 // and of the newest that left
	counters   Counters
}

func newDirection(seed, stream uint64) *direction {
	return &direction{random: rand.New(rand.NewPCG(seed, stream))}
}

// set changes the impairment for the frames that are still to come.
func (d *direction) set(i Impairment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.impairment = i
}

func (d *direction) count() Counters {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counters
}

// offer takes in a copy of a frame.
func (d *direction) offer(now time.Time, frame []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counters.Received++
	if len(frame) > maxFrame {
		d.counters.Oversized++
		return
	}
	// Always the same number of draws, so that one setting has no influence on the fate that others decide.
	lost, twice := d.draw(d.impairment.Loss), d.draw(d.impairment.Duplication)
	late := [2]bool{d.draw(d.impairment.Reordering), d.draw(d.impairment.Reordering)}
	if lost {
		d.counters.Lost++
		return
	}
	d.came++
	d.enqueue(now, frame, late[0])
	if twice {
		d.counters.Duplicated++
		d.enqueue(now, frame, late[1])
	}
}

func (d *direction) draw(probability float64) bool { return d.random.Float64() < probability }

func (d *direction) enqueue(now time.Time, frame []byte, late bool) {
	if len(d.queue) >= d.impairment.Queue {
		d.counters.Overflowed++
		return
	}
	var p *packet
	if last := len(d.free) - 1; last >= 0 {
		p, d.free = d.free[last], d.free[:last]
	} else {
		p = new(packet)
	}
	p.order, p.size = d.came, copy(p.frame[:], frame)
	p.due = now.Add(d.impairment.Delay)
	if late {
		p.due = p.due.Add(d.impairment.Late)
	}
	heap.Push(&d.queue, p)
}

// take returns the first frame that is due, or nil. The caller gives it back with done.
func (d *direction) take(now time.Time) *packet {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 || d.queue[0].due.After(now) {
		return nil
	}
	return heap.Pop(&d.queue).(*packet)
}

// done takes back a frame from take and notes whether it could be delivered.
func (d *direction) done(p *packet, delivered bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !delivered:
		d.counters.Refused++
	default:
		d.counters.Delivered++
		if p.order < d.newest {
			d.counters.Reordered++
		}
		d.newest = max(d.newest, p.order)
	}
	d.free = append(d.free, p)
}

// next returns how long it takes until a frame is due, or false if none is under way.
func (d *direction) next(now time.Time) (time.Duration, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 {
		return 0, false
	}
	return max(0, d.queue[0].due.Sub(now)), true
}

// packets is a heap: the first is the one that is due first, of equals the one that came first.
type packets []*packet

var _ heap.Interface = (*packets)(nil)

func (q packets) Len() int      { return len(q) }
func (q packets) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q packets) Less(i, j int) bool {
	if q[i].due.Equal(q[j].due) {
		return q[i].order < q[j].order
	}
	return q[i].due.Before(q[j].due)
}
func (q *packets) Push(p any) { *q = append(*q, p.(*packet)) }
func (q *packets) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return p
}
