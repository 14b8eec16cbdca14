// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAbuse06BackgroundProcessGetsNoSecrets looks for secrets of the shell in all that a background process inherits.
func TestAbuse06BackgroundProcessGetsNoSecrets(t *testing.T) {
	dir := t.TempDir()
	const secret = "s3cr3t-marker"
	for _, name := range []string{"PILOT_INVITE", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "PATHSECRET", "SSH_AUTH_SOCK"} {
		t.Setenv(name, secret)
	}
	t.Setenv("HTTPS_PROXY", "http://user:"+secret+"@proxy:3128")
	t.Setenv("PILOT_STATE", dir)
	// A descriptor that the shell left open, without the mark that closes it.
	leak, err := os.Create(filepath.Join(dir, secret))
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	fd, err := unix.Dup(int(leak.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	dump, log := filepath.Join(dir, "dump"), filepath.Join(dir, "log")
	pid, err := StartBackground(os.Args[0], []string{"child:dump", dump}, log)
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if state, err := p.Wait(); err != nil || !state.Success() {
		t.Fatalf("child: %v, %v", state, err)
	}
	data, err := os.ReadFile(dump)
	if err != nil {
		t.Fatal(err)
	}
	got := string(data)
	if strings.Contains(got, secret) {
		t.Errorf("the child has a secret:\n%s", got)
	}
	for _, want := range []string{"env PILOT_STATE=" + dir, "dir /\n", "session true\n", "fd 0 /dev/null\n", "fd 1 " + log + "\n", "fd 2 " + log + "\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if data, _ := os.ReadFile(log); string(data) != "hello log\n" {
		t.Errorf("log %q", data)
	}
	if info, _ := os.Stat(log); info.Mode().Perm() != 0o600 {
		t.Errorf("log's mode %v", info.Mode())
	}
}

func TestBackgroundErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := StartBackground(filepath.Join(dir, "absent"), nil, filepath.Join(dir, "log")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
	os.Symlink("/dev/null", filepath.Join(dir, "link"))
	if _, err := StartBackground(os.Args[0], nil, filepath.Join(dir, "link")); err == nil {
		t.Error("a log was written through a symlink")
	}
}

func TestBackgroundEnvironment(t *testing.T) {
	in := []string{"PATH=/bin", "LC_ALL=C", "TOKEN=x", "https_proxy=http://p:1", "HTTP_PROXY=http://u:p@p:1", "PATHS=x", "home=/h", "=x", "x",
		"ALL_PROXY=http://p:1", "all_proxy=socks5://u:p@p:1", "PILOT_PROXY_AUTH_FILE=/f"}
	want := []string{"PATH=/bin", "LC_ALL=C", "https_proxy=http://p:1", "home=/h", "ALL_PROXY=http://p:1", "PILOT_PROXY_AUTH_FILE=/f"}
	if got := backgroundEnv(in); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
