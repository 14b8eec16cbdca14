// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

const (
	writeLimit  = 30 * time.Second // for what waits; then the connection counts as dead
	closeLimit  = 2 * time.Second  // the same, once the queue is closed
	controlRoom = 4 << 10          // bytes beyond the limit, for frames of control
	keptBuffer  = 16 << 10         // bytes of buffer that an idle queue keeps
	leastLimit  = 64 << 10         // bytes that may wait however slow the connection is
	patience    = 100 * time.Millisecond
)

// ErrClosed is returned by Drain when the queue was closed and all of it is written.
var ErrClosed = errors.New("relay: the queue was closed")

// Queue holds frames that wait for a connection. Who fills it never waits: what doesn't fit is dropped. How much fits is
// what the connection takes in a tenth of a second, so that what is inside does not grow old on a slow one.
type Queue struct {
	most, share int
	wake        chan struct{} // one slot

	mu      sync.Mutex
	limit   int
	waiting []byte
	sources map[uint32]int // bytes that wait, by source
	closed  bool
}

// NewQueue returns a queue of at most limit bytes. No source of data gets more than one part in share of it, so that one
// that floods leaves some to the others.
func NewQueue(limit, share int) *Queue {
	return &Queue{most: limit, limit: limit, share: share, wake: make(chan struct{}, 1), sources: make(map[uint32]int)}
}

// Frame appends a frame of control, for which there is a little room beyond the limit. It reports whether it fitted.
func (q *Queue) Frame(t FrameType, body ...[]byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) > q.limit+controlRoom || q.closed {
		return false
	}
	q.waiting = AppendFrame(q.waiting, t, body...)
	q.signal()
	return true
}

// Data appends a frame of data that says addr for each of the datagrams in d, each of them size bytes long but the last,
// without their first skip bytes. It returns how many fitted.
func (q *Queue) Data(source uint32, addr netip.Addr, d []byte, size, skip int) (taken int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	have := q.sources[source]
	for len(d) > 0 && !q.closed {
		n := min(size, len(d))
		frame := FrameHeaderSize + addressSize + n - skip
		if have+frame > q.limit/q.share || len(q.waiting)+frame > q.limit || n <= skip || n-skip > MaxDatagram {
			break
		}
		q.waiting = AppendData(q.waiting, addr, d[skip:n])
		have += frame
		d = d[n:]
		taken++
	}
	q.sources[source] = have
	q.signal()
	return taken
}

// Close ends Drain once all that waits is written, or could not be for two seconds.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// swap takes what waits and leaves an empty buffer in its place.
func (q *Queue) swap(spare []byte) (batch []byte, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch, q.waiting = q.waiting, spare[:0]
	clear(q.sources)
	return batch, q.closed
}

// adapt sets the limit by how long a connection took for n bytes.
func (q *Queue) adapt(n int, took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n < leastLimit/2 && took < patience/2 {
		q.limit = min(q.most, 2*q.limit) // it says nothing, so less is forbidden
		return
	}
	q.limit = min(q.most, max(leastLimit, int(float64(n)*float64(patience)/float64(max(1, took)))))
}

// Writer is a connection, as far as Drain needs one.
type Writer interface {
	Write([]byte) (int, error)
	SetWriteDeadline(time.Time) error
}

// Drain writes what comes into the queue to w. It returns when ctx ends, when w fails, or ErrClosed after Close.
func (q *Queue) Drain(ctx context.Context, w Writer) error {
	var spare []byte
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.wake:
		}
		batch, closed := q.swap(spare)
		limit := writeLimit
		if closed {
			limit = closeLimit
		}
		if len(batch) > 0 {
			if err := w.SetWriteDeadline(time.Now().Add(limit)); err != nil {
				return err
			}
			began := time.Now()
			if _, err := w.Write(batch); err != nil {
				return err
			}
			q.adapt(len(batch), time.Since(began))
		}
		if closed {
			return ErrClosed
		}
		if spare = batch; len(batch) < cap(batch)/8 && cap(batch) > keptBuffer {
			spare = nil
		}
	}
}
