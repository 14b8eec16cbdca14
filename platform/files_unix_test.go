// SPDX-License-Identifier: Apache-2.0

//go:build unix

package platform

import (
	"bufio"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func isSessionLeader() bool {
	sid, err := unix.Getsid(0)
	return err == nil && sid == os.Getpid()
}

func startChild(t *testing.T, args ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

func TestKillDuringWriteFileAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 50 {
		cmd, out := startChild(t, "child:write", path)
		if line, err := out.ReadString('\n'); line != "ready\n" {
			t.Fatalf("child says %q, %v", line, err)
		}
		// The moment of death is random: after some number of looks at the file, each of which must find it whole.
		for range rng.IntN(30) {
			checkWhole(t, path)
		}
		cmd.Process.Kill()
		cmd.Wait()
		checkWhole(t, path)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

func checkWhole(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = wholePattern(data)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestWriteFileAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, perm := range []fs.FileMode{0o600, 0o644, 0o666} {
		if err := WriteFileAtomic(path, []byte(perm.String()), perm); err != nil {
			t.Fatal(err)
		}
		info, _ := os.Stat(path)
		if data, _ := os.ReadFile(path); info.Mode().Perm() != perm || string(data) != perm.String() {
			t.Errorf("%v: mode %v, content %q", perm, info.Mode(), data)
		}
	}
	// A symlink is replaced, not followed.
	target := filepath.Join(dir, "target")
	os.WriteFile(target, []byte("untouched"), 0o600)
	link := filepath.Join(dir, "link")
	os.Symlink(target, link)
	if err := WriteFileAtomic(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(target); string(data) != "untouched" {
		t.Errorf("the symlink's target holds %q", data)
	}
	// An error leaves the old content and no temporary file.
	busy := filepath.Join(dir, "busy")
	os.Mkdir(busy, 0o700)
	os.WriteFile(filepath.Join(busy, "x"), nil, 0o600)
	if err := WriteFileAtomic(busy, []byte("new"), 0o600); err == nil {
		t.Error("a folder was replaced")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestStaleTemporaryFilesGo(t *testing.T) {
	dir := t.TempDir()
	old, fresh, other := filepath.Join(dir, ".f.tmp-1"), filepath.Join(dir, ".f.tmp-2"), filepath.Join(dir, ".g.tmp-1")
	for _, p := range []string{old, fresh, other} {
		os.WriteFile(p, nil, 0o600)
	}
	long := time.Now().Add(-2 * staleTemp)
	os.Chtimes(old, long, long)
	os.Chtimes(other, long, long)
	if err := WriteFileAtomic(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the stale one is still there")
	}
	for _, p := range []string{fresh, other} {
		if _, err := os.Stat(p); err != nil {
			t.Error(err)
		}
	}
}

func TestSecureDir(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "a/b/state")
	for range 2 {
		if err := SecureDir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", info.Mode())
	}
	if err := SecureDir(filepath.Join(base, "shared"), 0o777); !errors.Is(err, ErrInsecurePath) {
		t.Errorf("0777: %v", err)
	}
	for _, perm := range []fs.FileMode{0o770, 0o702, 0o1777} {
		os.Chmod(path, perm)
		if err := SecureDir(path, 0o700); !errors.Is(err, ErrInsecurePath) {
			t.Errorf("%v: %v", perm, err)
		}
	}
	file := filepath.Join(base, "file")
	os.WriteFile(file, nil, 0o600)
	if err := SecureDir(file, 0o700); !errors.Is(err, ErrInsecurePath) {
		t.Errorf("file: %v", err)
	}
	open := filepath.Join(base, "open")
	os.Mkdir(open, 0o700)
	if err := SecureDir(filepath.Join(open, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	os.Chmod(open, 0o777)
	if err := SecureDir(filepath.Join(open, "state"), 0o700); !errors.Is(err, ErrInsecurePath) {
		t.Errorf("inside a folder that all may write: %v", err)
	}
}

func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	cmd := exec.Command(os.Args[0], "child:lock", path)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("child says %q, %v", line, err)
	}
	if _, err := LockFile(path); !errors.Is(err, ErrLocked) {
		t.Errorf("held by another process: %v", err)
	}
	cmd.Process.Kill() // -9 frees it
	cmd.Wait()
	in.Close()
	release, err := LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockFile(path); !errors.Is(err, ErrLocked) {
		t.Errorf("held by this process: %v", err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	again, err := LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	again()
	link := path + ".link"
	os.Symlink(path, link)
	if _, err := LockFile(link); !errors.Is(err, ErrInsecurePath) {
		t.Errorf("symlink: %v", err)
	}
}
