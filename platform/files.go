// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// WriteFileAtomic puts data into the file at path so that after a crash at any moment, of the process or the machine,
// the file holds either all of the old content or all of the new. The file gets exactly these permissions. A symlink at
// path is replaced, not followed.
func WriteFileAtomic(path string, data []byte, perm fs.FileMode) error {
	return writeAtomic(path, data, perm, nil)
}

// writeAtomic is WriteFileAtomic with a last touch: finish may set more attributes of the new file at its temporary
// path before it takes the old one's place.
func writeAtomic(path string, data []byte, perm fs.FileMode, finish func(temp string) error) (err error) {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	removeStaleTemps(dir, base, time.Now())
	f, err := os.CreateTemp(dir, tempPrefix(base)+"*") // made 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	temp := f.Name()
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(temp)
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if finish != nil {
		if err = finish(temp); err != nil {
			return err
		}
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = replaceFile(temp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// staleTemp is the age from which a temporary file can't belong to a write that is still under way.
const staleTemp = time.Hour

func tempPrefix(base string) string { return "." + base + ".tmp-" }

// removeStaleTemps cleans up after writers that were killed. Errors don't matter: the next write tries again.
func removeStaleTemps(dir, base string, now time.Time) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix(base)) || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > staleTemp {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// insecure makes an error of ErrInsecurePath that says what is wrong with the path.
func insecure(path, format string, args ...any) error {
	return fmt.Errorf("%w: %s %s", ErrInsecurePath, path, fmt.Sprintf(format, args...))
}
