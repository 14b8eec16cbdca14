// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func eventfd(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// A descriptor may be closed and its number be another file's before anybody waits: only Wake can tell.
func TestWakeAfterADescriptorWasReused(t *testing.T) {
	fd, other := eventfd(t), eventfd(t)
	defer unix.Close(other)
	w := NewWaiter([]int{fd})
	if w == nil {
		t.Fatal("no waiter")
	}
	if err := unix.Dup3(other, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ready := make(chan bool)
	go func() {
		w.Wait()
		ready <- w.Ready(0)
	}()
	if err := w.Wake(); err != nil {
		t.Fatal(err)
	}
	if !<-ready {
		t.Error("after Wake the descriptor is not to be read")
	}
	w.Wait() // returns from now on
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestWaiterTellsWhichIsReady(t *testing.T) {
	a, b := eventfd(t), eventfd(t)
	defer unix.Close(a)
	defer unix.Close(b)
	w := NewWaiter([]int{a, b})
	if w == nil {
		t.Fatal("no waiter")
	}
	defer w.Close()
	if _, err := unix.Write(b, []byte{0, 0, 0, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	w.Wait()
	if w.Ready(0) || !w.Ready(1) {
		t.Errorf("ready: %v %v", w.Ready(0), w.Ready(1))
	}
}

// A wait, short or long, keeps nobody from stopping the world.
func TestWaiterLetsTheWorldStop(t *testing.T) {
	a := eventfd(t)
	defer unix.Close(a)
	w := NewWaiter([]int{a})
	if w == nil {
		t.Fatal("no waiter")
	}
	defer w.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for w.Wait(); !w.Ready(0); w.Wait() {
		}
	}()
	for range 20 {
		runtime.GC()
	}
	if _, err := unix.Write(a, []byte{0, 0, 0, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	<-done
}
