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
