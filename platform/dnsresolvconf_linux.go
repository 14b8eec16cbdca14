// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// programTimeout bounds a run of a program of the system's; resolvconf's hooks may restart services.
const programTimeout = 30 * time.Second

// resolvconfDNS hands our settings to the program that composes /etc/resolv.conf out of everybody's (resolvconf(8)).
type resolvconfDNS struct {
	path, stateDir, root string
	kind                 string
	log                  *slog.Logger

	mu        sync.Mutex
	config    *DNSConfig // guarded by mu, as below; nil: nothing is set
	upstreams []netip.AddrPort
	seen      string // stamps of all entries as Refresh last found them; empty: it is to ask for them
}

// resolvconfEntry is the name of our entry. Debian's program sorts by name, and puts tun* before what DHCP says.
func resolvconfEntry(kind, name string) string {
	if kind == ResolvconfDebian {
		return "tun." + name
	}
	return name
}

// resolvconfAdd are the arguments that add an entry; openresolv is asked to list it first, and alone.
func resolvconfAdd(kind, name string) []string {
	args := []string{"-a", resolvconfEntry(kind, name)}
	if kind == ResolvconfOpenresolv {
		args = append(args, "-m", "0", "-x")
	}
	return args
}

func resolvconfDelete(kind, name string) []string {
	args := []string{"-d", resolvconfEntry(kind, name)}
	if kind == ResolvconfOpenresolv {
		args = append(args, "-f") // absent is fine
	}
	return args
}

// crowded names the server in an entry in three spellings, which are as many as a resolv.conf holds: Debian's program
// can't be asked to list an entry alone, and a C library that asks all servers at once (musl) would take the word of the
// first that answers.
func crowded(entry []byte, server netip.Addr) []byte {
	for _, spelling := range []string{server.StringExpanded(), strings.ToUpper(server.String())} {
		entry = append(entry, "nameserver "+spelling+"\n"...)
	}
	return entry
}

func newResolvconfDNS(path, stateDir, root, kind string, log *slog.Logger) *resolvconfDNS {
	d := &resolvconfDNS{path: path, stateDir: stateDir, root: root, kind: kind, log: log}
	if content, err := readBounded(path); err == nil {
		d.upstreams = fileUpstreams(content, netip.Addr{})
	}
	return d
}

func (d *resolvconfDNS) Mode() string { return ModeResolvconf }

func (d *resolvconfDNS) Upstreams() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.upstreams)
}

func (d *resolvconfDNS) Set(c DNSConfig) error {
	if err := c.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config != nil && equalConfig(*d.config, c) {
		return nil
	}
	return d.setLocked(c)
}

func (d *resolvconfDNS) setLocked(c DNSConfig) error {
	record := dnsRecord{Mode: ModeResolvconf, Interface: c.Interface, Server: c.Server, Program: d.kind}
	if err := record.save(d.stateDir); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	entry := resolvConf{}.render(c)
	if d.kind == ResolvconfDebian {
		entry = crowded(entry, c.Server)
	}
	if _, err := runResolvconf(entry, resolvconfAdd(d.kind, c.Interface)...); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	d.upstreams = slices.DeleteFunc(d.upstreams, func(a netip.AddrPort) bool { return a.Addr() == c.Server })
	d.config = &c
	return nil
}

func (d *resolvconfDNS) Refresh() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return false, nil
	}
	var changed bool
	if stamps := d.stamps(); stamps == "" || stamps != d.seen {
		if others := upstreams(d.others(), d.config.Server); len(others) > 0 && !slices.Equal(others, d.upstreams) {
			d.upstreams, changed = others, true
		}
		d.seen = stamps
	}
	content, err := readBounded(d.path)
	if err != nil {
		return changed, err
	}
	if ns := parseResolvConf(content).Nameservers; len(ns) > 0 && ns[0] == d.config.Server {
		return changed, nil
	}
	return true, d.setLocked(*d.config)
}

// stamps tell all entries from changed ones, without a run of a program; empty: they can't, or one changed just now.
func (d *resolvconfDNS) stamps() string {
	var b strings.Builder
	for _, folder := range []string{"interface", "interfaces", "keys"} { // Debian's, openresolv's, openresolv's since 3.13
		files, _ := filepath.Glob(filepath.Join(d.root, "/run/resolvconf", folder, "*"))
		for _, f := range files {
			var s unix.Stat_t
			if unix.Stat(f, &s) != nil || time.Since(time.Unix(s.Ctim.Unix())) < stampSettle {
				return ""
			}
			fmt.Fprintln(&b, f, s.Ino, s.Size, s.Mtim, s.Ctim)
		}
	}
	return b.String()
}

// others are the nameservers of everybody else's entries.
func (d *resolvconfDNS) others() (servers []netip.Addr) {
	if d.kind == ResolvconfOpenresolv {
		list, err := runResolvconf(nil, "-l")
		if err != nil {
			return nil
		}
		return parseResolvConf(list).Nameservers
	}
	for _, f := range d.entries() {
		if filepath.Base(f) == resolvconfEntry(d.kind, d.config.Interface) {
			continue
		}
		if content, err := readBounded(f); err == nil {
			servers = append(servers, parseResolvConf(content).Nameservers...)
		}
	}
	return servers
}

// entries are the files of all entries of Debian's resolvconf, in the order in which it takes them.
func (d *resolvconfDNS) entries() (files []string) {
	folder := filepath.Join(d.root, "/run/resolvconf/interface")
	// It has a program for that, which must be run in the folder.
	list, err := runProgram(nil, "/bin/sh", "-c", `cd "$1" && exec /lib/resolvconf/list-records`, "sh", folder)
	if err != nil {
		files, _ = filepath.Glob(filepath.Join(folder, "*"))
		return files
	}
	for _, name := range strings.Fields(string(list)) {
		files = append(files, filepath.Join(folder, name))
	}
	return files
}

func (d *resolvconfDNS) Restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return nil
	}
	if err := revertResolvconf(d.kind, d.config.Interface); err != nil {
		return err
	}
	d.config = nil
	return removeDNSRecord(d.stateDir)
}

func revertResolvconf(kind, name string) error {
	if _, err := runResolvconf(nil, resolvconfDelete(kind, name)...); err != nil {
		return fmt.Errorf("restore DNS: %w", err)
	}
	return nil
}

// runResolvconf runs it with the usual umask: ours is tight, and the files that it makes are for everybody to read.
func runResolvconf(input []byte, args ...string) ([]byte, error) {
	return runProgram(input, append([]string{"/bin/sh", "-c", `umask 022 && exec resolvconf "$@"`, "resolvconf"}, args...)...)
}

func runProgram(input []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = bytes.NewReader(input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// resolvconfKind finds out which of the programs called resolvconf this system has.
func resolvconfKind() string {
	path, err := exec.LookPath("resolvconf")
	if err != nil {
		return ""
	}
	if real, err := filepath.EvalSymlinks(path); err == nil && strings.HasSuffix(real, "/resolvectl") {
		return ResolvconfSystemd
	}
	// Both others are shell scripts, and openresolv's says so in its header.
	content, err := os.ReadFile(path)
	if err == nil && bytes.Contains(content, []byte("openresolv")) {
		return ResolvconfOpenresolv
	}
	return ResolvconfDebian
}
