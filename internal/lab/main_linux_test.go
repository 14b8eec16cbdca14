// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(programVariable); what != "" {
		if err := program(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	RemoveBinary()
	os.Exit(code)
}

// open starts a lab for a test that must not take part in a short run.
func open(t *testing.T) *Lab {
	t.Helper()
	if testing.Short() {
		t.Skip("the lab starts real programs in network namespaces: not in a short run")
	}
	return New(t)
}

// beside lets a test run beside others that say so: it has a network of its own, waits nearly all of the time, and its limits
// are far from what it takes.
func beside(t *testing.T) {
	t.Helper()
	t.Parallel()
}
