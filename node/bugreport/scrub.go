// SPDX-License-Identifier: Apache-2.0

package bugreport

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// leftOut stands in the place of what looks like a secret.
const leftOut = "(left out)"

// secrets are what a search finds them by, and what is put in their place.
var secrets = []struct {
	form *regexp.Regexp
	by   string
}{
	// Bytes as numbers, and in hexadecimal: sixteen at least, so that no address is among them.
	{regexp.MustCompile(`\[?\s*\b(?:\d{1,3}(?:\s+|,\s*)){15,}\d{1,3}\b\s*\]?`), leftOut},
	{regexp.MustCompile(`(?i)\b[0-9a-f]{2}(?:[:\s-][0-9a-f]{2}){15,}\b`), leftOut},
	{regexp.MustCompile(`(?i)\b0x[0-9a-f]{1,2}(?:,?\s*0x[0-9a-f]{1,2}){15,}\b`), leftOut},
	// An invite.
	{regexp.MustCompile(`(?i)pilot(://|%3a%2f%2f)[A-Za-z0-9_~%.-]{8,}`), "pilot://" + leftOut},
	// User and password in a URL.
	{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^/@\s"'\\]*@`), "${1}" + leftOut + "@"},
	// A header, variable or field that is named for a secret, with what follows it.
	{regexp.MustCompile(`(?i)((?:proxy-)?authorization|cookie|pass(?:word|wd|phrase)?|secret|token|seed|private[_-]?key|api[_-]?key)("?\s*[:=]\s*"?)(?:(?:basic|bearer)\s+)?[^\s",;}]+`), "${1}${2}" + leftOut},
	{regexp.MustCompile(`(?i)\b(basic|bearer)\s+[A-Za-z0-9+/=_.~-]{8,}`), "${1} " + leftOut},
	{regexp.MustCompile(`-----BEGIN [^-]*PRIVATE KEY-----[^-]*(?:-----END [^-]*-----)?`), leftOut},
}

// word is a run of characters in which a key of 32 bytes could be written: base64 of either kind, hexadecimal, and each of
// them in a URL.
var word = regexp.MustCompile(`[A-Za-z0-9+/_=%-]{40,}`)

// Scrub takes out what looks like a secret: invites, passwords in URLs and headers, and each word that is long enough for
// a key, unless it is marked as a public one.
func Scrub(text []byte) []byte {
	for _, s := range secrets {
		text = s.form.ReplaceAll(text, []byte(s.by))
	}
	var out []byte
	last := 0
	for _, at := range word.FindAllIndex(text, -1) {
		if marked(text[:at[0]], text[at[0]:at[1]]) || !random(text[at[0]:at[1]]) {
			continue
		}
		out = append(append(out, text[last:at[0]]...), leftOut...)
		last = at[1]
	}
	return append(out, text[last:]...)
}

// marked says whether a word is a public key or hash as text: what it is stands before it.
func marked(before, w []byte) bool {
	const publicKey = 43
	return len(w) == publicKey && slices.ContainsFunc([]string{"agent:", "authority:", "join:", "tunnel:", "relay:"}, func(m string) bool {
		return bytes.HasSuffix(before, []byte(m))
	})
}

// random says whether a long word could be a key. In base64 of 32 bytes there are capital and small letters; what has few
// capitals is a path or a name, and if it is one with many the report loses it.
func random(w []byte) bool {
	const commit = 40 // a hash of 20 bytes in hexadecimal, which git names commits by
	var small, capital int
	for _, c := range w {
		switch {
		case c >= 'a' && c <= 'z':
			small++
		case c >= 'A' && c <= 'Z':
			capital++
		}
	}
	// Hexadecimal may be one piece of a path.
	for piece := range bytes.FieldsFuncSeq(w, func(r rune) bool { return strings.ContainsRune("+/_=%-", r) }) {
		if len(piece) > commit && !bytes.ContainsFunc(piece, func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF", r) }) {
			return true
		}
	}
	return capital >= 4 && small >= 4
}
