// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Waiter waits for whichever of some descriptors can be read. It belongs to one goroutine.
type Waiter struct{ fds []unix.PollFd }

// NewWaiter returns a Waiter for file descriptors, which need not stay open. It is nil on systems that have nothing of the kind.
func NewWaiter(descriptors []int) *Waiter {
	w := &Waiter{fds: make([]unix.PollFd, len(descriptors))}
	for i, fd := range descriptors {
		w.fds[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	return w
}

// Wait returns when a descriptor can be read, was closed or is being closed; after a second in any case, so that a
// descriptor that was closed before is noticed by whoever reads it.
func (w *Waiter) Wait() {
	patience := unix.Timespec{Sec: 1}
	_, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&w.fds[0])), uintptr(len(w.fds)),
		uintptr(unsafe.Pointer(&patience)), 0, 0, 0)
	if errno != 0 {
		for i := range w.fds {
			w.fds[i].Revents = 0
		}
	}
}

// Ready reports whether descriptor i should be read, as of the last Wait.
func (w *Waiter) Ready(i int) bool { return w.fds[i].Revents != 0 }

// Descriptors returns what to wait for before Read: the queue's, and one that tells that it is being closed.
func (q *queue) Descriptors() []int { return []int{q.fd, q.wake} }
