// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// fields of a state file, each as it was written.
type fields map[string]json.RawMessage

// step takes a file from one version to the next.
type step func(fields) error

// steps are those of a file, from version 1 on. They are never changed once a version was released: they are about files
// that exist. All files have the same version, so that one that was forgotten shows; most steps have nothing to do.
func steps(name string) [stateVersion - 1]step {
	nothing := func(fields) error { return nil }
	all := [stateVersion - 1]step{nothing, nothing, nothing}
	if name == nodeFile {
		all[2-1] = kernelOnly
	}
	return all
}

// kernelOnly is from version 2 to 3: until then an interface of the kernel's was the only way for packets to programs.
func kernelOnly(f fields) error {
	if f["authority"] != nil && f["tun"] == nil {
		f["tun"] = json.RawMessage(strconv.Quote(localapi.TUNKernel))
	}
	return nil
}

var (
	errTooNew    = errors.New("a newer pilot wrote it")
	errNoVersion = errors.New("it has no version")
)

// migrate turns what is in a file of any earlier version into what this version writes. What is of this version already is
// returned as it is. Nothing in it is judged but what the steps need: the reader does that.
func migrate(name string, raw []byte) ([]byte, error) {
	var f fields
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	var version int
	if err := json.Unmarshal(f["version"], &version); err != nil || version < 1 {
		return nil, errNoVersion
	}
	if version > stateVersion {
		return nil, fmt.Errorf("%w: it has version %d; this pilot knows up to %d", errTooNew, version, stateVersion)
	}
	if version == stateVersion {
		return raw, nil
	}
	all := steps(name)
	for i, step := range all[version-1:] {
		if err := step(f); err != nil {
			return nil, fmt.Errorf("from version %d: %w", version+i, err)
		}
	}
	f["version"] = json.RawMessage(strconv.Itoa(stateVersion))
	out, err := json.MarshalIndent(f, "", " ")
	return append(out, '\n'), err
}

// contentOf returns a new value of what a file holds.
func contentOf(name string) any {
	switch name {
	case agentFile:
		return new(savedAgent)
	case tunnelFile:
		return new(savedTunnels)
	case proxyFile:
		return new(savedPassword)
	}
	return new(savedNode)
}

// strict decodes a file of this version; a field that is not known is an error.
func strict(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// bakSuffix is of the file as it was, until the new one is on the disk.
const bakSuffix = ".bak"

// migrateAll brings the files of the folder to this version. One that can't be is left as it is, and so are those after it.
func (f folder) migrateAll() error {
	for _, name := range []string{agentFile, tunnelFile, proxyFile, nodeFile} {
		if err := f.migrateFile(name, platform.WriteFileAtomic); err != nil {
			return err
		}
	}
	return nil
}

// migrateFile keeps the old file beside the new one until that was written and synced. Wherever it is cut short, the file is
// whole, the old or the new one, and it can be done again.
func (f folder) migrateFile(name string, write func(path string, data []byte, perm fs.FileMode) error) error {
	path := filepath.Join(f.dir, name)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return unreadable(path, err)
	}
	now, err := migrate(name, raw)
	if err == nil {
		err = strict(now, contentOf(name)) // before anything is written
	}
	if err != nil {
		return damaged(path, err)
	}
	if !bytes.Equal(now, raw) {
		if err := write(path+bakSuffix, raw, 0o600); err != nil {
			return unwritten(err)
		}
		if err := write(path, now, 0o600); err != nil {
			return unwritten(err)
		}
	}
	if err := os.Remove(path + bakSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unwritten(err)
	}
	return nil
}
