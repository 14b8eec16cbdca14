// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package underlay

// bell does nothing: on these systems nobody waits for descriptors.
type bell struct{}

func (*bell) open() error  { return nil }
func (*bell) ring()        {}
func (*bell) silence()     {}
func (*bell) close() error { return nil }
