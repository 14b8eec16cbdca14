// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

const (
	tunPath  = "/dev/net/tun"
	unitName = "pilot.service"
	busLimit = 5 * time.Second
)

func look(ctx context.Context, q Question) Host {
	h := Host{OS: "linux", Root: isRoot(), Container: container()}
	h.TUN = seen(lookTUN(), nil)
	h.Service = seen(unit(ctx))
	h.Group = seen(group())
	h.State = seen(folder(q.StateDir, time.Now()))
	h.Clock = seen(clock())
	h.IPv6 = seen(ipv6())
	h.Links = seen(links())
	if q.Prefix.IsValid() {
		h.Routes = seen(routes(q))
	}
	h.Resolver = seen(resolver(ctx))
	h.Firewall = seen(firewall(ctx))
	return h
}

// container names the kind of container that this process is in, by the marks that they leave.
func container() string {
	if data, err := os.ReadFile("/run/systemd/container"); err == nil {
		return strings.TrimSpace(string(data))
	}
	for path, kind := range map[string]string{"/.dockerenv": "docker", "/run/.containerenv": "podman"} {
		if _, err := os.Stat(path); err == nil {
			return kind
		}
	}
	if _, ok := os.LookupEnv("KUBERNETES_SERVICE_HOST"); ok {
		return "kubernetes"
	}
	return ""
}

func lookTUN() TUN {
	t := TUN{Path: tunPath, Admin: capable(unix.CAP_NET_ADMIN)}
	_, err := os.Stat(tunPath)
	t.Exists = !errors.Is(err, fs.ErrNotExist)
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Open = err
		return t
	}
	unix.Close(fd)
	return t
}

// capable says whether this process has a capability, by /proc/self/status.
func capable(capability int) bool {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(data) {
		if text, ok := strings.CutPrefix(string(line), "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			return err == nil && mask&(1<<capability) != 0
		}
	}
	return false
}

func unit(ctx context.Context) (u Unit, err error) {
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() { // sd_booted(3)
		return u, nil
	}
	u.Manager = true
	ctx, cancel := context.WithTimeout(ctx, busLimit)
	defer cancel()
	conn, err := systemd.NewWithContext(ctx)
	if err != nil {
		return u, fmt.Errorf("ask systemd: %w", err)
	}
	defer conn.Close()
	p, err := conn.GetAllPropertiesContext(ctx, unitName)
	if err != nil {
		return u, fmt.Errorf("ask systemd: %w", err)
	}
	text := func(name string) string { s, _ := p[name].(string); return s }
	u.Installed = text("LoadState") == "loaded"
	u.Enabled = strings.HasPrefix(text("UnitFileState"), "enabled") || text("UnitFileState") == "static"
	u.Active, u.Result = text("ActiveState"), text("Result")
	u.Restarts, _ = p["NRestarts"].(uint32)
	return u, nil
}

func clock() (Clock, error) {
	var t unix.Timex
	_, err := unix.Adjtimex(&t) // with no mode it only reads
	return Clock{Synchronized: t.Status&unix.STA_UNSYNC == 0}, err
}

// ipv6 reads what is switched off for all, for new ones, and for each interface that there is.
func ipv6() (i IPv6, err error) {
	const folder = "/proc/sys/net/ipv6/conf"
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		i.Missing = true
		return i, nil
	}
	if err != nil {
		return i, err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(folder, e.Name(), "disable_ipv6"))
		if err == nil && strings.TrimSpace(string(data)) == "1" {
			i.Disabled = append(i.Disabled, e.Name())
		}
	}
	slices.Sort(i.Disabled)
	return i, nil
}

func prefixOf(ip []byte, bits int) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return netip.PrefixFrom(a.Unmap(), bits), ok
}
