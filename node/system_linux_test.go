// SPDX-License-Identifier: Apache-2.0

package node

import (
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"
)

// Where no socket can be had there is an error, and nothing that could be taken for an open one.
func TestNoSockets(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: 0, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	u, err := host{log: slog.New(slog.DiscardHandler)}.OpenUnderlay()
	if restore := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); restore != nil {
		t.Fatal(restore)
	}
	if err == nil || u != nil {
		t.Errorf("got %T, %v", u, err)
	}
}
