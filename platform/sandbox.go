// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A sandbox is a program with a network of its own: one interface, whose packets another process carries, and names that
// this process answers. It is made in steps that need privileges within the sandbox only, by a stage of this program
// that replaces itself with the first process of the sandbox once it has given them all up.

var (
	// ErrNamespaces says that this system doesn't let this user make namespaces; NamespaceHint may know why.
	ErrNamespaces = errors.New("this user may not make user and network namespaces")
	// ErrStage says that a process which should have been started by StartSandbox was not.
	ErrStage = errors.New("not started by pilot run")
)

// Exit statuses of a sandbox's first process that mean something else than the program's own, as shells have them.
const (
	StatusNotExecutable = 126
	StatusNotFound      = 127
	statusSignal        = 128 // and the number of the signal that ended the program
)

// SandboxLink is the network of a sandbox.
type SandboxLink struct {
	// Interface is configured as a host's would be; its MTU is that of its route alone.
	Interface
	// LinkMTU is the interface's, and so that of all other ways: packets for the world outside stay on this host, as long
	// as they can be.
	LinkMTU int
	// Outside is the IPv4 address that the world outside is spoken to from.
	Outside netip.Addr
}

// SandboxView is what the sandbox sees differently from the host.
type SandboxView struct {
	Hostname string
	Resolv   string   // what resolv.conf(5) says
	Hide     []string // folders in whose place there is an empty one, where they exist
}

// ResolvConf is a resolv.conf(5) with one nameserver.
func ResolvConf(server netip.Addr, search []string) string {
	text := "# Written by pilot run.\nnameserver " + server.String() + "\n"
	if len(search) > 0 {
		text += "search " + strings.Join(search, " ") + "\n"
	}
	return text
}

// sandboxNsswitch resolves names by files and DNS alone: other ways would ask services of the host's.
const sandboxNsswitch = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n"

// shownInRun are the folders of /run that hold no way to a service of the host's, and that some systems keep their programs
// and libraries in.
func shownInRun() []string {
	return []string{"current-system", "booted-system", "opengl-driver", "opengl-driver-32", "wrappers", "lock"}
}

// programStatus turns the way in which a process ended into the status that a shell would give it.
func programStatus(s syscall.WaitStatus) int {
	if s.Signaled() {
		return statusSignal + int(s.Signal())
	}
	return s.ExitStatus()
}

// notStartedStatus is the status for a program that could not be started.
func notStartedStatus(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return StatusNotFound
	}
	return StatusNotExecutable
}

// NamespaceHint says what keeps this user from making namespaces, and what an administrator can do. read returns what a
// file holds, without the space around it.
func NamespaceHint(read func(path string) string) string {
	switch {
	case read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		return "the kernel keeps them to root; to allow them: sudo sysctl -w kernel.unprivileged_userns_clone=1"
	case read("/proc/sys/user/max_user_namespaces") == "0":
		return "the kernel allows none; to allow them: sudo sysctl -w user.max_user_namespaces=10000"
	case read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "AppArmor keeps them to programs that it has a profile for; to allow them: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, " +
			"or give pilot a profile that says userns"
	case read("/proc/sys/user/max_net_namespaces") == "0":
		return "the kernel allows no network namespaces; to allow them: sudo sysctl -w user.max_net_namespaces=10000"
	}
	return "in a container, start it with --security-opt seccomp=unconfined; elsewhere ask the administrator, or use: pilot up"
}

// sandboxSockets picks out of /proc/net/unix, by path, the sockets in the file system that somebody may be listening on.
func sandboxSockets(table string, within func(path string) bool) (paths []string) {
	for line := range strings.Lines(table) {
		// Num RefCount Protocol Flags Type St Inode Path, of which the last may have spaces.
		fields := strings.Fields(line)
		if len(fields) < 8 || !strings.HasPrefix(fields[7], "/") {
			continue
		}
		path := strings.TrimRight(line[strings.Index(line, fields[7]):], "\n")
		if filepath.Clean(path) == path && !within(path) && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// Resolvers are the servers that this host's resolv.conf(5) names.
func Resolvers() ([]netip.AddrPort, error) {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil, fmt.Errorf("this host's resolvers: %w", err)
	}
	var list []netip.AddrPort
	for _, a := range parseResolvConf(data).Nameservers {
		list = append(list, netip.AddrPortFrom(a, 53))
	}
	return list, nil
}
