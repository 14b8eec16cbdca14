// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one machine of the lab.
type Host struct {
	lab    *Lab
	name   string
	dir    string
	holder *exec.Cmd // process 1 of the host; its end is the host's end
	hold   io.Closer // the pipe that keeps it alive
	pid    int       // of the process whose namespaces are the host's: the holder, or a booted system's first
	inside bool      // programs are looked for in the host's own file system
	links  int

	mu        sync.Mutex
	processes []*Process
	env       []string
}

// holderScript is process 1 of a host: it gives the host its own file system view, says that it is ready, and waits
// until its standard input ends. Bash reaps the processes that daemons leave behind, as an init should.
const holderScript = `set -e
dir=$1 name=$2
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/sshd
# In memory: the copy on disk takes longer than all the rest.
mount -t tmpfs -o mode=755 tmpfs "$dir/etc"
cp -a /etc/. "$dir/etc"
rm -f "$dir/etc/resolv.conf"
: > "$dir/etc/resolv.conf"
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$name" > "$dir/etc/hosts"
printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n' > "$dir/etc/nsswitch.conf"
mount --bind "$dir/etc" /etc
mount --bind "$dir/lib" /var/lib
hostname "$name"
ip link set lo up
echo ready
while read -r _; do :; done
`

func (l *Lab) newHost(name string) *Host {
	l.tb.Helper()
	h := &Host{lab: l, name: name, dir: filepath.Join(l.dir, name)}
	for _, sub := range []string{"etc", "lib", "log", "home"} {
		if err := os.MkdirAll(filepath.Join(h.dir, sub), 0o755); err != nil {
			l.tb.Fatalf("lab: host %s: %v", name, err)
		}
	}
	if err := h.hatch(); err != nil {
		l.tb.Fatalf("lab: host %s: %v", name, err)
	}
	return h
}

// hatch starts the holder in new namespaces and waits until it is ready.
func (h *Host) hatch() error {
	h.holder = exec.Command("bash", "-c", holderScript, "lab-host", h.dir, h.name)
	h.holder.Env = h.environ()
	h.holder.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	var stderr lockedBuffer
	h.holder.Stderr = &stderr
	stdin, err := h.holder.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := h.holder.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.holder.Start(); err != nil {
		return err
	}
	h.hold, h.pid = stdin, h.holder.Process.Pid
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		h.close()
		return fmt.Errorf("could not be set up: %s", strings.TrimSpace(stderr.String()))
	}
	return nil
}

// Name is the host's name, which is its hostname too.
func (h *Host) Name() string { return h.name }

// PID is the process id of the host's first process, by which nsenter finds the host.
func (h *Host) PID() int { return h.pid }

// Path turns an absolute path as the host sees it into one that can be opened from outside of it.
func (h *Host) Path(inside string) string {
	return filepath.Join("/proc", strconv.Itoa(h.pid), "root", inside)
}

// Home is a folder for the host's own files, at the same path inside and outside.
func (h *Host) Home() string { return filepath.Join(h.dir, "home") }

// WriteFile puts a file into [Host.Home] and returns its path.
func (h *Host) WriteFile(name, content string, perm os.FileMode) string {
	h.lab.tb.Helper()
	path := filepath.Join(h.Home(), name)
	if err := os.WriteFile(path, []byte(content), perm); err != nil {
		h.lab.tb.Fatalf("lab: host %s: %v", h.name, err)
	}
	return path
}

// Resolvers writes /etc/resolv.conf as the host's administrator would have, before any pilot runs on it.
func (h *Host) Resolvers(addresses ...string) {
	h.lab.tb.Helper()
	var b strings.Builder
	for _, a := range addresses {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if err := os.WriteFile(h.Path("/etc/resolv.conf"), []byte(b.String()), 0o644); err != nil {
		h.lab.tb.Fatalf("lab: host %s: %v", h.name, err)
	}
}

// Setenv sets a variable for the programs that are started on the host from now on.
func (h *Host) Setenv(name, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.env = append(h.env, name+"="+value)
}

// In runs fn on a thread that is in the host's namespaces: sockets that it opens are the host's, and so are the
// processes that it starts. The thread is thrown away afterwards. Goroutines that fn starts are not in the host.
func (h *Host) In(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends a locked thread with its goroutine, and nothing else may run on this one.
		runtime.LockOSThread()
		if err := h.enter(); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// enter moves the calling thread into the host.
func (h *Host) enter() error {
	kinds := []struct {
		name string
		flag int
	}{
		{"pid", unix.CLONE_NEWPID}, {"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS},
		{"ipc", unix.CLONE_NEWIPC}, {"mnt", unix.CLONE_NEWNS},
	}
	fds := make([]int, len(kinds))
	for i, kind := range kinds {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", h.pid, kind.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("host %s is gone: %w", h.name, err)
		}
		defer func() { _ = unix.Close(fd) }()
		fds[i] = fd
	}
	// A thread that shares its working directory with others may not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for i, kind := range kinds {
		if err := unix.Setns(fds[i], kind.flag); err != nil {
			return fmt.Errorf("enter %s namespace of %s: %w", kind.name, h.name, err)
		}
	}
	return nil
}

// must runs a set-up command and ends the test where it fails.
func (h *Host) must(args ...string) string {
	h.lab.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	return h.Must(ctx, args...)
}

// close ends all processes of the host and waits for those that it started.
func (h *Host) close() {
	if h.hold == nil {
		return
	}
	_ = h.hold.Close()
	ended := make(chan struct{})
	go func() {
		_ = h.holder.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
		_ = h.holder.Process.Kill()
		<-ended
	}
	h.mu.Lock()
	processes := h.processes
	h.mu.Unlock()
	for _, p := range processes {
		<-p.done
	}
	h.hold = nil
}

// report logs what helps to understand a failure: the ends of all logs, and the state of the network.
func (h *Host) report() {
	const tail = 4 << 10
	logs, _ := filepath.Glob(filepath.Join(h.dir, "log", "*"))
	state, _ := filepath.Glob(filepath.Join(h.dir, "lib", "pilot*", "*.log"))
	for _, path := range append(logs, state...) {
		text, err := os.ReadFile(path)
		if err != nil || len(text) == 0 {
			continue
		}
		if len(text) > tail {
			text = append([]byte("…"), text[len(text)-tail:]...)
		}
		h.lab.tb.Logf("%s: %s:\n%s", h.name, strings.TrimPrefix(path, h.dir+"/"), text)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, command := range []string{"ip -br addr", "ip -6 route", "ps -N -p 1 -o pid,stat,etimes,args", "cat /etc/resolv.conf"} {
		r := h.Run(ctx, strings.Fields(command)...)
		h.lab.tb.Logf("%s: %s:\n%s%s", h.name, command, r.Stdout, r.Stderr)
	}
}
