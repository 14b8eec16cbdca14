// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxFormer bounds how many files are remembered that came before the one to put back.
const maxFormer = 4

// maxResolvConf bounds what is read of a resolv.conf, in bytes.
const maxResolvConf = 1 << 20

// fileDNS rewrites /etc/resolv.conf.
type fileDNS struct {
	path, stateDir string
	log            *slog.Logger
	now            func() time.Time

	mu        sync.Mutex
	config    DNSConfig  // guarded by mu, as all below
	record    *dnsRecord // nil: nothing is changed
	upstreams []netip.AddrPort
	seen      fileStamps // of the files as Refresh last found them in order; zero: it is to read them
}

// fileStamps tell a file, and what it was a symlink to before us, from their changed selves without reading them.
type fileStamps struct{ file, target fileStamp }

type fileStamp struct {
	dev, ino      uint64
	size          int64
	mtime, change unix.Timespec
}

// stampSettle is for how long a file must not have changed before its stamp counts: one that is written twice within a tick
// of the clock that stamps it, 10 ms at most on Linux and 2 s on FAT, has the same stamp both times.
const stampSettle = 3 * time.Second

// stamp returns the stamp of a file, through symlinks if so asked; zero: it isn't there, or changed just now.
func (d *fileDNS) stamp(path string, stat func(string, *unix.Stat_t) error) fileStamp {
	var s unix.Stat_t
	if stat(path, &s) != nil || d.now().Sub(time.Unix(s.Ctim.Unix())) < stampSettle {
		return fileStamp{}
	}
	return fileStamp{dev: s.Dev, ino: s.Ino, size: s.Size, mtime: s.Mtim, change: s.Ctim}
}

// stampsLocked returns the stamps of all that Refresh reads; zero: one of them has none.
func (d *fileDNS) stampsLocked() (s fileStamps) {
	if s.file = d.stamp(d.path, unix.Lstat); s.file == (fileStamp{}) {
		return fileStamps{}
	}
	if target := d.targetLocked(); target != "" {
		if s.target = d.stamp(target, unix.Stat); s.target == (fileStamp{}) {
			return fileStamps{}
		}
	}
	return s
}

func newFileDNS(path, stateDir string, log *slog.Logger) (*fileDNS, error) {
	d := &fileDNS{path: path, stateDir: stateDir, log: log, now: time.Now}
	saved, err := saveFile(path)
	if err != nil {
		return nil, err
	}
	d.upstreams = fileUpstreams(saved.Content, netip.Addr{})
	return d, nil
}

func (d *fileDNS) Mode() string { return ModeFile }

func (d *fileDNS) Upstreams() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.upstreams)
}

func (d *fileDNS) Set(c DNSConfig) error {
	if err := c.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.setLocked(c)
}

func (d *fileDNS) setLocked(c DNSConfig) error {
	now, err := saveFile(d.path)
	if err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	record := &dnsRecord{Mode: ModeFile, Interface: c.Interface, Server: c.Server}
	base := d.baseLocked(now, record)
	if rc := parseResolvConf(base.Content); d.record == nil && rc.Owner == "pilot" && slices.Contains(rc.Nameservers, c.Server) {
		// Another program has put our file of an earlier run back, as what it found.
		base.Content = rc.unrender(c)
		base.SHA256 = digest(base.Content)
	}
	base.Written = parseResolvConf(base.Content).render(c)
	record.File = &base
	if now.Symlink != "" || !bytes.Equal(now.Content, base.Written) {
		err = d.writeLocked(record)
	} else if d.record == nil || !bytes.Equal(d.record.File.Content, base.Content) {
		err = record.save(d.stateDir)
		d.record = record
	}
	if err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	d.config = c
	d.upstreams = fileUpstreams(base.Content, c.Server)
	return nil
}

// baseLocked is the file to put back, given the one that is there, and notes in the record what to go back to after that.
// Another network's client that came after us keeps our file, writes its own, and puts ours back when it ends: what ours
// was made of counts again then.
func (d *fileDNS) baseLocked(now savedFile, record *dnsRecord) savedFile {
	if d.record == nil {
		return now
	}
	record.Former = d.record.Former
	if now.Symlink != "" || !d.record.File.ours(now.Content, d.record.Server) {
		record.Former = append(slices.Clone(record.Former), *d.record.File)
		record.Former = record.Former[max(0, len(record.Former)-maxFormer):]
		return now
	}
	if bytes.Equal(now.Content, d.record.File.Written) {
		return *d.record.File
	}
	for i, f := range slices.Backward(record.Former) {
		if bytes.Equal(now.Content, f.Written) {
			record.Former = record.Former[:i]
			return f
		}
	}
	return *d.record.File
}

// former is the file that was there before ours; nil: ours isn't there.
func (d *fileDNS) former() *savedFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record == nil {
		return nil
	}
	f := *d.record.File
	return &f
}

func (d *fileDNS) writeLocked(record *dnsRecord) error {
	if err := record.save(d.stateDir); err != nil {
		return err
	}
	d.record = record
	f := record.File
	perm := fs.FileMode(0o644)
	if f.Existed && f.Symlink == "" {
		perm = fs.FileMode(f.Mode)
	}
	if !f.InPlace {
		err := writeAtomic(d.path, f.Written, perm, nil)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		f.InPlace = true // mounted, on a kernel that can't say so
		if err := record.save(d.stateDir); err != nil {
			return err
		}
	}
	return writeInPlace(d.path, f.Written)
}

func (d *fileDNS) Refresh() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record == nil {
		return false, nil
	}
	stamps := d.stampsLocked() // before the files are read: a change after that has another one
	if stamps != (fileStamps{}) && stamps == d.seen {
		return false, nil
	}
	d.seen = fileStamps{}
	changed, err := d.readLocked()
	if !changed && err == nil {
		d.seen = stamps
	}
	return changed, err
}

// readLocked looks at the files themselves.
func (d *fileDNS) readLocked() (bool, error) {
	now, err := saveFile(d.path)
	if err != nil {
		return false, err
	}
	if now.Symlink != "" || !bytes.Equal(now.Content, d.record.File.Written) {
		d.log.Info("somebody else changed resolv.conf; setting ours again", "path", d.path)
		return true, d.setLocked(d.config)
	}
	return d.followLocked()
}

// followLocked looks at what our file's symlink pointed to: whoever maintains that goes on doing so.
func (d *fileDNS) followLocked() (bool, error) {
	f, target := d.record.File, d.targetLocked()
	if target == "" {
		return false, nil
	}
	content, err := readBounded(target)
	if err != nil || bytes.Equal(content, f.Content) {
		return false, nil // it may be about to come back
	}
	f.Content, f.SHA256 = content, digest(content)
	return true, d.setLocked(d.config)
}

// targetLocked is what our file's symlink pointed to; empty: it was none.
func (d *fileDNS) targetLocked() string {
	target := d.record.File.Symlink
	if target != "" && !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(d.path), target)
	}
	return target
}

func (d *fileDNS) Restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record == nil {
		return nil
	}
	if err := d.record.restoreFile(d.log); err != nil {
		return err
	}
	d.record = nil
	return removeDNSRecord(d.stateDir)
}

// restoreFile puts the saved file back, unless what is there now isn't ours.
func (r *dnsRecord) restoreFile(log *slog.Logger) error {
	f := r.File
	if f == nil {
		return fmt.Errorf("%w: no file in it", ErrDNSRecord)
	}
	now, err := saveFile(f.Path)
	if err != nil {
		return fmt.Errorf("restore DNS: %w", err)
	}
	if !now.Existed || now.Symlink != "" || !f.ours(now.Content, r.Server) {
		log.Info("resolv.conf isn't ours any more, so it stays as it is", "path", f.Path)
		return nil
	}
	switch {
	case !f.Existed:
		err = os.Remove(f.Path)
	case f.Symlink != "":
		err = f.restoreSymlink()
	case f.InPlace:
		if err = writeInPlace(f.Path, f.Content); err == nil {
			err = f.attributes(f.Path)
		}
	default:
		err = writeAtomic(f.Path, f.Content, fs.FileMode(f.Mode), f.attributes)
	}
	if err != nil {
		return fmt.Errorf("restore DNS: %w", err)
	}
	return nil
}

// attributes gives the file at path the saved one's owner, permissions and time.
func (f *savedFile) attributes(path string) error {
	if err := os.Lchown(path, f.UID, f.GID); err != nil && os.Geteuid() == 0 {
		return err
	}
	if err := os.Chmod(path, fs.FileMode(f.Mode)); err != nil {
		return err
	}
	return os.Chtimes(path, time.Time{}, f.ModTime)
}

func (f *savedFile) restoreSymlink() error {
	temp := filepath.Join(filepath.Dir(f.Path), tempPrefix(filepath.Base(f.Path))+"link")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(f.Symlink, temp); err != nil {
		return err
	}
	err := os.Lchown(temp, f.UID, f.GID)
	if err == nil || os.Geteuid() != 0 {
		mtime := unix.NsecToTimespec(f.ModTime.UnixNano())
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, temp, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = os.Rename(temp, f.Path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(f.Path))
}

// saveFile reads a file with all that is needed to put it back. An absent one is no error.
func saveFile(path string) (savedFile, error) {
	s := savedFile{Path: path, SHA256: digest(nil)}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	s.Existed, s.Mode, s.ModTime = true, uint32(info.Mode().Perm()), info.ModTime()
	s.UID, s.GID = int(stat.Uid), int(stat.Gid)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if s.Symlink, err = os.Readlink(path); err != nil {
			return s, err
		}
	case !info.Mode().IsRegular():
		return s, insecure(path, "is not a file (%v)", info.Mode())
	default:
		s.InPlace = isMounted(path) || unix.Access(filepath.Dir(path), unix.W_OK) != nil
	}
	content, err := readBounded(path)
	if err != nil && (s.Symlink == "" || !errors.Is(err, fs.ErrNotExist)) {
		return s, err
	}
	s.Content, s.SHA256 = content, digest(content)
	return s, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	if err == nil && len(data) > maxResolvConf {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxResolvConf)
	}
	return data, err
}

// isMounted says whether something is mounted on the file itself, which then can't be renamed over (rename(2), EBUSY).
func isMounted(path string) bool {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &s)
	return err == nil && s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// writeInPlace writes onto the old content first, in one call, and cuts what is left of it then: a file that was
// truncated first could be found empty. See savedFile.ours for what a crash in between leaves.
func writeInPlace(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(data))); err != nil {
		return err
	}
	return f.Sync()
}
