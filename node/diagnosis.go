// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"runtime/pprof"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// recentLog bounds the lines of the log that are kept in memory, in bytes.
const recentLog = 512 << 10

// Diagnose tells what a report on a defect needs. The stacks are without arguments, which may be parts of keys.
func (n *Node) Diagnose(context.Context) (localapi.Diagnosis, error) {
	d := localapi.Diagnosis{Log: n.recent.Lines()}
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return d, err
	}
	d.Goroutines = b.String()
	return d, nil
}
