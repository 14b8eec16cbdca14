// SPDX-License-Identifier: Apache-2.0

package noise

import "testing"

func TestHandshake(t *testing.T) {
	bothSuiteTests(t, func(t *testing.T, d *duo) {
		a, b := d.confirmed(epoch)
		if a.Local() != d.a.Agent || b.Local() != d.b.Agent || a.Remote().Agent != d.b.Agent || b.Remote().Agent != d.a.Agent ||
			a.Remote().Name != "beta" || b.Remote().Name != "alpha" ||
			a.RemoteTunnel().Tunnel != d.b.tunnel.Public() || b.RemoteTunnel().Tunnel != d.a.tunnel.Public() ||
			!a.Initiator() || b.Initiator() || !a.Created().Equal(epoch) || !b.Created().Equal(epoch) {
			t.Fatal("the sessions do not know their ends")
		}
		send(t, a, b, []byte("there"))
		send(t, b, a, []byte("and back"))
	})
}
