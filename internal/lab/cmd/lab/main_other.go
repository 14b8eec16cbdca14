// SPDX-License-Identifier: Apache-2.0

//go:build !linux

// Command lab runs test networks by hand; it needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "lab: it is made of Linux network namespaces, so it runs on Linux only")
	os.Exit(1)
}
