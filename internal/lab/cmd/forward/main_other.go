// SPDX-License-Identifier: Apache-2.0

//go:build !linux

// Command forward copies packets between an interface and a socket; it needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "forward: it runs on Linux only")
	os.Exit(1)
}
