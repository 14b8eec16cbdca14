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

func newResolvconfDNS(path, stateDir, root, kind string, log *slog.Logger) *resolvconfDNS {
	d := &resolvconfDNS{path: path, stateDir: stateDir, root: root, kind: kind, log: log}
	if content, err := readBounded(path); err == nil {
		d.upstreams = upstreams(parseResolvConf(content).Nameservers, netip.Addr{})
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
	if _, err := runResolvconf(resolvConf{}.render(c), resolvconfAdd(d.kind, c.Interface)...); err != nil {
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
	if others := upstreams(d.others(), d.config.Server); len(others) > 0 && !slices.Equal(others, d.upstreams) {
		d.upstreams, changed = others, true
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

// others are the nameservers of everybody else's entries.
func (d *resolvconfDNS) others() (servers []netip.Addr) {
	if d.kind == ResolvconfOpenresolv {
		list, err := runResolvconf(nil, "-l")
		if err != nil {
			return nil
		}
		return parseResolvConf(list).Nameservers
	}
	files, _ := filepath.Glob(filepath.Join(d.root, "/run/resolvconf/interface/*"))
	for _, f := range files {
		if filepath.Base(f) == resolvconfEntry(d.kind, d.config.Interface) {
			continue
		}
		if content, err := readBounded(f); err == nil {
			servers = append(servers, parseResolvConf(content).Nameservers...)
		}
	}
	return servers
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

func runResolvconf(input []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "resolvconf", args...)
	cmd.Stdin = bytes.NewReader(input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("resolvconf %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
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
