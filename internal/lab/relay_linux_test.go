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

// Somebody who owns a relay sees who talks to whom, by key and address, and when, and how much; but no content, and no
// agent's name. All that passes the relay's cable, all that it logs, and all of its memory are searched.
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
	for _, site := range []*Site{a, b} {
		// What the relay must know is found, so that what is not found is not there.
		st, err := status(site.Host)
		if err != nil {
			t.Fatal(err)
		}
		key := st.Self.Key
		n := bytes.Count(memory, key[:])
		if n == 0 {
			t.Errorf("what was read of the relay's memory has not the key of %s", site.Name())
		}
		t.Logf("the key of %s is %d times in the relay's memory, of which %d MiB were read", site.Name(), n, len(memory)>>20)
	}
	for where, text := range map[string][]byte{"cable": frames, "log": []byte(logs), "memory": memory} {
		for what, word := range map[string]string{"what was sent": marker, "the name of an agent": a.Name(), "the name of the other": b.Name()} {
			if at := spelled(text, word); at >= 0 {
				t.Errorf("the relay's %s has %s: %q", where, what, text[max(0, at-60):min(len(text), at+60)])
			}
		}
	}
}

// spelled finds a word in a text: as it is, in any case, in UTF-16, in hexadecimal, or in base64. It returns -1 if it isn't there.
func spelled(text []byte, word string) int {
	lower := bytes.ToLower(text)
	for _, form := range []string{word, strings.Join(strings.Split(word, ""), "\x00"), hex.EncodeToString([]byte(word))} {
		if i := bytes.Index(lower, []byte(form)); i >= 0 {
			return i
		}
	}
	for shift := range 3 { // where it may begin in a group of three
		whole := (shift + len(word)) / 3 * 3
		form := base64.StdEncoding.EncodeToString(append(make([]byte, shift), word...)[:whole])
		form = form[(shift*8+5)/6:] // the first letters have bits of what comes before
		for _, form := range []string{form, strings.NewReplacer("+", "-", "/", "_").Replace(form)} {
			if i := bytes.Index(text, []byte(form)); i >= 0 {
				return i
			}
		}
	}
	return -1
}

// The search finds what it is to find.
func TestSpelled(t *testing.T) {
	const word = "zebrafinch"
	for _, form := range []string{
		"xx zebrafinch.pilot", "ZebraFinch", "z\x00e\x00b\x00r\x00a\x00f\x00i\x00n\x00c\x00h\x00", hex.EncodeToString([]byte("a zebrafinch")),
		strings.ToUpper(hex.EncodeToString([]byte(word))), base64.StdEncoding.EncodeToString([]byte("zebrafinch in")),
		base64.StdEncoding.EncodeToString([]byte("~zebrafinch in")), base64.URLEncoding.EncodeToString([]byte("~~zebrafinch in")),
	} {
		if spelled([]byte("before "+form), word) < 0 {
			t.Errorf("%q was not found", form)
		}
	}
	if i := spelled([]byte("zebra finch"), word); i >= 0 {
		t.Errorf("found at %d", i)
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
