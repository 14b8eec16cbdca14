// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Somebody who owns a relay sees who talks to whom, by address, and when, and how much; but no content, and of the
// names none that is used between the agents. All that passes the relay's cable, all that it logs, and all of its
// memory are searched.
func TestRelaySeesNoContent(t *testing.T) {
	m := openMesh(t, 0, "eu-1")
	// Two that can reach each other by no other way.
	a, b := m.Site("zebrafinch", APDM), m.Site("quokkabird", UDPBlocked)
	marker := "marker" + strings.ToLower(rand.Text())
	capture := m.Backbone.Capture()
	m.join(a, b)
	m.trust([2]*Site{a, b})
	page := strings.Repeat(marker+" ", 10_000)
	b.WriteFile(marker, page, 0o644)
	serve(b.Host)
	get(t, a.Host, "http://"+b.Name()+"/"+marker, page)
	if p, err := peer(a.Host, b.Name()); err != nil || !relayed(p.Path) {
		t.Fatalf("the path is %q, %v", p.Path, err)
	}
	// Large enough for every buffer of the relay to have been used.
	size := int64(4 << 20)
	if err := os.WriteFile(b.Home()+"/big", bytes.Repeat([]byte(marker), int(size)/len(marker)), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t, time.Minute)
	a.Must(ctx, "curl", "-sS", "--fail", "-o", "/dev/null", "http://"+b.Name()+"/big")

	relay := m.relays["eu-1"]
	logs := relay.process.Logs()
	memory := memoryOf(t, relay.process.cmd.Process.Pid)
	frames := capture.Stop()
	if int64(len(frames)) < size || len(memory) < 1<<20 {
		t.Fatalf("only %d bytes were recorded, and %d of the memory read", len(frames), len(memory))
	}
	if !bytes.Contains(memory, []byte("CERTIFICATE")) && !bytes.Contains(memory, []byte("pilot relay")) {
		t.Fatal("what was read is not the relay's memory")
	}
	for where, text := range map[string][]byte{"cable": frames, "log": []byte(logs), "memory": memory} {
		for _, form := range []string{marker, base64.StdEncoding.EncodeToString([]byte(marker))[:24], hex.EncodeToString([]byte(marker))} {
			if i := bytes.Index(text, []byte(form)); i >= 0 {
				t.Errorf("the relay's %s has what was sent: %q", where, text[max(0, i-60):min(len(text), i+60)])
			}
		}
	}
	for _, name := range []string{a.Name(), b.Name()} {
		t.Logf("the name %s is %d times in the relay's memory, to which members show their certificates", name, bytes.Count(memory, []byte(name)))
		for where, text := range map[string][]byte{"cable": frames, "log": []byte(logs)} {
			if i := bytes.Index(bytes.ToLower(text), []byte(name)); i >= 0 {
				t.Errorf("the relay's %s has the name %s: %q", where, name, text[max(0, i-60):min(len(text), i+60)])
			}
		}
	}
}

// memoryOf reads all that a process has written to in its memory.
func memoryOf(t *testing.T, pid int) []byte {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	var all []byte
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(mode, "rw") || to-from > 1<<30 {
			continue
		}
		part := make([]byte, to-from)
		n, _ := memory.ReadAt(part, int64(from)) // a part may be gone meanwhile
		all = append(all, part[:n]...)
	}
	return all
}
