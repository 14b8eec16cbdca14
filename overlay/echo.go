// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"sync"
	"time"
)

// A kernel drops an ICMPv6 error about a TCP connection whose socket it has locked at that moment. While a program is
// inside connect() that is so until its thread has come back from sending the SYN, and we may be faster. Then the error
// would come a second later, about the next SYN. So errors about a SYN are said again, twice: the program has the right
// error within a blink, and to a socket that is gone the second one means nothing.
const (
	echoFirst  = 5 * time.Millisecond
	echoSecond = 50 * time.Millisecond
	echoLimit  = 64  // errors that wait
	echoSize   = 192 // an error about a SYN is smaller, unless it carries data (RFC 7413); then it is not repeated
)

type echo struct {
	buf    [echoSize]byte
	n      int // length of the error
	due    time.Duration
	second bool
}

// echoes are the errors to be said again. Its lock is held for a copy only.
type echoes struct {
	kick func()
	mu   sync.Mutex
	list [echoLimit]echo
	used int
}

func (e *echoes) add(p []byte, now time.Duration) {
	if len(p) > echoSize {
		return
	}
	e.mu.Lock()
	if e.used < echoLimit {
		x := &e.list[e.used]
		x.n, x.due, x.second = copy(x.buf[:], p), now+echoFirst, false
		e.used++
	}
	e.mu.Unlock()
	e.kick()
}

// take copies one that is due to x. Otherwise it says when the next one is, 0: there is none.
func (e *echoes) take(now time.Duration, x *echo) (ok bool, next time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.used {
		c := &e.list[i]
		if c.due > now {
			if next == 0 || c.due < next {
				next = c.due
			}
			continue
		}
		*x = *c
		if c.second {
			e.used--
			*c = e.list[e.used]
		} else {
			c.second, c.due = true, now+echoSecond
		}
		return true, 0
	}
	return false, next
}

// runEchoes says again what is due, and returns when to come back, 0: not.
func (o *Overlay) runEchoes(now moment) time.Duration {
	var x echo
	for {
		ok, next := o.echoes.take(now.at, &x)
		if !ok {
			return next
		}
		o.mu.Lock()
		o.control.answers.write(x.buf[:x.n])
		o.mu.Unlock()
	}
}
