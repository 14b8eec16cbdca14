// SPDX-License-Identifier: Apache-2.0

//go:build !linux

// Command flood sends numbered UDP datagrams; it needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "flood: it runs on Linux only")
	os.Exit(1)
}
