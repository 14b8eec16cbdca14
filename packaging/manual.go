// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maintainer is who answers for the packages.
const maintainer = "The pilot project <pilot-protocol@users.noreply.github.com>"

// document asks the program itself for its manual and completions, so that they can't differ from it.
func (r release) document(ctx context.Context, binary, docs string) error {
	man := filepath.Join(docs, "man")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(man, 0o755); err != nil { // the umask may have taken something away, and nfpm takes it over
		return err
	}
	if err := r.manual(ctx, binary, man, nil); err != nil {
		return err
	}
	if err := os.Chtimes(man, r.time, r.time); err != nil {
		return err
	}
	for shell, name := range map[string]string{"bash": "pilot.bash", "zsh": "_pilot", "fish": "pilot.fish"} {
		script, err := output(ctx, binary, "completion", shell)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(docs, name), []byte(script+"\n")); err != nil {
			return err
		}
	}
	changes, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		return err
	}
	if err := writeGzip(filepath.Join(docs, "CHANGELOG.md.gz"), changes); err != nil {
		return err
	}
	// What Debian's tools read (deb-changelog(5)).
	version, _ := r.version.of("deb")
	entry := fmt.Sprintf("pilot-protocol (%s) stable; urgency=medium\n\n  * See CHANGELOG.md.gz beside this file.\n\n -- %s  %s\n",
		version, maintainer, r.time.Format(time.RFC1123Z))
	return writeGzip(filepath.Join(docs, "changelog.gz"), []byte(entry))
}

// manual writes the page on a command, and those on the commands below it.
func (r release) manual(ctx context.Context, binary, folder string, path []string) error {
	help, err := output(ctx, binary, append([]string{"help"}, path...)...)
	if err != nil {
		return err
	}
	name := strings.Join(append([]string{"pilot"}, path...), "-")
	page := roff(name, help, r.version.String(), r.time)
	if err := writeGzip(filepath.Join(folder, name+".1.gz"), []byte(page)); err != nil {
		return err
	}
	for _, sub := range subcommands(help, path) {
		if err := r.manual(ctx, binary, folder, append(path, sub)); err != nil {
			return err
		}
	}
	return nil
}

// subcommands finds the names in the section "commands:" of a help text.
func subcommands(help string, path []string) []string {
	prefix := "  " + strings.Join(append([]string{"pilot"}, path...), " ") + " "
	var names []string
	_, list, _ := strings.Cut(help, "\ncommands:\n")
	for line := range strings.Lines(list) {
		rest, ok := strings.CutPrefix(line, prefix)
		if !ok {
			break
		}
		names = append(names, strings.Fields(rest)[0])
	}
	return names
}

// roff is a help text as a manual page (man(7)). Paragraphs are filled; what is indented is kept as it is.
func roff(name, help, version string, date time.Time) string {
	title, rest, _ := strings.Cut(help, "\n")
	_, about, _ := strings.Cut(title, " - ")
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 %s \"pilot %s\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(escape(name)), date.Format(time.DateOnly), escape(version), escape(name), escape(about))
	kept := false
	keep := func(want bool) {
		if want != kept {
			b.WriteString(map[bool]string{true: ".nf\n", false: ".fi\n"}[want])
			kept = want
		}
	}
	described := false
	for line := range strings.SplitSeq(rest, "\n") {
		heading, isHeading := strings.CutSuffix(line, ":")
		isHeading = isHeading && !strings.HasPrefix(line, " ") && len(heading) < 40
		switch {
		case isHeading && heading == "usage":
			keep(false)
			b.WriteString(".SH SYNOPSIS\n")
		case isHeading:
			keep(false)
			fmt.Fprintf(&b, ".SH %s\n", strings.ToUpper(escape(heading)))
		case line == "":
			keep(false)
			b.WriteString(".PP\n")
		case strings.HasPrefix(line, "  "):
			keep(true)
			b.WriteString(escape(line) + "\n")
		default:
			keep(false)
			if !described {
				b.WriteString(".SH DESCRIPTION\n")
				described = true
			}
			b.WriteString(escape(line) + "\n")
		}
	}
	keep(false)
	// Two empty lines, or one before a heading, say nothing in roff.
	text := b.String()
	for strings.Contains(text, ".PP\n.PP\n") {
		text = strings.ReplaceAll(text, ".PP\n.PP\n", ".PP\n")
	}
	return strings.TrimSuffix(strings.ReplaceAll(text, ".PP\n.SH", ".SH"), ".PP\n")
}

// escape keeps roff from taking text for requests.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", `\[u2026]`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}
