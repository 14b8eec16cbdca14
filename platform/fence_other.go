// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package platform

// Fence is nothing here: Windows and macOS take what is for a tunnel's address by its own interface only, unless they were
// told otherwise (docs/security.md).
type Fence struct{}

// NewFence returns one that does nothing.
func NewFence(Interface) *Fence { return &Fence{} }

// Refresh has nothing to do.
func (*Fence) Refresh() (again bool, err error) { return false, nil }

// Dropped is always 0: the system doesn't tell.
func (*Fence) Dropped() (packets uint64, err error) { return 0, nil }

// Close has nothing to do.
func (*Fence) Close() error { return nil }
