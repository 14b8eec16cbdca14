// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// system is a folder that stands for a host's file system, without a bus and without programs.
type system struct{ root, state, path string }

func newSystem(t *testing.T) system {
	t.Helper()
	s := system{root: t.TempDir(), state: t.TempDir()}
	if err := os.Mkdir(filepath.Join(s.root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.path = filepath.Join(s.root, "etc/resolv.conf")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(s.root, "no-bus"))
	t.Setenv("PATH", filepath.Join(s.root, "bin"))
	return s
}

func (s system) open(t *testing.T, mode string) DNS {
	t.Helper()
	d, err := OpenDNS(Options{StateDir: s.state, Root: s.root})
	if err != nil {
		t.Fatal(err)
	}
	if d.Mode() != mode {
		t.Fatalf("mode %s, want %s", d.Mode(), mode)
	}
	return d
}

func (s system) write(t *testing.T, content string) {
	t.Helper()
	if err := os.WriteFile(s.path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s system) read(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (s system) checkClean(t *testing.T) {
	t.Helper()
	for _, dir := range []string{s.state, filepath.Join(s.root, "etc")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "resolv.conf" {
				t.Errorf("left behind: %s", e.Name())
			}
		}
	}
}

const theirs = "# by hand\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch corp.example\noptions ndots:2\n"
const oursOfTheirs = resolvMarker + "\n# Other names: 192.0.2.1\n# Other names: 192.0.2.2\nnameserver fd5c:1:2::53\nsearch pilot.internal corp.example\noptions ndots:2\n"

type fileFacts struct {
	Content, Link string
	Mode          fs.FileMode
	UID, GID      uint32
	ModTime       int64
}

func facts(t *testing.T, path string) fileFacts {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	f := fileFacts{Mode: info.Mode(), UID: stat.Uid, GID: stat.Gid, ModTime: info.ModTime().UnixNano()}
	f.Link, _ = os.Readlink(path)
	data, _ := os.ReadFile(path)
	f.Content = string(data)
	return f
}

func TestFileIsPutBackExactly(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			s := newSystem(t)
			s.write(t, theirs)
			os.Chmod(s.path, 0o640)
			if os.Geteuid() == 0 {
				os.Chown(s.path, 12, 34)
			}
			os.Chtimes(s.path, time.Time{}, time.Unix(1234567890, 987654321))
			before := facts(t, s.path)
			d := s.open(t, ModeFile)
			if got := facts(t, s.path); got != before {
				t.Fatal("changed before Set")
			}
			for range 2 {
				if err := d.Set(testConfig); err != nil {
					t.Fatal(err)
				}
				if got := s.read(t); got != oursOfTheirs {
					t.Fatalf("after Set:\n%s", got)
				}
			}
			if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1", "192.0.2.2")) {
				t.Errorf("upstreams %v", got)
			}
			if changed, err := d.Refresh(); changed || err != nil {
				t.Errorf("Refresh: %v, %v", changed, err)
			}
			if killed {
				if err := RestoreDNS(s.state, nil); err != nil {
					t.Fatal(err)
				}
			} else if err := d.Restore(); err != nil {
				t.Fatal(err)
			}
			if got := facts(t, s.path); got != before {
				t.Errorf("after Restore %+v\nwant %+v", got, before)
			}
			s.checkClean(t)
			if err := RestoreDNS(s.state, nil); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

func TestStartAfterAKillFindsTheFormerResolvers(t *testing.T) {
	s := newSystem(t)
	s.write(t, theirs)
	if err := s.open(t, ModeFile).Set(testConfig); err != nil {
		t.Fatal(err)
	}
	d := s.open(t, ModeFile)
	if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1", "192.0.2.2")) {
		t.Errorf("upstreams %v", got)
	}
	if got := s.read(t); got != theirs {
		t.Errorf("file:\n%s", got)
	}
}

func TestSymlinkIsPutBack(t *testing.T) {
	s := newSystem(t)
	target := filepath.Join(s.root, "run-resolv.conf")
	os.WriteFile(target, []byte(theirs), 0o644)
	if err := os.Symlink("../run-resolv.conf", s.path); err != nil {
		t.Fatal(err)
	}
	when := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 1234567890}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, s.path, when, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
	before := facts(t, s.path)
	d := s.open(t, ModeFile)
	if err := d.Set(testConfig); err != nil {
		t.Fatal(err)
	}
	if got := facts(t, s.path); got.Link != "" || got.Content != oursOfTheirs {
		t.Fatalf("after Set: %+v", got)
	}
	// Whoever maintains the target goes on.
	os.WriteFile(target, []byte(strings.Replace(theirs, "192.0.2.2", "192.0.2.77", 1)), 0o644)
	if changed, err := d.Refresh(); !changed || err != nil {
		t.Errorf("Refresh: %v, %v", changed, err)
	}
	if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1", "192.0.2.77")) {
		t.Errorf("upstreams %v", got)
	}
	os.WriteFile(target, []byte(theirs), 0o644)
	if err := d.Restore(); err != nil {
		t.Fatal(err)
	}
	if got := facts(t, s.path); got != before {
		t.Errorf("after Restore %+v\nwant %+v", got, before)
	}
	s.checkClean(t)
}

func TestAbsentFileIsAbsentAgain(t *testing.T) {
	s := newSystem(t)
	d := s.open(t, ModeFile)
	if err := d.Set(testConfig); err != nil {
		t.Fatal(err)
	}
	if got := d.Upstreams(); !slices.Equal(got, ports("127.0.0.1")) { // as resolv.conf(5) has it
		t.Errorf("upstreams %v", d.Upstreams())
	}
	if err := d.Restore(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
	s.checkClean(t)
}

func TestAnotherProgramsRewrite(t *testing.T) {
	const dhcp = "# Generated by NetworkManager\nnameserver 198.51.100.1\n"
	set := func(t *testing.T) (system, DNS) {
		s := newSystem(t)
		s.write(t, theirs)
		d := s.open(t, ModeFile)
		if err := d.Set(testConfig); err != nil {
			t.Fatal(err)
		}
		s.write(t, dhcp)
		return s, d
	}
	t.Run("is left alone", func(t *testing.T) {
		s, d := set(t)
		if err := d.Restore(); err != nil || s.read(t) != dhcp {
			t.Errorf("%v, file:\n%s", err, s.read(t))
		}
		s.checkClean(t)
	})
	t.Run("is left alone after a kill", func(t *testing.T) {
		s, _ := set(t)
		if err := RestoreDNS(s.state, nil); err != nil || s.read(t) != dhcp {
			t.Errorf("%v, file:\n%s", err, s.read(t))
		}
		s.checkClean(t)
	})
	t.Run("is taken over and put back", func(t *testing.T) {
		s, d := set(t)
		if changed, err := d.Refresh(); !changed || err != nil {
			t.Fatalf("Refresh: %v, %v", changed, err)
		}
		if got := parseResolvConf([]byte(s.read(t))).Nameservers; len(got) != 1 || got[0] != testConfig.Server {
			t.Errorf("nameservers %v", got)
		}
		if got := d.Upstreams(); !slices.Equal(got, ports("198.51.100.1")) {
			t.Errorf("upstreams %v", got)
		}
		if err := d.Restore(); err != nil || s.read(t) != dhcp {
			t.Errorf("%v, file:\n%s", err, s.read(t))
		}
		s.checkClean(t)
	})
	t.Run("with ours still in it", func(t *testing.T) {
		s, d := set(t)
		s.write(t, dhcp+"nameserver fd5c:1:2::53\n")
		if changed, err := d.Refresh(); !changed || err != nil {
			t.Fatalf("Refresh: %v, %v", changed, err)
		}
		if err := d.Restore(); err != nil || s.read(t) != theirs {
			t.Errorf("%v, file:\n%s", err, s.read(t))
		}
	})
}

// A file that nobody has touched for a while is known by its stamp. One that was written just now may be written again
// without another stamp, so it is read.
func TestUntouchedFileIsNotReadAgain(t *testing.T) {
	s := newSystem(t)
	target := filepath.Join(s.root, "run-resolv.conf")
	os.WriteFile(target, []byte(theirs), 0o644)
	if err := os.Symlink("../run-resolv.conf", s.path); err != nil {
		t.Fatal(err)
	}
	d, ok := s.open(t, ModeFile).(*fittingDNS).way.(*fileDNS)
	if !ok {
		t.Fatal("no *fileDNS")
	}
	refresh := func(what string, want bool) {
		t.Helper()
		if changed, err := d.Refresh(); changed != want || err != nil {
			t.Errorf("%s: Refresh: %v, %v", what, changed, err)
		}
	}
	if err := d.Set(testConfig); err != nil {
		t.Fatal(err)
	}
	refresh("just written", false)
	if d.seen != (fileStamps{}) {
		t.Error("the stamp of a file that was written just now counts")
	}
	same := strings.Replace(oursOfTheirs, "search", "SEARCH", 1)
	if same == oursOfTheirs {
		t.Fatal("nothing to replace")
	}
	s.write(t, same)
	refresh("written at once, the same size", true)
	d.now = func() time.Time { return time.Now().Add(stampSettle) }
	refresh("untouched", false)
	if d.seen == (fileStamps{}) {
		t.Error("the stamp of an untouched file doesn't count")
	}
	refresh("known", false)
	os.WriteFile(target, []byte(theirs+"nameserver 192.0.2.9\n"), 0o644)
	refresh("behind the symlink", true)
	refresh("untouched", false)
	s.write(t, theirs)
	refresh("in place", true)
	refresh("untouched", false)
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	refresh("removed", true)
	if err := d.Restore(); err != nil {
		t.Fatal(err)
	}
}

// inMountNamespace lets the test mount without anybody noticing; its thread ends with the test.
func inMountNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root to mount")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("make mounts private: %v", err)
	}
}

func TestBindMountIsRewrittenInPlace(t *testing.T) {
	inMountNamespace(t)
	s := newSystem(t)
	s.write(t, "")
	source := filepath.Join(s.root, "mounted")
	long := theirs + strings.Repeat("# padding\n", 50)
	os.WriteFile(source, []byte(long), 0o644)
	if err := unix.Mount(source, s.path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(s.path, unix.MNT_DETACH)
	before := facts(t, s.path)
	d := s.open(t, ModeFile)
	if err := d.Set(testConfig); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(source); string(got) != oursOfTheirs {
		t.Errorf("mounted file:\n%s", got)
	}
	if err := RestoreDNS(s.state, nil); err != nil {
		t.Fatal(err)
	}
	if got := facts(t, s.path); got != before {
		t.Errorf("after Restore %+v\nwant %+v", got, before)
	}
	s.checkClean(t)

	// A kernel or a mount that hides what it is: the rename's error tells.
	hidden, err := newFileDNS(s.path, s.state, quiet)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := saveFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	saved.InPlace, saved.Written = false, []byte("nameserver fd5c:1:2::53\n")
	if err := hidden.writeLocked(&dnsRecord{Mode: ModeFile, Server: testConfig.Server, File: &saved}); err != nil {
		t.Fatal(err)
	}
	if r, err := loadDNSRecord(s.state); err != nil || !r.File.InPlace {
		t.Errorf("the record doesn't say that it is in place: %v", err)
	}

	if err := unix.Mount("", s.path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s.state = t.TempDir()
	d = s.open(t, ModeNone)
	if err := d.Set(testConfig); !errors.Is(err, ErrDNSUnavailable) {
		t.Errorf("read-only: %v", err)
	}
	if changed, err := d.Refresh(); changed || !errors.Is(err, ErrDNSUnavailable) {
		t.Errorf("read-only, later: %v, %v", changed, err)
	}
	if err := unix.Mount("", s.path, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if changed, err := d.Refresh(); !changed || err != nil || d.Mode() != ModeFile {
		t.Errorf("writable again: %v, %v, mode %s", changed, err, d.Mode())
	}
	if err := d.Restore(); err != nil {
		t.Error(err)
	}
}

func TestInterruptedWriteInPlace(t *testing.T) {
	s := newSystem(t)
	for name, original := range map[string]string{"longer": theirs + strings.Repeat("# padding\n", 50), "shorter": "nameserver 192.0.2.1\n", "empty": ""} {
		written := parseResolvConf([]byte(original)).render(testConfig)
		f := &savedFile{Path: s.path, Existed: true, Content: []byte(original), SHA256: digest([]byte(original)), Mode: 0o644,
			UID: os.Geteuid(), GID: os.Getegid(), ModTime: time.Unix(1e9, 0), InPlace: true, Written: written}
		for moment, content := range map[string][]byte{
			"before": []byte(original), "during Set": overlaid(written, []byte(original)), "after Set": written,
			"during Restore": overlaid([]byte(original), written),
		} {
			s.write(t, string(content))
			r := &dnsRecord{Mode: ModeFile, Server: testConfig.Server, File: f}
			if err := r.save(s.state); err != nil {
				t.Fatal(err)
			}
			if err := RestoreDNS(s.state, nil); err != nil {
				t.Fatal(err)
			}
			if got := s.read(t); got != original {
				t.Errorf("%s, %s: file is %q", name, moment, got)
			}
		}
	}
}

func TestResolvConfThatIsNoFile(t *testing.T) {
	s := newSystem(t)
	if err := unix.Mkfifo(s.path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDNS(Options{StateDir: s.state, Root: s.root}); !errors.Is(err, ErrInsecurePath) {
		t.Errorf("fifo: %v", err)
	}
}

// fakeResolvconf keeps entries in a folder and composes resolv.conf out of them, as the real ones do.
const fakeResolvconf = `#!/bin/sh
# %s
PATH=/usr/bin:/bin
cd %s || exit 1
echo "$@" >> calls
case $1 in
-a) cat > "entries/$2" ;;
-d) rm -f "entries/$2" ;;
-l) cat entries/* ; exit ;;
esac
{ echo "# Generated by resolvconf"; if [ -e "entries/%[3]s" ]; then cat "entries/%[3]s"; else cat entries/*; fi; } > etc/resolv.conf
`

func TestResolvconfProgram(t *testing.T) {
	for kind, entry := range map[string]string{ResolvconfOpenresolv: "lo", ResolvconfDebian: "tun.lo"} {
		t.Run(kind, func(t *testing.T) {
			s := newSystem(t)
			for _, dir := range []string{"bin", "entries", "run/resolvconf"} {
				os.MkdirAll(filepath.Join(s.root, dir), 0o755)
			}
			if err := os.Symlink("../../entries", filepath.Join(s.root, "run/resolvconf/interface")); err != nil {
				t.Fatal(err)
			}
			script := fmt.Sprintf(fakeResolvconf, kind, s.root, entry)
			os.WriteFile(filepath.Join(s.root, "bin/resolvconf"), []byte(script), 0o755)
			dhcp := filepath.Join(s.root, "entries/eth0.dhcp")
			os.WriteFile(dhcp, []byte("nameserver 192.0.2.1\n"), 0o644)
			s.write(t, "# Generated by resolvconf\nnameserver 192.0.2.1\n")
			before := s.read(t)

			d := s.open(t, ModeResolvconf)
			if err := d.Set(testConfig); err != nil {
				t.Fatal(err)
			}
			rc := parseResolvConf([]byte(s.read(t)))
			if len(slices.Compact(rc.Nameservers)) != 1 || rc.Nameservers[0] != testConfig.Server || !slices.Equal(rc.Search, testConfig.Search) {
				t.Errorf("resolv.conf:\n%s", s.read(t))
			}
			if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1")) {
				t.Errorf("upstreams %v", got)
			}
			os.WriteFile(dhcp, []byte("nameserver 198.51.100.1\n"), 0o644)
			if changed, err := d.Refresh(); !changed || err != nil {
				t.Errorf("Refresh: %v, %v", changed, err)
			}
			if got := d.Upstreams(); !slices.Equal(got, ports("198.51.100.1")) {
				t.Errorf("upstreams after a change %v", got)
			}
			if changed, err := d.Refresh(); changed || err != nil {
				t.Errorf("second Refresh: %v, %v", changed, err)
			}
			os.WriteFile(dhcp, []byte("nameserver 192.0.2.1\n"), 0o644)
			if err := RestoreDNS(s.state, nil); err != nil {
				t.Fatal(err)
			}
			if got := s.read(t); got != before {
				t.Errorf("after RestoreDNS:\n%s", got)
			}
			calls, _ := os.ReadFile(filepath.Join(s.root, "calls"))
			add := "-a " + entry
			if kind == ResolvconfOpenresolv {
				add += " -m 0 -x"
			}
			if !strings.HasPrefix(string(calls), add+"\n") {
				t.Errorf("calls:\n%s", calls)
			}
			s.checkClean(t)
		})
	}
}

func TestLookAround(t *testing.T) {
	s := newSystem(t)
	s.write(t, theirs)
	if e := lookAround(s.path, nil); !bytes.Equal(e.ResolvConf, []byte(theirs)) || e.Symlink != "" || e.BindMount || e.ReadOnly || e.BusNames != nil || e.Resolvconf != "" {
		t.Errorf("plain file: %+v", e)
	}
	os.Rename(s.path, s.path+".real")
	os.Symlink("resolv.conf.real", s.path)
	if e := lookAround(s.path, nil); !bytes.Equal(e.ResolvConf, []byte(theirs)) || e.Symlink != "resolv.conf.real" || e.ReadOnly {
		t.Errorf("symlink: %+v", e)
	}
}
