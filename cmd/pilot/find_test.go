// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// The caller's own daemon is found first, then the system's; a user who has neither is to have one of their own.
func TestFindDaemon(t *testing.T) {
	for _, c := range []struct {
		name         string
		root         bool  // the caller has no own
		own, system  error // of dialling
		ownFolder    bool
		toStart      bool
		wantTheOwner bool
	}{
		{name: "root", root: true, system: fs.ErrNotExist},
		{name: "both answer", wantTheOwner: true},
		{name: "only the system's answers", own: fs.ErrNotExist, ownFolder: true},
		{name: "only the system's answers, to up", own: fs.ErrNotExist, toStart: true},
		{name: "none", own: fs.ErrNotExist, system: fs.ErrNotExist, wantTheOwner: true},
		{name: "the system's is for others", own: fs.ErrNotExist, system: fs.ErrPermission},
		{name: "the system's is for others, and one of our own was there", own: fs.ErrNotExist, system: fs.ErrPermission, ownFolder: true, wantTheOwner: true},
		{name: "the system's is for others, to up", own: fs.ErrNotExist, system: fs.ErrPermission, toStart: true, wantTheOwner: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			sys := &fakeSystem{dir: filepath.Join(dir, "system"), own: filepath.Join(dir, "own")}
			if c.ownFolder {
				if err := os.Mkdir(sys.own, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			sys.dial = func(_ context.Context, socket string) (net.Conn, error) {
				err := c.system
				if socket == sys.SocketPath(sys.own) {
					err = c.own
				}
				if err != nil {
					return nil, err
				}
				here, there := net.Pipe()
				there.Close()
				return here, nil
			}
			want := sys.dir
			if c.wantTheOwner {
				want = sys.own
			}
			if c.root {
				sys.own = ""
			}
			p := &program{sys: sys}
			if got := p.findDaemon(t.Context(), c.toStart); got != want {
				t.Errorf("%s instead of %s", got, want)
			}
		})
	}
}
