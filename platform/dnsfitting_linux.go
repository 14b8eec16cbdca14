// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// fittingDNS tells the system's resolver in the way that fits, and changes to another one when that comes to fit: at boot
// the bus may be later than we are, and a resolver may be installed, or go, at any time.
type fittingDNS struct {
	path    string
	options Options
	log     *slog.Logger

	mu     sync.Mutex
	way    DNS        // guarded by mu, as all below; nil: none fits
	choice Decision   // by which way was made
	early  bool       // what resolv.conf names isn't there yet
	config *DNSConfig // what is to be set; nil: nothing
	set    bool       // and is
	seen   [2]fileStamp
	guard  *guard // nil: none runs
}

// look chooses a way for the first time.
func (d *fittingDNS) look() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.chooseLocked(lookAround(d.path, nil))
}

// chooseLocked makes the way that fits e. There must be none that has something to restore.
func (d *fittingDNS) chooseLocked(e Environment) (err error) {
	choice := ChooseDNS(e)
	if d.way == nil && choice == d.choice {
		return nil
	}
	d.log.Info("DNS", "mode", choice.Mode, "reason", choice.Reason)
	d.choice, d.way, d.early = choice, nil, e.early()
	switch choice.Mode {
	case ModeResolved:
		d.way = &resolvedDNS{stateDir: d.options.StateDir, log: d.log}
	case ModeResolvconf:
		d.way = newResolvconfDNS(d.path, d.options.StateDir, d.options.Root, e.Resolvconf, d.log)
	case ModeFile:
		file, err := newFileDNS(d.path, d.options.StateDir, d.log)
		if err != nil {
			return err // and not a nil *fileDNS in an interface
		}
		d.way = file
	}
	return nil
}

func (d *fittingDNS) Mode() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.way == nil || d.config != nil && !d.set {
		return ModeNone
	}
	return d.way.Mode()
}

func (d *fittingDNS) Upstreams() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.way == nil {
		content, _ := readBounded(d.path)
		return fileUpstreams(content, netip.Addr{})
	}
	return d.way.Upstreams()
}

func (d *fittingDNS) Set(c DNSConfig) error {
	if err := c.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config = &c
	return d.setLocked()
}

func (d *fittingDNS) setLocked() error {
	d.set = false
	if d.way == nil {
		return fmt.Errorf("%w: %s", ErrDNSUnavailable, d.choice.Reason)
	}
	d.watchLocked()
	if err := d.way.Set(*d.config); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
			err = fmt.Errorf("%w: %w", ErrDNSUnavailable, err)
		}
		return err
	}
	d.set, d.seen = true, stampsOf(d.path)
	return nil
}

// watchLocked sees to it that a guard runs where what is set outlives this process. systemd-resolved forgets it by itself.
func (d *fittingDNS) watchLocked() {
	if d.choice.Mode == ModeResolved || len(d.options.Guard) == 0 || d.guard != nil {
		return
	}
	var err error
	if d.guard, err = startGuard(d.options.Guard); err != nil {
		d.log.Warn("nobody would undo DNS settings if this process were killed", "error", err)
	}
}

// restoreLocked undoes what is set, if anything.
func (d *fittingDNS) restoreLocked() error {
	if d.way != nil {
		if err := d.way.Restore(); err != nil {
			return err
		}
	}
	if d.guard != nil {
		d.guard.dismiss()
		d.guard = nil
	}
	return nil
}

// Refresh looks around again when somebody changed something, when the last try failed, and when it was too early.
func (d *fittingDNS) Refresh() (changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return false, nil
	}
	if d.set {
		changed, err = d.way.Refresh()
		stamps := stampsOf(d.path)
		if !changed && err == nil && !d.early && stamps == d.seen {
			return false, nil
		}
		d.seen = stamps
	}
	var former *savedFile
	if file, ok := d.way.(*fileDNS); ok {
		former = file.former()
	}
	e := lookAround(d.path, former)
	if d.set && ChooseDNS(e).Mode == d.choice.Mode {
		d.early = e.early()
		return changed, err
	}
	if err := d.restoreLocked(); err != nil {
		return changed, err
	}
	if err := d.chooseLocked(lookAround(d.path, nil)); err != nil {
		return changed, err
	}
	if err := d.setLocked(); err != nil {
		return changed, err
	}
	return true, nil
}

func (d *fittingDNS) Restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config, d.set = nil, false
	return d.restoreLocked()
}

// stampsOf are those of a file and of what it is a symlink to.
func stampsOf(path string) (s [2]fileStamp) {
	for i, stat := range []func(string, *unix.Stat_t) error{unix.Lstat, unix.Stat} {
		var t unix.Stat_t
		if stat(path, &t) == nil {
			s[i] = fileStamp{dev: t.Dev, ino: t.Ino, size: t.Size, mtime: t.Mtim, change: t.Ctim}
		}
	}
	return s
}

// isImmutable tells whether a file may neither be written nor replaced, as chattr +i has it.
func isImmutable(path string) bool {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &s)
	return err == nil && s.Attributes&unix.STATX_ATTR_IMMUTABLE != 0
}

// fileUpstreams are the resolvers that a resolv.conf names, and where it names none the one that the C library then asks.
func fileUpstreams(content []byte, own netip.Addr) []netip.AddrPort {
	servers := parseResolvConf(content).Nameservers
	if len(servers) == 0 {
		servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return upstreams(slices.Clone(servers), own)
}
