// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"
)

var quiet = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if f, ok := children[os.Args[1]]; ok {
			os.Exit(f(os.Args[2:]))
		}
	}
	goleak.VerifyTestMain(m)
}
