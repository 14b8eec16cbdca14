// SPDX-License-Identifier: Apache-2.0

// Package bugreport makes one archive of what is needed to find a defect, and of nothing that is a secret.
//
// What goes in is named: typed answers of the daemon and of package doctor, log lines with the fields that a list allows,
// stacks without arguments. Over all of that goes a search for what looks like a secret, in case that something is
// in a place where it should not be.
package bugreport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/pilot-protocol/pilot/node/doctor"
)

// Contents are what a report is made of. What could not be had is empty, and Missing says why.
type Contents struct {
	At         time.Time
	Version    any // of the program that makes the report, as `pilot version --json` prints it
	Facts      doctor.Facts
	Log        []string // JSON lines of the daemon's
	OldLog     []string // lines of a file or the journal: of runs before this one
	Goroutines string   // as runtime/pprof prints them with debug=1, which leaves arguments out
	Metrics    string
	Missing    []string
	Hostname   string // to be redacted
}

// file is one of the archive's.
type file struct {
	name string
	text []byte
}

const about = `This is a report for those who look for a defect in pilot. It was made on %s.

version.json     the program that made it
status.json      what "pilot status --json" shows: this agent, its addresses, relays, coordinator and peers, with names and public keys
netcheck.json    what "pilot netcheck --json" shows: the network that this host is in
doctor.json      what "pilot doctor --json" shows
host.json        what the doctor looked at: interfaces, addresses, routes, resolver, service, clock, firewall
log.jsonl        the latest lines of the daemon's log, with the fields that are allowed in here
log-old.txt      the end of its log in a file or the journal
goroutines.txt   where each goroutine of the daemon is, without arguments
metrics.txt      what it counts
missing.txt      what could not be had, and why

There is no private key in it, no join key, invite, password or token: see docs/security.md.
`

// Write makes the archive and returns the names of its files. With redact names, public addresses, overlay addresses and
// public keys are replaced, the same by the same.
func Write(w io.Writer, c Contents, redact bool) (names []string, err error) {
	files, err := c.files()
	if err != nil {
		return nil, err
	}
	hide := func(text []byte) []byte { return text }
	if redact {
		hide = newRedactor(&c).replace
	}
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	for _, f := range files {
		text := hide(Scrub(f.text))
		if err := archive.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: "pilot-bugreport/" + f.name, Size: int64(len(text)), Mode: 0o600, ModTime: c.At.Truncate(time.Second), Format: tar.FormatPAX,
		}); err != nil {
			return nil, err
		}
		if _, err := archive.Write(text); err != nil {
			return nil, err
		}
		names = append(names, f.name)
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return names, zip.Close()
}

func (c *Contents) files() ([]file, error) {
	files := []file{{"README.txt", fmt.Appendf(nil, about, c.At.UTC().Format(time.RFC3339))}}
	for _, part := range []struct {
		name  string
		value any
		there bool
	}{
		{"version.json", c.Version, c.Version != nil},
		{"status.json", c.Facts.Status, c.Facts.Status != nil},
		{"netcheck.json", c.Facts.Netcheck, c.Facts.Netcheck != nil},
		{"doctor.json", doctor.Examine(c.Facts), true},
		{"host.json", plain(c.Facts.Host), true},
	} {
		if !part.there {
			continue
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(part.value); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
		files = append(files, file{part.name, b.Bytes()})
	}
	for _, part := range []file{
		{"log.jsonl", logLines(c.Log)}, {"log-old.txt", logLines(c.OldLog)}, {"goroutines.txt", []byte(c.Goroutines)}, {"metrics.txt", []byte(c.Metrics)},
		{"missing.txt", missing(c.Missing)},
	} {
		if len(part.text) > 0 {
			files = append(files, part)
		}
	}
	return files, nil
}

func missing(why []string) (text []byte) {
	for _, line := range why {
		text = append(append(text, line...), '\n')
	}
	return text
}
