// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAbuse02TheGroup shows that the group pilot, and only that, opens the socket to others.
func TestAbuse02TheGroup(t *testing.T) {
	inMountNamespace(t)
	const gid = stranger + 7
	groups := filepath.Join(t.TempDir(), "group")
	os.WriteFile(groups, []byte("root:x:0:\npilot:x:54328:\n"), 0o644)
	if err := unix.Mount(groups, "/etc/group", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pilot.sock")
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	openParents(t, path)
	info, _ := os.Lstat(path)
	if got := info.Sys().(*syscall.Stat_t).Gid; got != gid || info.Mode().Perm() != 0o660 {
		t.Errorf("group %d, mode %v", got, info.Mode())
	}
	if got := runAs(t, stranger, []uint32{gid + 1}, "child:dial", path); got != "permission" {
		t.Errorf("a stranger got %q", got)
	}
	printed := make(chan string, 1)
	go func() { printed <- runAs(t, stranger, []uint32{gid}, "child:dial", path) }()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := PeerCaller(conn)
	if err != nil || c.UID != stranger || !c.MayControl() {
		t.Errorf("member: %+v, %v", c, err)
	}
	conn.Close()
	<-printed
}
