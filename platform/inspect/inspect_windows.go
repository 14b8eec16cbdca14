// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"

	"github.com/pilot-protocol/pilot/platform"
)

func look(_ context.Context, q Question) Host {
	h := Host{OS: "windows", Root: windows.GetCurrentProcessToken().IsElevated()}
	h.TUN = seen(wintun())
	h.TUN.Value.Admin = h.Root
	h.Group = seen(Group{Windows: true}, nil)
	h.State = seen(folder(q.StateDir))
	h.Links = seen(links())
	h.Service.Err, h.Clock.Err, h.IPv6.Err = ErrNotHere, ErrNotHere, ErrNotHere
	h.Routes.Err, h.Resolver.Err, h.Firewall.Err = ErrNotHere, ErrNotHere, ErrNotHere
	return h
}

// wintun looks for the driver's library where the loader does: beside this program, and in the system's folder.
func wintun() (t TUN, err error) {
	t.Path = "wintun.dll"
	exe, err := os.Executable()
	if err != nil {
		return t, err
	}
	system, err := windows.GetSystemDirectory()
	if err != nil {
		return t, err
	}
	for _, dir := range []string{filepath.Dir(exe), system} {
		if _, err := os.Stat(filepath.Join(dir, t.Path)); err == nil {
			t.Path, t.Exists = filepath.Join(dir, t.Path), true
			return t, nil
		}
	}
	return t, nil
}

func folder(path string) (Folder, error) {
	f := Folder{Path: path}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return f, nil
	} else if err != nil {
		return f, err
	}
	f.Exists, f.Problem = true, platform.CheckDir(path)
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return f, err
	}
	return f, windows.GetDiskFreeSpaceEx(name, &f.Free, nil, nil)
}
