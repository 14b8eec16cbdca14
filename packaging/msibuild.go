// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// cabinet is the name of the stream that the files are in.
const cabinet = "pilot.cab"

// write makes the installer at path, with work as a folder for what lies between.
func (m msi) write(ctx context.Context, path, work string) error {
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	tables, err := m.tables()
	if err != nil {
		return err
	}
	// What differs in a file or a table is another package to Windows.
	contents := sha256.New()
	args := []string{path}
	idt := func(t table) error {
		text, err := t.text()
		if err != nil {
			return err
		}
		contents.Write([]byte(text))
		file := filepath.Join(work, t.name+".idt")
		args = append(args, "-i", file)
		return writeFile(file, []byte(text))
	}
	for _, t := range tables {
		if err := idt(t); err != nil {
			return err
		}
	}
	cab := filepath.Join(work, cabinet)
	if err := m.pack(ctx, cab, work); err != nil {
		return err
	}
	packed, err := os.ReadFile(cab)
	if err != nil {
		return err
	}
	contents.Write(packed)
	summary, err := m.summary(contents.Sum(nil))
	if err != nil {
		return err
	}
	if err := idt(summary); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := tool(ctx, "msibuild", append(args, "-a", cabinet, cab)...); err != nil {
		return err
	}
	return within(path, maxMSI)
}

// pack makes the cabinet, in which the files have the names of their keys.
func (m msi) pack(ctx context.Context, cab, work string) error {
	folder := filepath.Join(work, "files")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	args := []string{"--create", "--zip", "--nopath", cab}
	for _, f := range m.files {
		data, err := os.ReadFile(f.source)
		if err != nil {
			return err
		}
		path := filepath.Join(folder, f.id)
		if err := writeFile(path, data); err != nil {
			return err
		}
		if err := os.Chtimes(path, m.time, m.time); err != nil {
			return err
		}
		args = append(args, path)
	}
	return tool(ctx, "gcab", args...)
}

// tool runs one of Debian's programs, with the times that it writes those of UTC.
func tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C.UTF-8")
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w (apt-get install -y gcab msitools osslsigncode, if it is missing): %s", name, err, strings.TrimSpace(string(said)))
	}
	return nil
}
