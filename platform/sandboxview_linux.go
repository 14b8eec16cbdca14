// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ConfigureSandbox gives a sandbox, in which this process is, its network.
func ConfigureSandbox(l SandboxLink) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up the loopback interface: %w", err)
	}
	routeMTU := l.MTU
	l.MTU = l.LinkMTU
	if err := ConfigureInterface(l.Interface); err != nil {
		return err
	}
	link, err := netlink.LinkByName(l.Name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", l.Name, err)
	}
	v4 := &net.IPNet{IP: l.Outside.AsSlice(), Mask: net.CIDRMask(32, 32)}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: v4}); err != nil {
		return fmt.Errorf("set address of %s: %w", l.Name, err)
	}
	index := link.Attrs().Index
	for _, r := range []*netlink.Route{
		{LinkIndex: index, Dst: &net.IPNet{IP: l.Route.Addr().AsSlice(), Mask: net.CIDRMask(l.Route.Bits(), 128)}, Src: l.Address.AsSlice(), MTU: routeMTU},
		{LinkIndex: index, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Src: l.Address.AsSlice()},
		{LinkIndex: index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Src: l.Outside.AsSlice(), Scope: netlink.SCOPE_LINK},
	} {
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route %v into %s: %w", r.Dst, l.Name, err)
		}
	}
	// All ports are the program's, and it may ping. Where /proc/sys can't be written it has to do without.
	gid := strconv.Itoa(os.Getegid())
	_ = os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0)
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(gid+" "+gid), 0)
	return nil
}

// ShowSandbox changes what the file system looks like in a sandbox, in which this process is: its processes alone, its names,
// and nothing of the host's services. The warnings say what could not be had.
func ShowSandbox(v SandboxView) (warnings []string, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("make the mounts the sandbox's own: %w", err)
	}
	if err := unix.Sethostname([]byte(v.Hostname)); err != nil {
		return nil, fmt.Errorf("set the host name: %w", err)
	}
	// In some containers parts of /proc are hidden, and then no other can be mounted.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		warnings = append(warnings, fmt.Sprintf("the program sees the host's processes: /proc can't be mounted (%v)", err))
	}
	if err := hideRun(); err != nil {
		return nil, err
	}
	scratch, err := newScratch()
	if err != nil {
		return nil, err
	}
	for _, path := range v.Hide {
		if err := hide(path, scratch.empty); err != nil {
			return nil, err
		}
	}
	switch err := scratch.replace("/etc/resolv.conf", v.Resolv); {
	case errors.Is(err, fs.ErrNotExist):
		warnings = append(warnings, "names don't resolve in the sandbox: there is no /etc/resolv.conf to be replaced")
	case err != nil:
		return nil, err
	}
	for path, text := range map[string]string{
		"/etc/nsswitch.conf": sandboxNsswitch,
		"/etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	} {
		if err := scratch.replace(path, text); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return warnings, scratch.close()
}

// hide puts an empty folder, or an empty file, in the place of what is at a path, if anything is.
func hide(path string, empty string) error {
	there, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil // there is nothing to hide
	}
	info, err := os.Lstat(there)
	if err != nil {
		return nil
	}
	if info.IsDir() {
		err = mountEmpty(there)
	} else {
		err = unix.Mount(empty, there, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("hide %s: %w", path, err)
	}
	return nil
}

func mountEmpty(dir string) error {
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=16m")
}

// hideRun hides /run, where the host's services have their sockets, but for what is no service's. The user's own folder in
// it is there, and empty.
func hideRun() error {
	shown := map[string]int{}
	for _, name := range shownInRun() {
		fd, err := unix.Open(filepath.Join("/run", name), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			shown[name] = fd
			defer unix.Close(fd)
		}
	}
	links := map[string]string{}
	for _, name := range shownInRun() {
		if to, err := os.Readlink(filepath.Join("/run", name)); err == nil {
			links[name] = to
		}
	}
	if err := hide("/run", ""); err != nil {
		return err
	}
	for name, fd := range shown {
		path := filepath.Join("/run", name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("show %s: %w", path, err)
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join("/run", name)); err != nil {
			return err
		}
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		if strings.HasPrefix(filepath.Clean(dir), "/run/") {
			return os.MkdirAll(dir, 0o700)
		}
		return hide(dir, "")
	}
	return nil
}

// scratch is a folder in memory for files that are put in the place of others.
type scratch struct {
	dir   string
	empty string // a file
	count int
}

// newScratch makes one at a place where nothing is lost: it goes away by close, the files stay where they were put.
func newScratch() (*scratch, error) {
	dir, err := os.MkdirTemp("/run", ".pilot-")
	if err != nil {
		return nil, err
	}
	s := &scratch{dir: dir, empty: filepath.Join(dir, "empty")}
	return s, os.WriteFile(s.empty, nil, 0o444)
}

// replace puts a file with this text in the place of another. Where that is a link into a place that was emptied, it is
// made there.
func (s *scratch) replace(path, text string) error {
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		to, linkErr := os.Readlink(path)
		if linkErr != nil {
			return fmt.Errorf("replace %s: %w", path, err)
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("replace %s: %w", path, err)
		}
		return os.WriteFile(to, []byte(text), 0o644)
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	s.count++
	file := filepath.Join(s.dir, strconv.Itoa(s.count))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

// close removes the names of the files.
func (s *scratch) close() error { return os.RemoveAll(s.dir) }

// ignoreSignals keeps this process alive, whatever a terminal or the sandbox's programs send to it. What it starts has the
// usual actions: those that are caught here are reset by exec.
func ignoreSignals() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM)
}
