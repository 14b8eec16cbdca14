// SPDX-License-Identifier: Apache-2.0

//go:build unix

package platform

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLocalSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run/pilot.sock")
	if _, err := DialLocal(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no daemon: %v", err)
	}
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := fs.FileMode(0o600)
	if _, ok := controlGID(); ok {
		want = 0o660
	}
	if info, _ := os.Lstat(path); info.Mode().Perm() != want {
		t.Errorf("mode %v, want %v", info.Mode(), want)
	}
	if _, err := ListenLocal(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second daemon: %v", err)
	}
	client, err := DialLocal(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// The first connection is that of the second daemon's question whether anybody is there.
	for range 2 {
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		c, err := PeerCaller(server)
		if err != nil || !c.Known || c.UID != uint32(os.Geteuid()) || c.PID != int32(os.Getpid()) || !c.MayControl() {
			t.Errorf("caller %+v, %v", c, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pilot.sock")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	if _, err := DialLocal(t.Context(), path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dead daemon: %v", err)
	}
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	// Closing doesn't remove another one's socket.
	os.Remove(path)
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another one's socket is gone: %v", err)
	}
}

func TestSocketPathLength(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if _, err := ListenLocal(path); !errors.Is(err, ErrPathTooLong) {
		t.Errorf("listen: %v", err)
	}
	if _, err := DialLocal(t.Context(), path); !errors.Is(err, ErrPathTooLong) {
		t.Errorf("dial: %v", err)
	}
}

func TestSocketPath(t *testing.T) {
	if got := SocketPath(DefaultStateDir()); got != filepath.Join(runtimeDir, "pilot.sock") {
		t.Errorf("default: %s", got)
	}
	if got := SocketPath(DefaultStateDir() + "/"); got != filepath.Join(runtimeDir, "pilot.sock") {
		t.Errorf("default with a slash: %s", got)
	}
	if got := SocketPath("/tmp/x"); got != "/tmp/x/pilot.sock" {
		t.Errorf("other: %s", got)
	}
}

func TestAbuse05SquattedSocketAndRuntimeFolder(t *testing.T) {
	refused := func(t *testing.T, path string) {
		t.Helper()
		if l, err := ListenLocal(path); !errors.Is(err, ErrInsecurePath) {
			t.Errorf("listen: %v", err)
			if err == nil {
				l.Close()
			}
		}
		if c, err := DialLocal(context.Background(), path); !errors.Is(err, ErrInsecurePath) {
			t.Errorf("dial: %v", err)
			if err == nil {
				c.Close()
			}
		}
	}
	live := func(t *testing.T, path string) {
		t.Helper()
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	path := func(t *testing.T) string { return filepath.Join(t.TempDir(), "pilot.sock") }
	t.Run("regular file", func(t *testing.T) {
		p := path(t)
		os.WriteFile(p, []byte("keep me"), 0o600)
		refused(t, p)
		if data, _ := os.ReadFile(p); string(data) != "keep me" {
			t.Error("the file was touched")
		}
	})
	t.Run("folder", func(t *testing.T) {
		p := path(t)
		os.Mkdir(p, 0o700)
		refused(t, p)
	})
	t.Run("symlink to a live socket", func(t *testing.T) {
		p := path(t)
		live(t, p+".real")
		os.Symlink(p+".real", p)
		refused(t, p)
	})
	t.Run("dangling symlink", func(t *testing.T) {
		p := path(t)
		os.Symlink(p+".nowhere", p)
		refused(t, p)
	})
	t.Run("symlinked runtime folder", func(t *testing.T) {
		base := t.TempDir()
		real := filepath.Join(base, "real")
		os.Mkdir(real, 0o755)
		live(t, filepath.Join(real, "pilot.sock"))
		os.Symlink(real, filepath.Join(base, "run"))
		refused(t, filepath.Join(base, "run/pilot.sock"))
	})
	t.Run("runtime folder that others may write", func(t *testing.T) {
		p := path(t)
		live(t, p)
		os.Chmod(filepath.Dir(p), 0o777)
		refused(t, p)
	})
	t.Run("another user's", func(t *testing.T) {
		needRoot(t)
		p := path(t)
		live(t, p)
		os.Chown(p, stranger, stranger)
		refused(t, p)
		p = path(t)
		live(t, p)
		os.Chown(filepath.Dir(p), stranger, stranger)
		refused(t, p)
	})
	t.Run("served by another user", func(t *testing.T) {
		needRoot(t)
		// The socket file is root's, and the process that listens isn't: as a stranger sees it who trusts neither.
		p := path(t)
		live(t, p)
		os.Chmod(p, 0o666)
		openParents(t, p)
		os.Chown(p, 0, 0)
		if got := runAs(t, stranger, nil, "child:dial-local", p); got != "" {
			t.Errorf("a root's socket was refused: %s", got)
		}
		os.Chown(p, stranger+1, stranger+1)
		if got := runAs(t, stranger, nil, "child:dial-local", p); got != "insecure" {
			t.Errorf("another user's socket: %s", got)
		}
	})
}

// stranger is a user id that nobody has.
const stranger = 54321

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root to be another user")
	}
}

// openParents lets strangers come as far as the socket.
func openParents(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		os.Chmod(dir, info.Mode().Perm()|0o011)
	}
}

// runAs runs this test's binary as another user and returns what it prints.
func runAs(t *testing.T, uid uint32, groups []uint32, args ...string) string {
	t.Helper()
	// The binary lies in a folder that others may not enter, so they get a copy.
	dir, err := os.MkdirTemp("", "pilot-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "child")
	if err := os.WriteFile(copied, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}}
	cmd.Stderr = os.Stderr
	printed, err := cmd.Output()
	if err != nil {
		t.Fatalf("child as user %d: %v: %s", uid, err, printed)
	}
	return string(printed)
}

func TestAbuse02AnotherLocalUser(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "pilot.sock")
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	openParents(t, path)
	// The permissions of the socket keep strangers out.
	if got := runAs(t, stranger, nil, "child:dial", path); got != "permission" {
		t.Errorf("a stranger got %q", got)
	}
	// And so does the daemon, if the permissions were lost.
	os.Chmod(path, 0o666)
	answers := make(chan Caller, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(answers)
				return
			}
			c, err := PeerCaller(conn)
			if err == nil && c.MayControl() {
				io.WriteString(conn, "may")
			} else {
				io.WriteString(conn, "may not")
			}
			conn.Close()
			answers <- c
		}
	}()
	for _, tt := range []struct {
		name   string
		uid    uint32
		groups []uint32
		want   string
	}{
		{"stranger", stranger, nil, "may not"},
		{"stranger in other groups", stranger, []uint32{stranger + 1, 0}, "may not"},
		{"root", 0, nil, "may"},
	} {
		got := runAs(t, tt.uid, tt.groups, "child:dial", path)
		c := <-answers
		if got != tt.want || c.UID != tt.uid || c.GID != tt.uid || c.PID == 0 || c.PID == int32(os.Getpid()) {
			t.Errorf("%s: %q, caller %+v", tt.name, got, c)
		}
	}
	l.Close()
	for range answers {
	}
	if (Caller{}).MayControl() {
		t.Error("the zero caller may control")
	}
}

func TestSocketIsNeverWideOpen(t *testing.T) {
	// With no umask at all, the socket must not be open to others, not even between bind and chmod.
	path := filepath.Join(t.TempDir(), "pilot.sock")
	old := unix.Umask(0)
	defer unix.Umask(old)
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, _ := os.Lstat(path); info.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode %v", info.Mode())
	}
}
