// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// resolverDNS puts a file for each zone into /etc/resolver.
type resolverDNS struct {
	folder, resolvConf, stateDir string
	log                          *slog.Logger

	mu     sync.Mutex
	config *DNSConfig // guarded by mu
	paths  []string   // guarded by mu
}

// OpenDNS prepares to tell macOS which domains are ours. What a killed process left changed is undone first.
func OpenDNS(o Options) (DNS, error) {
	if err := RestoreDNS(o.StateDir, o.logger()); err != nil {
		return nil, err
	}
	etc := filepath.Join("/", o.Root, "etc")
	return &resolverDNS{
		folder: filepath.Join(etc, "resolver"), resolvConf: filepath.Join(etc, "resolv.conf"),
		stateDir: o.StateDir, log: o.logger(),
	}, nil
}

// RestoreDNS undoes what a process that was killed, and used this state folder, had set.
func RestoreDNS(stateDir string, _ *slog.Logger) error {
	r, err := loadDNSRecord(stateDir)
	if err != nil || r == nil {
		return err
	}
	if err := removeOurFiles(r.Paths); err != nil {
		return fmt.Errorf("restore DNS: %w", err)
	}
	return removeDNSRecord(stateDir)
}

func (d *resolverDNS) Mode() string { return "resolver" }

func (d *resolverDNS) Set(c DNSConfig) error {
	if err := c.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.setLocked(c)
}

func (d *resolverDNS) setLocked(c DNSConfig) error {
	files := resolverFiles(d.folder, c)
	paths := slices.Sorted(maps.Keys(files))
	for _, p := range paths {
		if data, err := os.ReadFile(p); err == nil && !strings.HasPrefix(string(data), resolvMarker) {
			return fmt.Errorf("set DNS: %w: %s belongs to another program", ErrDNSUnavailable, p)
		}
	}
	all := append(slices.Clone(d.paths), paths...)
	record := dnsRecord{Mode: d.Mode(), Interface: c.Interface, Server: c.Server, Paths: all}
	if err := record.save(d.stateDir); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	if err := os.MkdirAll(d.folder, 0o755); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	for _, p := range paths {
		if err := WriteFileAtomic(p, files[p], 0o644); err != nil {
			return fmt.Errorf("set DNS: %w", err)
		}
	}
	old := slices.DeleteFunc(d.paths, func(p string) bool { return slices.Contains(paths, p) })
	if err := removeOurFiles(old); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	d.config, d.paths = &c, paths
	return nil
}

// Upstreams are the resolvers that the system keeps in /etc/resolv.conf, which ours is never put into.
func (d *resolverDNS) Upstreams() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	data, err := os.ReadFile(d.resolvConf)
	if err != nil {
		return nil
	}
	own := netip.Addr{}
	if d.config != nil {
		own = d.config.Server
	}
	return upstreams(parseResolvConf(data).Nameservers, own)
}

func (d *resolverDNS) Refresh() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.paths {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			return true, d.setLocked(*d.config)
		}
	}
	return false, nil
}

func (d *resolverDNS) Restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := removeOurFiles(d.paths); err != nil {
		return fmt.Errorf("restore DNS: %w", err)
	}
	d.config, d.paths = nil, nil
	return removeDNSRecord(d.stateDir)
}
