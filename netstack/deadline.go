// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"sync"
	"time"
)

// deadline is a channel that is closed at a time that may be changed.
type deadline struct {
	mu    sync.Mutex
	at    time.Time // zero: never
	timer *time.Timer
	past  chan struct{}
	over  bool // past is closed
}

// passed returns the channel. It stays the same until the deadline, once passed, is moved.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channel()
}

func (d *deadline) channel() chan struct{} {
	if d.past == nil {
		d.past = make(chan struct{})
	}
	return d.past
}

func (d *deadline) set(at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = at
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.over {
		d.past, d.over = nil, false
	}
	if at.IsZero() {
		return
	}
	if left := time.Until(at); left > 0 {
		d.timer = time.AfterFunc(left, d.check)
		return
	}
	d.end()
}

// check may be late for a deadline that was moved.
func (d *deadline) check() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.over && !d.at.IsZero() && time.Until(d.at) <= 0 {
		d.end()
	}
}

func (d *deadline) end() {
	close(d.channel())
	d.over = true
}
