// SPDX-License-Identifier: Apache-2.0

package bugreport

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// fields are those of a log line that a report may hold; of others the name alone is left.
func fields() []string {
	return []string{
		"time", "level", "msg", "error", "err", "code", "hint", "part", "reason", "outcome", "action", "missed", "event", "state", "mode", "method",
		"agent", "path", "about", "addresses", "endpoints", "home", "relays", "relay", "seen_as", "upstreams", "next_try", "again_in", "for", "until", "count",
		"server", "addr", "gateway", "port", "protocol", "external", "from", "to", "name", "bucket", "kind", "mtu", "interface", "detail", "signal", "by",
	}
}

// logLines keeps of each line what is allowed. A line that is no JSON, of a crash, is kept without the arguments of its calls.
func logLines(lines []string) []byte {
	var b bytes.Buffer
	for _, line := range lines {
		line = strings.TrimRight(line, "\r\n")
		if kept, ok := allowed(line); ok {
			b.Write(kept)
		} else {
			b.WriteString(callArguments.ReplaceAllString(line, "$1(…)"))
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// callArguments are those of a stack in a crash: words of memory, of which each may be a part of a key.
var callArguments = regexp.MustCompile(`([\w)*.\]])\((?:0x[0-9a-f]+\??|\{|\}|\.\.\.|,| |_)*\)`)

// allowed is a line of JSON with its fields in their order; ok is false for what is none.
func allowed(line string) (out []byte, ok bool) {
	d := json.NewDecoder(strings.NewReader(line))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, false
	}
	known := fields()
	var b bytes.Buffer
	b.WriteByte('{')
	for d.More() {
		key, err := d.Token()
		name, isText := key.(string)
		var value json.RawMessage
		if err != nil || !isText || d.Decode(&value) != nil {
			return nil, false
		}
		if !slices.Contains(known, name) || !flat(value) {
			value = []byte(`"(left out)"`)
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			return nil, false
		}
		b.Write(quoted)
		b.WriteByte(':')
		b.Write(value)
	}
	if _, err := d.Token(); err != nil || d.More() {
		return nil, false
	}
	b.WriteByte('}')
	return b.Bytes(), true
}

// flat says whether a value is one text, number or truth, or a list of texts.
func flat(value json.RawMessage) bool {
	switch value[0] {
	case '{':
		return false
	case '[':
		var texts []string
		return json.Unmarshal(value, &texts) == nil
	}
	return true
}
