// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// Somebody who records the whole underlay, from before the network exists until after its end, finds neither a byte
// string that was sent inside nor the name of an agent.
func TestUnderlayShowsNoContentAndNoName(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "ping", "dig", "tcpdump")
	marker := "marker" + strings.ToLower(rand.Text())
	const one, other = "zebrafinch", "quokkabird"
	capture := m.wan.Capture()

	founder := found(t, m.a, one)
	joinBy(t, m.b, other, founder.Invite)
	m.a.WriteFile(marker, strings.Repeat(marker+" ", 10_000), 0o644)
	serve(m.a)
	get(t, m.b, "http://"+one+"/"+marker, strings.Repeat(marker+" ", 10_000))
	m.b.Must(ctx, "ping", "-c", "2", "-i", "0.2", "-p", "6d61726b6572", one)
	m.a.Must(ctx, "dig", "+short", other+".pilot.internal", "AAAA")
	m.a.Must(ctx, "pilot", "ping", other, "--count", "1")
	pilot[localapi.InviteResult](t, m.a, "invite")
	pilot[localapi.DownResult](t, m.b, "down")
	pilot[localapi.DownResult](t, m.a, "down")

	frames := bytes.ToLower(capture.Stop())
	if len(frames) < 3*10_000*len(marker)/4 {
		t.Fatalf("only %d bytes were recorded: the capture missed the traffic", len(frames))
	}
	for _, secret := range []string{marker, "markermarker", one, other} {
		if i := bytes.Index(frames, []byte(secret)); i >= 0 {
			t.Errorf("%q is on the underlay: %q", secret, frames[max(0, i-60):min(len(frames), i+60)])
		}
	}
}
