// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Privileged says whether this process is root's, or an administrator's where the system has those.
func Privileged() bool { return windows.GetCurrentProcessToken().IsElevated() }

// SecureDir makes the folder, open to SYSTEM, administrators and this user only, or checks the one that is there: no
// link or junction, and owned by one of these. Otherwise the error is ErrInsecurePath. perm has no meaning here.
func SecureDir(path string, _ fs.FileMode) error {
	path = filepath.Clean(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	sid, err := ownSID()
	if err != nil {
		return err
	}
	sd, err := windows.SecurityDescriptorFromString(folderSDDL(sid.String()))
	if err != nil {
		return fmt.Errorf("make folder %s: %w", path, err)
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return fmt.Errorf("make folder %s: %w", path, err)
	}
	attributes := windows.SecurityAttributes{Length: uint32(unsafe.Sizeof(windows.SecurityAttributes{})), SecurityDescriptor: sd}
	err = windows.CreateDirectory(name, &attributes)
	if err == nil {
		return nil
	}
	if !errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return fmt.Errorf("make folder %s: %w", path, err)
	}
	return checkDir(path)
}

// OwnDir refuses a folder that is not this user's, SYSTEM's or the administrators'.
func OwnDir(path string) error { return checkDir(filepath.Clean(path)) }

// CheckDir looks at a folder as SecureDir does at one that exists, and makes none.
func CheckDir(path string) error { return checkDir(filepath.Clean(path)) }

func checkDir(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() || info.Mode()&(fs.ModeSymlink|fs.ModeIrregular) != 0 {
		return insecure(path, "is not a plain folder")
	}
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return insecure(path, "has no readable owner: %v", err)
	}
	if err := checkOwner(sd); err != nil {
		return insecure(path, "%v", err)
	}
	return nil
}

// LockFile takes the lock at path, making the file if need be, until release is called or the process ends. When another
// process has it, the error is ErrLocked, at once. The file stays; its presence means nothing.
func LockFile(path string) (release func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	if err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, new(windows.Overlapped)); err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
			return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f.Close, nil
}

func replaceFile(from, to string) error {
	f, err := windows.UTF16PtrFromString(from)
	if err != nil {
		return err
	}
	t, err := windows.UTF16PtrFromString(to)
	if err != nil {
		return err
	}
	return windows.MoveFileEx(f, t, windows.MOVEFILE_REPLACE_EXISTING|windows.MOVEFILE_WRITE_THROUGH)
}

// syncDir has nothing to do: the rename was written through.
func syncDir(string) error { return nil }

func backgroundAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		HideWindow:    true,
		CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS,
	}
}

// backgroundDir empty means the working folder; programs on Windows are told absolute paths too.
const backgroundDir = ""

func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// closeInherited has nothing to do: a child inherits only the handles that it is given.
func closeInherited() {}
