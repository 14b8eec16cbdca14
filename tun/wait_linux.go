// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shortWait is how long a wait counts as short, in nanoseconds. It has to be shorter than the 10 ms after which the monitor
// takes a goroutine for one that must be interrupted.
const shortWait = 2_000_000

// Waiter waits for whichever of some descriptors can be read. It belongs to one goroutine, but for Wake.
type Waiter struct {
	fds  []unix.PollFd // the last one is wake
	wake int           // an eventfd of the Waiter's own: the number of a closed descriptor may be another file's by now
}

// NewWaiter returns a Waiter for file descriptors, which need not stay open. It is nil where the system has nothing of the
// kind, or no descriptor left for it.
func NewWaiter(descriptors []int) *Waiter {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil
	}
	w := &Waiter{fds: make([]unix.PollFd, 0, len(descriptors)+1), wake: wake}
	for _, fd := range append(descriptors[:len(descriptors):len(descriptors)], wake) {
		w.fds = append(w.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return w
}

// Wait returns when a descriptor can be read, was closed or is being closed, a signal came, or Wake was called. A descriptor
// that was closed while nobody waited may go unnoticed: who closes one calls Wake afterwards.
func (w *Waiter) Wait() {
	// A short wait is not told to the scheduler of Go: its monitor would wake every 20 microseconds to see whether it is over,
	// which took a third of a daemon's time where packets come one by one. Who wants the world to stop meanwhile sends a
	// signal, which ends the wait.
	short := unix.Timespec{Nsec: shortWait}
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&w.fds[0])), uintptr(len(w.fds)), uintptr(unsafe.Pointer(&short)), 0, 0, 0)
	if n == 0 && errno == 0 {
		_, _, errno = unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&w.fds[0])), uintptr(len(w.fds)), 0, 0, 0, 0)
	}
	if errno != 0 {
		for i := range w.fds {
			w.fds[i].Revents = 0
		}
	}
}

// Ready reports whether descriptor i should be read, as of the last Wait. After Wake all should be.
func (w *Waiter) Ready(i int) bool { return w.fds[i].Revents != 0 || w.fds[len(w.fds)-1].Revents != 0 }

// Wake makes Wait return, now and from now on. It is safe for concurrent use, but not with Close.
func (w *Waiter) Wake() error {
	_, err := unix.Write(w.wake, []byte{0, 0, 0, 0, 0, 0, 0, 1})
	return os.NewSyscallError("write to eventfd", err)
}

// Close frees what NewWaiter took; nobody may wait any more.
func (w *Waiter) Close() error { return os.NewSyscallError("close eventfd", unix.Close(w.wake)) }

// Descriptors returns what to wait for before Read: the queue's, and one that tells that it is being closed.
func (q *queue) Descriptors() []int { return []int{q.fd, q.wake} }
