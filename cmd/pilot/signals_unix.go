// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/pilot-protocol/pilot/platform"
)

// forwarded gives the signals that are meant for the program of a run and don't reach it by themselves, until stop.
func forwarded() (signals <-chan os.Signal, stop func()) {
	const waiting = 16
	in, out := make(chan os.Signal, waiting), make(chan os.Signal, waiting)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2} {
		if !signal.Ignored(s) {
			signal.Notify(in, s)
		}
	}
	var passing sync.WaitGroup
	passing.Go(func() {
		for s := range in {
			// The program is in the same process group as this one.
			if (s == syscall.SIGINT || s == syscall.SIGQUIT) && platform.TerminalSignals() {
				continue
			}
			select {
			case out <- s:
			default: // it doesn't come to take them
			}
		}
	})
	return out, func() {
		signal.Stop(in)
		close(in)
		passing.Wait()
	}
}
