// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"testing"
	"time"
)

// A host that moves to another address in the middle of a download keeps its connections: on the same network, to a
// network behind a router, and back, whether it receives or sends.
func TestRoamingKeepsConnections(t *testing.T) {
	ctx := deadline(t, 2*time.Minute)
	l := open(t)
	Programs(t, "curl", "python3")
	office, cafe := l.Bridge("office"), l.Bridge("cafe")
	router, a, b := l.Router("router"), l.Host("a"), l.Host("b")
	router.Connect(office, "192.0.2.1/24")
	router.Connect(cafe, "198.51.100.1/24")
	a.Connect(office, "192.0.2.10/24").Gateway("192.0.2.1")
	link := b.Connect(office, "192.0.2.11/24")
	link.Gateway("192.0.2.1")

	planner := found(t, a, "planner")
	joinBy(t, b, "laptop", planner.Invite)
	const size = 24 << 20
	sumA := writeRandom(t, a, "big", size)
	sumB := writeRandom(t, b, "big", size)
	serve(a)
	serve(b)

	download := startTransfer(b, "http://planner/big", "4M")
	download.reach(t, size/8)
	link.Move(nil, "192.0.2.111/24", "192.0.2.1")
	download.reach(t, size/2)
	link.Move(cafe, "198.51.100.11/24", "198.51.100.1")
	download.finish(ctx, t, sumA)

	upload := startTransfer(a, "http://laptop/big", "4M")
	upload.reach(t, size/8)
	link.Move(office, "192.0.2.112/24", "192.0.2.1")
	upload.finish(ctx, t, sumB)
}
