// SPDX-License-Identifier: Apache-2.0

//go:build unix

package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func socketPath(stateDir string, isDefault bool) string {
	if !isDefault {
		return filepath.Join(stateDir, "pilot.sock")
	}
	return filepath.Join(runtimeDir, "pilot.sock")
}

// SecureDir makes the folder with exactly these permissions, its parents with 0755, or checks the one that is there:
// a real folder and not a symlink, owned by root or by this user, and writable by nobody else. Otherwise the error is
// ErrInsecurePath. A folder that exists keeps its permissions.
func SecureDir(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	if perm&0o022 != 0 {
		return insecure(path, "would be writable by others (%#o)", perm)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	switch err := os.Mkdir(path, perm); {
	case err == nil:
		if err := os.Chmod(path, perm); err != nil { // the umask may have taken something away
			return fmt.Errorf("make folder: %w", err)
		}
	case !errors.Is(err, fs.ErrExist):
		return fmt.Errorf("make folder: %w", err)
	}
	return checkDir(path, trusted)
}

// OwnDir refuses a folder that is not this user's.
func OwnDir(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() || owner(info) != uint32(os.Geteuid()) {
		return insecure(path, "belongs to user %d", owner(info))
	}
	return nil
}

// CheckDir looks at a folder as SecureDir does at one that exists, and makes none. The account of the system's service may
// own it too.
func CheckDir(path string) error {
	return checkDir(filepath.Clean(path), func(uid uint32) bool {
		if trusted(uid) {
			return true
		}
		account, err := user.Lookup(serviceAccount)
		return err == nil && strconv.FormatUint(uint64(uid), 10) == account.Uid
	})
}

// checkDir refuses a folder that anybody but those who are trusted could change, or that stands in a place where anybody
// could put another in its stead.
func checkDir(path string, trusted func(uid uint32) bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return insecure(path, "is a symbolic link")
	case !info.IsDir():
		return insecure(path, "is not a folder")
	case !trusted(owner(info)):
		return insecure(path, "belongs to user %d", owner(info))
	case info.Mode().Perm()&0o022 != 0:
		return insecure(path, "is writable by others (%#o)", info.Mode().Perm())
	}
	parent, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	if parent.Mode().Perm()&0o002 != 0 && parent.Mode()&fs.ModeSticky == 0 {
		return insecure(filepath.Dir(path), "is writable by everybody (%#o)", parent.Mode().Perm())
	}
	return nil
}

// Privileged says whether this process is root's, or an administrator's where the system has those.
func Privileged() bool { return os.Geteuid() == 0 }

func owner(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }

// trusted says whether a user may own what this process relies on: root, and this user.
func trusted(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }

// LockFile takes the lock at path, making the file if need be, until release is called or the process ends. When another
// process has it, the error is ErrLocked, at once. The file stays; its presence means nothing.
func LockFile(path string) (release func() error, err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			return nil, insecure(path, "is a symbolic link")
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	for {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f.Close, nil
}

func replaceFile(from, to string) error { return os.Rename(from, to) }

// syncDir makes the names in a folder durable. Some file systems can't, which is theirs to answer for.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// background detaches a child from this terminal and session.
func backgroundAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

const backgroundDir = "/"

// openLog opens a log for appending, and never through a symlink.
func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
}

// closeInherited keeps descriptors that this process was started with, and doesn't know of, from reaching its children.
// The runtime marks its own.
func closeInherited() {
	dir, err := os.Open("/dev/fd")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		var fd int
		if _, err := fmt.Sscanf(strings.TrimSpace(name), "%d", &fd); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}
