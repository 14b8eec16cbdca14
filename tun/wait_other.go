// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tun

// Waiter waits for whichever of some descriptors can be read. It belongs to one goroutine, but for Wake.
type Waiter struct{}

// NewWaiter returns a Waiter for file descriptors, which need not stay open. It is nil where the system has nothing of the
// kind, or no descriptor left for it.
func NewWaiter([]int) *Waiter { return nil }

// Wait returns when a descriptor can be read, was closed or is being closed, or Wake was called.
func (w *Waiter) Wait() {}

// Ready reports whether descriptor i should be read, as of the last Wait.
func (w *Waiter) Ready(int) bool { return true }

// Wake makes Wait return.
func (w *Waiter) Wake() error { return nil }

// Close frees what NewWaiter took.
func (w *Waiter) Close() error { return nil }
