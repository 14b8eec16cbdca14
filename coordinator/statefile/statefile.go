// SPDX-License-Identifier: Apache-2.0

// Package statefile writes the coordinator's state files.
package statefile

import (
	"io/fs"
	"os"
	"path/filepath"
)

// SecureDir makes the folder.
func SecureDir(path string, perm fs.FileMode) error { return os.MkdirAll(path, perm) }

// LockFile makes the lock file.
func LockFile(path string) (func() error, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return f.Close, nil
}

// WriteFileAtomic replaces the file's content at once.
func WriteFileAtomic(path string, data []byte, perm fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
