// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAbuse05TheServiceAccount shows that the system service's account is trusted with the system's socket, which only
// root can have given to it, and with no other.
func TestAbuse05TheServiceAccount(t *testing.T) {
	inMountNamespace(t)
	const uid = stranger + 9
	users := filepath.Join(t.TempDir(), "passwd")
	os.WriteFile(users, []byte("root:x:0:0::/root:/bin/sh\npilot:x:54330:54330::/nonexistent:/usr/sbin/nologin\n"), 0o644)
	if err := unix.Mount(users, "/etc/passwd", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	for _, c := range []struct {
		path    string
		owner   int
		trusted bool
	}{
		{filepath.Join(runtimeDir, "pilot.sock"), uid, true},
		{filepath.Join(runtimeDir, "pilot.sock"), uid + 1, false},
		{filepath.Join(elsewhere, "pilot.sock"), uid, false},
	} {
		os.MkdirAll(filepath.Dir(c.path), 0o755)
		l, err := net.Listen("unix", c.path)
		if err != nil {
			t.Fatal(err)
		}
		os.Chown(c.path, c.owner, c.owner)
		os.Chown(filepath.Dir(c.path), c.owner, c.owner)
		conn, err := DialLocal(context.Background(), c.path)
		if trusted := err == nil; trusted != c.trusted || !trusted && !errors.Is(err, ErrInsecurePath) {
			t.Errorf("%s of user %d: %v", c.path, c.owner, err)
		}
		if err == nil {
			conn.Close()
		}
		l.Close()
	}
}
