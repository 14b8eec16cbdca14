// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// OpenDNS finds out how this system resolves names, now and later on. Nothing is changed before Set; but what a killed
// process left changed is undone first. Where there is no way, Set says so, and each Refresh looks again. A process that
// is not root asks the system service for it, where that is there.
func OpenDNS(o Options) (DNS, error) {
	log := o.logger()
	if o.Root == "" {
		if served, err := openServedDNS(dnsServiceSocket, log); served != nil || err != nil {
			return served, err
		}
	}
	if err := RestoreDNS(o.StateDir, log); err != nil {
		return nil, err
	}
	d := &fittingDNS{path: filepath.Join("/", o.Root, "etc/resolv.conf"), options: o, log: log}
	return d, d.look()
}

// RestoreDNS undoes what a process that was killed, and used this state folder, had set. With nothing to undo it does
// nothing. Nobody else may use the folder at the time.
func RestoreDNS(stateDir string, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r, err := loadDNSRecord(stateDir)
	if err != nil || r == nil {
		return err
	}
	log.Info("undoing DNS settings of an earlier run", "mode", r.Mode)
	switch r.Mode {
	case ModeFile:
		err = r.restoreFile(log)
	case ModeResolvconf:
		err = revertResolvconf(r.Program, r.Interface)
	case ModeResolved:
		if err = revertResolved(r.Interface); err != nil {
			// Without the service, or the link, there is nothing left to undo.
			log.Warn("DNS settings were not reverted", "error", err)
			err = nil
		}
	default:
		err = fmt.Errorf("%w: unknown mode %q", ErrDNSRecord, r.Mode)
	}
	if err != nil {
		return err
	}
	return removeDNSRecord(stateDir)
}

// lookAround gathers what ChooseDNS decides by. former is what was at path before us, if ours is there now.
func lookAround(path string, former *savedFile) Environment {
	e := Environment{BusNames: busNames(), Resolvconf: resolvconfKind(), BindMount: isMounted(path)}
	link, _ := os.Readlink(path)
	content, err := readBounded(path)
	if err == nil {
		e.ResolvConf = append([]byte{}, content...)
	}
	if e.Symlink = link; former != nil {
		e.Symlink, e.ResolvConf = former.Symlink, nil
		if len(former.Content) > 0 || former.Existed && former.Symlink == "" {
			e.ResolvConf = append([]byte{}, former.Content...)
		}
	}
	// A file that can be replaced needs no permission of its own; one that is mounted, or in a read-only folder, does.
	folder := unix.Access(filepath.Dir(path), unix.W_OK) == nil
	file := unix.Access(path, unix.W_OK) == nil && link == "" && !errors.Is(err, fs.ErrNotExist)
	e.ReadOnly = !file && (!folder || e.BindMount || isImmutable(path))
	return e
}

// busNames lists who is on the system bus or could be started there; none without a bus.
func busNames() []string {
	ctx, cancel := context.WithTimeout(context.Background(), busTimeout)
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil
	}
	defer conn.Close()
	var names, startable []string
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		return nil
	}
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.ListActivatableNames", 0).Store(&startable); err == nil {
		names = append(names, startable...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
