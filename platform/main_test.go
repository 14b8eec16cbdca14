// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"
)

var quiet = slog.New(slog.DiscardHandler)

// TestMain lets tests start this binary again as another process, that does what its first argument names.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if code, ok := child(os.Args[1], os.Args[2:]); ok {
			os.Exit(code)
		}
	}
	goleak.VerifyTestMain(m)
}

// skip leaves a test out where this host can't run it. CI can run all: there it fails.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
