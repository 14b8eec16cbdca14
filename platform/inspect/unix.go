// SPDX-License-Identifier: Apache-2.0

//go:build unix

package inspect

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilot-protocol/pilot/platform"
)

func isRoot() bool { return os.Geteuid() == 0 }

func group() (Group, error) {
	g := Group{Name: platform.ControlGroup()}
	found, err := user.LookupGroup(g.Name)
	if err != nil {
		if unknown := user.UnknownGroupError(""); errors.As(err, &unknown) {
			return g, nil
		}
		return g, err
	}
	g.Exists = true
	gid, err := strconv.Atoi(found.Gid)
	if err != nil {
		return g, err
	}
	own, err := os.Getgroups()
	if err != nil {
		return g, err
	}
	g.Member = slices.Contains(own, gid) || os.Getegid() == gid
	if u, err := user.Current(); err == nil {
		if ids, err := u.GroupIds(); err == nil {
			g.Listed = slices.Contains(ids, found.Gid)
		}
	}
	return g, nil
}

// folder looks at the state folder and, where that is allowed, at the names, modes and times of its files.
func folder(path string, now time.Time) (Folder, error) {
	f := Folder{Path: path}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return f, nil
	} else if err != nil {
		return f, err
	}
	f.Exists = true
	f.Problem = platform.CheckDir(path)
	if errors.Is(f.Problem, fs.ErrPermission) {
		f.Problem = nil // nothing to say about it
	}
	if err := space(&f); err != nil {
		return f, err
	}
	f.files(now)
	return f, nil
}

func (f *Folder) files(now time.Time) {
	f.Files = true
	_ = filepath.WalkDir(f.Path, func(path string, entry fs.DirEntry, err error) error { // which returns what the function does
		if err != nil {
			f.Files = f.Files && !errors.Is(err, fs.ErrPermission)
			return nil
		}
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() {
			return nil
		}
		if strings.HasSuffix(path, ".key") && info.Mode().Perm()&0o077 != 0 {
			f.Loose = append(f.Loose, path)
		}
		if ahead := info.ModTime().Sub(now); ahead > f.Ahead {
			f.Future, f.Ahead = path, ahead
		}
		return nil
	})
}

func space(f *Folder) error {
	const readOnly = 1 // ST_RDONLY of statfs(2), and MNT_RDONLY
	var s unix.Statfs_t
	if err := unix.Statfs(f.Path, &s); err != nil {
		return err
	}
	f.Free, f.ReadOnly = s.Bavail*uint64(s.Bsize), s.Flags&readOnly != 0
	return nil
}
