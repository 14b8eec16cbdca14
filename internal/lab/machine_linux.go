// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// imageEnv names the Debian that machines boot: a tar of a root file system, see packaging/image.
const imageEnv = "PILOT_LAB_IMAGE"

// bootLimit bounds how long a machine may take to boot or to halt; it takes about a second.
const bootLimit = 40 * time.Second

// Machine is a host with a Debian of its own, whose process 1 is systemd, in a container of systemd-nspawn. Its network
// is that of the host it was made from, so that it can be connected to bridges before and while it runs. What is
// written to its file system stays over a reboot.
type Machine struct {
	*Host
	root   string // its file system, as long as the machine runs or setUp does
	outer  int    // process id of the host that it is made from
	nspawn *exec.Cmd
	cgroup []string
}

// machineScript mounts a machine's file system, the image below and what is its own above, and runs a command in the
// same mount namespace: with it, the mount goes.
const machineScript = `set -e
image=$1 dir=$2
shift 2
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$image,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
ln -sf /dev/null "$dir/root/etc/systemd/system/tmp.mount" # it would hide the host's home
[ -e "$dir/tun" ] || mknod -m 666 "$dir/tun" c 10 200
exec "$@"
`

// Machine makes a machine that does not run yet, and runs a shell script in its file system first, as root of it.
func (l *Lab) Machine(name, script string) *Machine {
	l.tb.Helper()
	Programs(l.tb, "systemd-nspawn")
	host := l.Host(name)
	m := &Machine{Host: host, root: filepath.Join(host.dir, "machine"), outer: host.pid}
	for _, sub := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(m.root, sub), 0o755); err != nil {
			l.tb.Fatalf("lab: machine %s: %v", name, err)
		}
	}
	if out, err := m.mounted("chroot", filepath.Join(m.root, "root"), "sh", "-ec", script).CombinedOutput(); err != nil {
		l.tb.Fatalf("lab: machine %s: %v\n%s", name, err, out)
	}
	l.tb.Cleanup(func() {
		if l.tb.Failed() && m.nspawn != nil {
			ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
			defer cancel()
			l.tb.Logf("%s: %v", name, m.Run(ctx, "journalctl", "-q", "--no-pager", "-n", "200", "-u", "pilot*", "-u", "systemd-resolved", "-u", "NetworkManager"))
			l.tb.Logf("%s: %v", name, m.Run(ctx, "sh", "-c", "ip addr; cat /etc/resolv.conf; nmcli device; nmcli connection; nmcli device show; resolvectl"))
		}
		m.halt()
	})
	return m
}

// mounted prepares a command that finds the machine's file system mounted.
func (m *Machine) mounted(args ...string) *exec.Cmd {
	cmd := exec.Command("bash", append([]string{"-c", machineScript, "lab-machine", image(m.lab.tb), m.root}, args...)...)
	cmd.Env = append(m.environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: syscall.CLONE_NEWNS}
	return cmd
}

// boot starts the machine, and returns when systemd says that it has. From then on programs of the host are run in it.
func (m *Machine) boot() error {
	m.nspawn = m.mounted("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--machine="+m.name,
		fmt.Sprintf("--network-namespace-path=/proc/%d/ns/net", m.outer), "--capability=CAP_NET_ADMIN",
		"--bind="+filepath.Join(m.root, "tun")+":/dev/net/tun", "--bind="+m.Home(), "-D", filepath.Join(m.root, "root"))
	console, err := os.Create(filepath.Join(m.dir, "log", "console"))
	if err != nil {
		return err
	}
	defer func() { _ = console.Close() }()
	m.nspawn.Stdout, m.nspawn.Stderr = console, console
	if err := m.caged(); err != nil {
		m.nspawn = nil
		return err
	}
	return poll(bootLimit, m.booted)
}

// booted is nil when the machine runs; before, it looks for its process 1.
func (m *Machine) booted(ctx context.Context) error {
	pid := m.nspawn.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return err
	}
	leader, err := strconv.Atoi(string(bytes.TrimSpace(children)))
	if err != nil {
		return errors.New("it has no process 1 yet")
	}
	m.pid, m.inside = leader, true
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r := m.Run(ctx, "systemctl", "is-system-running")
	if state := strings.TrimSpace(r.Stdout); state != "running" && state != "degraded" {
		m.pid, m.inside = m.outer, false
		return fmt.Errorf("it is %s: %v", state, r)
	}
	return nil
}

// caged starts nspawn in control groups of its own: where several are in the same ones, their machines contend for them.
func (m *Machine) caged() error {
	name := fmt.Sprintf("%s%d-%s", dirPrefix, os.Getpid(), m.name)
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			m.cgroup = append(m.cgroup, filepath.Join(dir, name))
		}
	}
	args := []string{"-c", `for dir in $1; do mkdir -p $dir && echo $$ >$dir/cgroup.procs || exit; done; shift; exec "$@"`,
		"lab-cage", strings.Join(m.cgroup, " ")}
	m.nspawn.Args = append(append([]string{"bash"}, args...), m.nspawn.Args...)
	return m.nspawn.Start()
}

// reboot halts the machine as its administrator would, and boots it again.
func (m *Machine) reboot() error {
	m.halt()
	return m.boot()
}

// halt shuts the machine down, and ends it by force if that takes too long.
func (m *Machine) halt() {
	if m.nspawn == nil {
		return
	}
	_ = syscall.Kill(m.pid, syscall.Signal(34+4)) // SIGRTMIN+4: see systemd(1)
	m.pid, m.inside = m.outer, false
	ended := make(chan struct{})
	go func() {
		_ = m.nspawn.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(bootLimit):
		_ = m.nspawn.Process.Kill()
		<-ended
	}
	m.nspawn = nil
	for _, dir := range m.cgroup {
		removeGroups(dir)
	}
	m.cgroup = nil
}

// removeGroups removes a control group with all that are in it; they have no processes any more.
func removeGroups(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeGroups(filepath.Join(dir, e.Name()))
		}
	}
	_ = syscall.Rmdir(dir)
}

// image unpacks the Debian that the environment names, once in each process. [RemoveBinary] deletes it.
func image(tb TB) string {
	tb.Helper()
	dir := filepath.Join(binaryDir(), "debian")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	tar := os.Getenv(imageEnv)
	if tar == "" {
		tb.Fatalf("set %s to a Debian to boot, as packaging/image makes it", imageEnv)
	}
	temp := dir + ".new"
	err := os.MkdirAll(temp, 0o755)
	if err == nil {
		var out []byte
		if out, err = exec.Command("tar", "-C", temp, "-xf", tar).CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err == nil {
		err = os.Rename(temp, dir)
	}
	if err != nil {
		tb.Fatalf("lab: unpack %s: %v", tar, err)
	}
	return dir
}
