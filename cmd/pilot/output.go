// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// safe makes text fit for a terminal: what is not printable (control characters, line breaks, escape sequences, marks
// that turn the direction of writing, broken UTF-8) is shown as an escape. All other text stays as it is.
func safe(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[0])
		} else if q := strconv.QuoteRune(r); strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[size:]
	}
	return b.String()
}

// quoted is how words of another agent are shown: in quotes, so that they can't pass for ours.
func quoted(s string) string { return strconv.Quote(s) }

// show prints a command's result: as JSON where that was asked for, otherwise by text.
func (p *program) show(c *cli.Context, result any, text func(io.Writer)) error {
	if c.Bool("json") {
		return p.writeJSON(result)
	}
	var b bytes.Buffer
	text(&b)
	_, err := p.stdout.Write(b.Bytes())
	return err
}

// writeJSON prints v, indented, with a line break at its end.
func (p *program) writeJSON(v any) error { return writeJSON(p.stdout, v, "  ") }

func writeJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(asciiControls(b.Bytes()))
	return err
}

// asciiControls writes as \u escapes those characters that JSON allows in strings and that a terminal may obey.
func asciiControls(raw []byte) []byte {
	out := make([]byte, 0, len(raw))
	for len(raw) > 0 {
		r, size := utf8.DecodeRune(raw)
		switch {
		case r == '\n' || strconv.IsPrint(r):
			out = append(out, raw[:size]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		raw = raw[size:]
	}
	return out
}

// table prints rows in aligned columns, two spaces apart.
func table(w io.Writer, rows ...[]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = safe(cell); cell == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	_ = tw.Flush() // w is a buffer
}

// line prints one labelled line.
func line(w io.Writer, label, format string, args ...any) {
	fmt.Fprintf(w, "%-10s%s\n", label, safe(fmt.Sprintf(format, args...)))
}

// period shows a length of time in one unit: "12 s", "3 min", "24 h", "7 days".
func period(d time.Duration) string {
	switch d = d.Abs(); {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d <= 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// ago shows a moment of the past as seen from now; empty for the zero time.
func ago(t, now time.Time) string {
	switch d := now.Sub(t); {
	case t.IsZero():
		return ""
	case d < time.Second: // clocks that differ a little make it negative
		return "now"
	default:
		return period(d) + " ago"
	}
}

// until shows a moment of the future as seen from now.
func until(t, now time.Time) string {
	if !t.After(now) {
		return "expired"
	}
	return "in " + period(t.Sub(now).Round(time.Second))
}

// size shows a number of bytes with decimal units: "1.2 MB".
func size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for v >= 999.95 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", v, units[i])
}

// millis shows a time in milliseconds with three significant digits.
func millis(ms float64) string {
	if ms <= 0 || math.IsInf(ms, 0) || math.IsNaN(ms) {
		return ""
	}
	digits := max(0, 2-int(math.Floor(math.Log10(ms))))
	return strconv.FormatFloat(ms, 'f', min(digits, 3), 64) + " ms"
}
