// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package main

import "os"

// forwarded gives nothing: there are no sandboxes on this system.
func forwarded() (signals <-chan os.Signal, stop func()) { return nil, func() {} }
