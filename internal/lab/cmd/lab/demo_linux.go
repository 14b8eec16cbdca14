// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pilot-protocol/pilot/internal/lab"
)

// teller runs commands on hosts and shows them with their real output.
type teller struct {
	console *console
	step    int
}

// stepLimit bounds one command of the demo.
const stepLimit = 40 * time.Second

// say begins a step.
func (d *teller) say(format string, args ...any) {
	d.step++
	fmt.Printf("\n\033[1m%d. %s\033[0m\n", d.step, fmt.Sprintf(format, args...))
}

// run shows a command and its output. The command has to succeed.
func (d *teller) run(h *lab.Host, args ...string) string {
	r := d.show(h, args...)
	if !r.OK() {
		d.console.Fatalf("step %d failed on host %s: status %d: %v", d.step, h.Name(), r.Code, r.Err)
	}
	return r.Stdout
}

// refused shows a command that has to fail.
func (d *teller) refused(h *lab.Host, args ...string) {
	if r := d.show(h, args...); r.OK() || r.Err != nil {
		d.console.Fatalf("step %d: host %s was not refused: %v", d.step, h.Name(), r)
	}
}

func (d *teller) show(h *lab.Host, args ...string) lab.Result {
	fmt.Printf("  %s# %s\n", h.Name(), quoted(args))
	ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	r := h.Run(ctx, args...)
	for line := range strings.Lines(r.Stdout + r.Stderr) {
		fmt.Printf("      %s\n", strings.TrimRight(line, "\n"))
	}
	return r
}

// word is the first word with this prefix in what a command printed.
func (d *teller) word(output, prefix string) string {
	for word := range strings.FieldsSeq(output) {
		if strings.HasPrefix(word, prefix) {
			return word
		}
	}
	d.console.Fatalf("step %d: nothing in the output begins with %s", d.step, prefix)
	return ""
}

// quoted is a command line as a person would type it.
func quoted(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		if strings.ContainsAny(a, " '\"$") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out[i] = a
	}
	return strings.Join(out, " ")
}

// demo tells the whole story: three hosts, three agents, plain curl by name, and what is refused.
func demo(c *console) {
	begin := time.Now()
	d := &teller{console: c}
	lab.Binary(c)

	d.say("Three hosts on one network, each with its own interfaces, files and processes.")
	hosts := trio(c)
	a, b, third := hosts[0], hosts[1], hosts[2]
	for _, h := range hosts {
		d.run(h, "ip", "-br", "addr", "show", "eth0")
	}

	d.say("Host a makes a network; it is the coordinator, too, and its first agent is called planner.")
	first := d.run(a, "pilot", "up", "--name", "planner")

	d.say("Host b joins by an invite. It carries planner's consent, so the two trust each other at once.")
	joined := d.run(b, "pilot", "up", "--name", "warehouse", d.word(first, "pilot://"))
	warehouse := "http://[" + d.word(joined, "fd") + "]/"

	d.say("An ordinary web server on a, and ordinary programs on b, by name.")
	serve(c, a, "the plan for today: be reachable\n")
	if got := d.run(b, "curl", "-sS", "--fail", "--max-time", "10", "http://planner/"); got != "the plan for today: be reachable\n" {
		c.Fatalf("curl got something else")
	}
	d.run(b, "ping", "-c", "2", "-i", "0.3", "planner")
	d.run(b, "pilot", "ping", "planner", "--count", "2", "--interval", "300ms")

	d.say("Host c joins as auditor. It doesn't know warehouse, and warehouse doesn't know it: refused, at once.")
	d.run(third, "pilot", "up", "--name", "auditor", d.word(d.run(a, "pilot", "invite"), "pilot://"))
	serve(c, b, "12 crates of apples\n")
	d.refused(third, "curl", "-sS", "--max-time", "5", "http://warehouse/")
	d.refused(third, "curl", "-sS", "--max-time", "5", warehouse)
	d.refused(b, "pilot", "ping", "auditor", "--count", "1")

	d.say("The auditor asks, the warehouse approves.")
	d.run(third, "pilot", "trust", "warehouse", "--reason", "quarterly audit")
	b.Probe(10*time.Second, "sh", "-c", "pilot=$1; $pilot trust pending | grep -q auditor", "sh", lab.Binary(c))
	d.run(b, "pilot", "trust", "pending")
	d.run(b, "pilot", "trust", "approve", "auditor")
	third.Probe(10*time.Second, "curl", "-sS", "--fail", "--max-time", "3", "-o", "/dev/null", "http://warehouse/")
	d.run(third, "curl", "-sS", "--fail", "--max-time", "10", "http://warehouse/")

	d.say("What the hosts know now.")
	d.run(third, "pilot", "status")
	d.run(b, "pilot", "whois", "auditor")

	d.say("The warehouse changes its mind.")
	d.run(b, "pilot", "trust", "revoke", "auditor")
	lab.Eventually(c, 5*time.Second, func(ctx context.Context) error {
		if third.Run(ctx, "curl", "-sS", "--max-time", "2", "-o", "/dev/null", "http://warehouse/").OK() {
			return fmt.Errorf("a revoked agent still gets in")
		}
		return nil
	})
	d.refused(third, "curl", "-sS", "--max-time", "5", warehouse)

	d.say("Down: the hosts are as they were.")
	for _, h := range []*lab.Host{third, b, a} {
		d.run(h, "pilot", "down")
		d.run(h, "ip", "-br", "link")
	}
	fmt.Printf("\nAll %d steps went as told, in %v. Taking the hosts down.\n", d.step, time.Since(begin).Round(100*time.Millisecond))
}

// serve starts python's web server on a host, with one page.
func serve(c *console, h *lab.Host, page string) {
	h.WriteFile("index.html", page, os.FileMode(0o644))
	fmt.Printf("  %s# python3 -m http.server --bind :: 80 &\n", h.Name())
	h.Start("python3", "-m", "http.server", "--bind", "::", "80")
	h.Probe(10*time.Second, "curl", "-sS", "--max-time", "2", "-o", "/dev/null", "http://[::1]/")
}
