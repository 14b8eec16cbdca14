// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The libraries that programs of the labs use.
const (
	pythonRequests = "/usr/lib/python3/dist-packages/requests"
	pythonSocks    = "/usr/lib/python3/dist-packages/socks.py"
	nodeModules    = "/usr/share/nodejs"
	nodeUndici     = nodeModules + "/undici"
)

// packages names the Debian package of each program that labs run, and of each file by its whole path.
func packages() map[string]string {
	return map[string]string{
		"bash": "bash", "git": "git", "ip": "iproute2", "ss": "iproute2", "mount": "mount", "hostname": "hostname",
		"nsenter": "util-linux", "setpriv": "util-linux", "sysctl": "procps", "ps": "procps", "curl": "curl", "python3": "python3",
		"ping": "iputils-ping", "iperf3": "iperf3", "dig": "dnsutils", "tcpdump": "tcpdump",
		"redis-server": "redis-server", "redis-cli": "redis-tools",
		"systemd-creds": "systemd", "nft": "nftables", "conntrack": "conntrack",
		"musl-gcc": "musl-tools", "dnsmasq": "dnsmasq-base", "chattr": "e2fsprogs",
		"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap",
		"ssh": "openssh-client", "ssh-keygen": "openssh-client", "sshd": "openssh-server",
		"unshare": "util-linux", "slirp4netns": "slirp4netns",
		pythonRequests: "python3-requests", pythonSocks: "python3-socks", "node": "nodejs", nodeUndici: "node-undici",
	}
}

// Programs ends the test, naming the command that installs them, unless all of these programs and files are there.
func Programs(tb TB, names ...string) {
	tb.Helper()
	if missing := missing(names); len(missing) > 0 {
		tb.Fatalf("missing programs; install them with: apt-get install -y %s", strings.Join(missing, " "))
	}
}

// Install installs what labs run and this machine lacks, with apt-get where that exists and this is root. Otherwise
// its error names the command to run. Output of apt-get goes to standard error.
func Install() error {
	all := make([]string, 0, len(packages()))
	for name := range packages() {
		all = append(all, name)
	}
	need := missing(all)
	if len(need) == 0 {
		return nil
	}
	command := "apt-get install -y --no-install-recommends " + strings.Join(need, " ")
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("missing programs; install them with: %s", command)
	}
	fmt.Fprintf(os.Stderr, "installing: %s\n", strings.Join(need, " "))
	for _, args := range [][]string{
		{"update", "-qq"},
		append([]string{"install", "-y", "-qq", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"}, need...),
	} {
		cmd := exec.Command(apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// missing returns the packages of those programs and files that are not there, sorted.
func missing(names []string) []string {
	table := packages()
	var need []string
	for _, name := range names {
		_, ok := lookPath(name)
		if filepath.IsAbs(name) {
			_, err := os.Stat(name)
			ok = err == nil
		}
		if !ok {
			need = append(need, cmp.Or(table[name], name))
		}
	}
	slices.Sort(need)
	return slices.Compact(need)
}
