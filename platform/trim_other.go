// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package platform

// Trim does nothing: the system decides which pages of the program's file are in memory.
func Trim() error { return nil }
