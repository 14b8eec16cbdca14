// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tun

// Waiter waits for whichever of some descriptors can be read. It belongs to one goroutine.
type Waiter struct{}

// NewWaiter returns a Waiter for file descriptors, which need not stay open. It is nil on systems that have nothing of the kind.
func NewWaiter([]int) *Waiter { return nil }

// Wait returns when a descriptor can be read, was closed or is being closed.
func (w *Waiter) Wait() {}

// Ready reports whether descriptor i should be read, as of the last Wait.
func (w *Waiter) Ready(int) bool { return true }
