// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Snapshot is everything about a host that a daemon may change: a sorted list of lines for each subject.
type Snapshot map[string][]string

// Snapshot takes the host's present state: interfaces, addresses, routes, rules, firewall, sockets, DNS settings,
// files in /run, and processes.
func (h *Host) Snapshot() Snapshot {
	h.lab.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	s := Snapshot{}
	for subject, command := range map[string]string{
		"interfaces":  "ip -o link",
		"addresses":   "ip -br addr",
		"IPv4 routes": "ip -4 route show table all",
		"IPv6 routes": "ip -6 route show table all",
		"IPv4 rules":  "ip -4 rule",
		"IPv6 rules":  "ip -6 rule",
		"firewall":    "nft list ruleset",
		"sockets":     "ss -H -l -n -t -u -x -w",
		"processes":   "ps -N -p 1 -o args=",
	} {
		r := h.Run(ctx, strings.Fields(command)...)
		if r.Err != nil || r.Stderr != "" {
			h.lab.tb.Fatalf("lab: %s: %v", h.name, r)
		}
		s[subject] = lines(r.Stdout)
	}
	s["etc"] = h.files("/etc/resolv.conf", "/etc/resolv.conf.d", "/etc/hosts", "/etc/nsswitch.conf", "/etc/systemd")
	s["run"] = h.files("/run")
	return s
}

// Diff tells what is in one state and not in the other, a line each, "-" for what went and "+" for what came. It is
// empty for equal states.
func (s Snapshot) Diff(later Snapshot) string {
	var b strings.Builder
	for subject := range s {
		for _, line := range s[subject] {
			if !slices.Contains(later[subject], line) {
				fmt.Fprintf(&b, "- %s: %s\n", subject, line)
			}
		}
		for _, line := range later[subject] {
			if !slices.Contains(s[subject], line) {
				fmt.Fprintf(&b, "+ %s: %s\n", subject, line)
			}
		}
	}
	out := lines(b.String())
	return strings.Join(out, "\n")
}

// files lists what is at and below the host's paths: mode, path, and the content of small regular files.
func (h *Host) files(roots ...string) []string {
	var out []string
	for _, root := range roots {
		base := h.Path("/")
		_ = filepath.WalkDir(filepath.Join(base, root), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return nil // what isn't there is not listed
			}
			info, err := entry.Info()
			if err != nil {
				return nil // gone meanwhile
			}
			line := fmt.Sprintf("%v %s", info.Mode(), strings.TrimPrefix(path, base))
			if info.Mode().IsRegular() && info.Size() < 8<<10 {
				text, _ := os.ReadFile(path)
				line += fmt.Sprintf(" %q", text)
			}
			if info.Mode()&fs.ModeSymlink != 0 {
				target, _ := os.Readlink(path)
				line += " -> " + target
			}
			out = append(out, line)
			return nil
		})
	}
	slices.Sort(out)
	return out
}

// Processes returns the command line of each process of the host but its first, by process id as the lab sees it.
func (h *Host) Processes() map[int]string {
	h.lab.tb.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", h.pid))
	if err != nil {
		h.lab.tb.Fatalf("lab: %v", err)
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		h.lab.tb.Fatalf("lab: %v", err)
	}
	found := map[int]string{}
	for _, dir := range all {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &pid); err != nil || pid == h.pid {
			continue
		}
		if in, err := os.Readlink(filepath.Join(dir, "ns/pid")); err != nil || in != ns {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(text) == 0 {
			continue
		}
		found[pid] = strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
	}
	return found
}

// Probe runs a program every 100 ms until it succeeds, and ends the test when it has not within limit.
func (h *Host) Probe(limit time.Duration, args ...string) Result {
	h.lab.tb.Helper()
	var last Result
	Eventually(h.lab.tb, limit, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, limit/2)
		defer cancel()
		if last = h.Run(ctx, args...); last.OK() {
			return nil
		}
		return fmt.Errorf("%s: %v", h.name, last)
	})
	return last
}

func lines(text string) []string {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil
	}
	out := strings.Split(text, "\n")
	for i, line := range out {
		out[i] = strings.TrimSpace(line)
	}
	slices.Sort(out)
	return out
}
