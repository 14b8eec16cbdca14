// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// archived makes the archive for macOS from small files and unpacks it.
func archived(t *testing.T) string {
	t.Helper()
	t.Chdir("..") // where it is run
	out := t.TempDir()
	v, err := parseVersion("v1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	s := system{"darwin", "arm64"}
	r := release{out: out, version: v, systems: []system{s}, time: time.Unix(1700000000, 0)}
	docs := filepath.Join(out, "docs")
	for _, path := range []string{r.binary(s), filepath.Join(docs, "man", "pilot.1.gz"), filepath.Join(docs, "man", "pilot-up.1.gz"),
		filepath.Join(docs, "pilot.bash"), filepath.Join(docs, "pilot.fish"), filepath.Join(docs, "_pilot")} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(path, []byte("#!/bin/sh\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.archive(s, docs); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(r.file(s, ".tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return filepath.Join(folder, "pilot_1.0.0_darwin_arm64")
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(folder, h.Name)
		data, err := io.ReadAll(archive)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err == nil {
			err = os.WriteFile(path, data, fs.FileMode(h.Mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestMacOSArchiveInstallsAndRemovesItself(t *testing.T) {
	need(t, "sh")
	folder, root := archived(t), t.TempDir()
	tree := func() []string {
		var files []string
		if err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				files = append(files, path)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return files
	}
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(folder, args[0]), args[1:]...)
		cmd.Env = append(os.Environ(), "DESTDIR="+root)
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, said)
		}
	}
	state := filepath.Join(root, "Library", "Application Support", "pilot")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "agent.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kept := tree()
	run("install.sh")
	want := []string{
		"Library/Application Support/pilot/agent.key", "Library/LaunchDaemons/com.pilot-protocol.pilot.plist", "usr/local/bin/pilot",
		"usr/local/etc/bash_completion.d/pilot", "usr/local/share/fish/vendor_completions.d/pilot.fish",
		"usr/local/share/man/man1/pilot-up.1.gz", "usr/local/share/man/man1/pilot.1.gz", "usr/local/share/zsh/site-functions/_pilot",
	}
	if got := tree(); !slices.Equal(got, want) {
		t.Errorf("installed\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if info, err := os.Stat(filepath.Join(root, "usr/local/bin/pilot")); err != nil || info.Mode() != 0o755 {
		t.Errorf("the program: %v, %v", info, err)
	}
	run("install.sh") // an upgrade
	if got := tree(); !slices.Equal(got, want) {
		t.Errorf("after an upgrade\n%s", strings.Join(got, "\n"))
	}
	run("uninstall.sh")
	if got := tree(); !slices.Equal(got, kept) {
		t.Errorf("after the removal\n%s", strings.Join(got, "\n"))
	}
	run("uninstall.sh", "--purge")
	if got := tree(); len(got) > 0 {
		t.Errorf("left behind\n%s", strings.Join(got, "\n"))
	}
}
