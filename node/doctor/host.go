// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

// tunDriver: is there a driver for virtual interfaces, and may it be used?
func tunDriver(f *Facts) []Finding {
	if f.userspace() {
		if why := f.self().TUNWhy; why != "" {
			return []Finding{warning("TUN_USERSPACE", "programs reach agents through the daemon alone, since there is no interface: "+why,
				"once an interface can be had: pilot up --tun=kernel")}
		}
		return well("no interface is wanted")
	}
	if self := f.self(); self != nil && self.Interface != "" {
		return well("the interface " + self.Interface + " is there")
	}
	t, err := f.Host.TUN.Value, f.Host.TUN.Err
	if err != nil {
		return f.unseen(err)
	}
	inside := func(host string) string {
		if f.Host.Container == "" {
			return host
		}
		return "this is a container (" + f.Host.Container + "): pass the device in and allow CAP_NET_ADMIN, with docker: --device /dev/net/tun --cap-add NET_ADMIN"
	}
	switch {
	case !t.Exists && f.Host.OS == "windows":
		return []Finding{problem("TUN_MISSING", "wintun.dll is not beside pilot.exe", "install pilot anew, or put the signed wintun.dll of www.wintun.net there")}
	case !t.Exists:
		return []Finding{problem("TUN_MISSING", t.Path+" is not there", inside("load the driver: modprobe tun; where that fails, this kernel is built without it"))}
	case errors.Is(t.Open, syscall.ENODEV), errors.Is(t.Open, syscall.ENXIO), errors.Is(t.Open, syscall.ENOENT):
		return []Finding{problem("TUN_MISSING", "the kernel has no driver behind "+t.Path, inside("load it: modprobe tun"))}
	case errors.Is(t.Open, fs.ErrPermission) && (f.Host.Root || f.Host.Container != ""):
		return []Finding{problem("TUN_DENIED", t.Path+" may not be opened", inside("something keeps even root from it: look at the device's mode, and at SELinux or AppArmor"))}
	case errors.Is(t.Open, fs.ErrPermission):
		return []Finding{warning("TUN_DENIED", t.Path+" is not open to all users", "the service runs as a user of its own: chmod 666 "+t.Path+" (udev makes it so)")}
	case t.Open != nil:
		return []Finding{problem("TUN_DENIED", fmt.Sprintf("%s can't be opened: %v", t.Path, t.Open), inside(""))}
	case f.Host.Root && !t.Admin:
		return []Finding{problem("TUN_DENIED", "this root may not configure interfaces (no CAP_NET_ADMIN)", inside("give it that capability"))}
	}
	return well(t.Path + " can be used")
}

// ipv6: is the protocol of the overlay switched on?
func ipv6(f *Facts) []Finding {
	i, err := f.Host.IPv6.Value, f.Host.IPv6.Err
	switch {
	case f.userspace():
		return notNeeded()
	case err != nil:
		return f.unseen(err)
	case i.Missing:
		return []Finding{problem("IPV6_OFF", "this kernel has no IPv6", "take ipv6.disable=1 off the kernel's command line, and reboot")}
	}
	if self := f.self(); self != nil && slices.Contains(i.Disabled, self.Interface) {
		return []Finding{problem("IPV6_OFF", "IPv6 is switched off on "+self.Interface, "sysctl -w net.ipv6.conf."+self.Interface+".disable_ipv6=0, then pilot down and pilot up; "+
			"and look for what switches it off below /etc/sysctl.d")}
	}
	if slices.Contains(i.Disabled, "all") || slices.Contains(i.Disabled, "default") {
		return []Finding{warning("IPV6_OFF_ELSEWHERE", "IPv6 is switched off on this host; pilot switches it on for its own interface, which a container may not allow",
			"if pilot up fails: sysctl -w net.ipv6.conf.default.disable_ipv6=0")}
	}
	return well("IPv6 is on")
}

// service: does the system's service manager run the daemon, and will it after the next boot?
func service(f *Facts) []Finding {
	u, err := f.Host.Service.Value, f.Host.Service.Err
	switch {
	case err != nil:
		return f.unseen(err)
	case !f.System:
		return well("another state folder than the service's is meant")
	case !u.Manager:
		return well("no systemd here; pilot up runs the daemon")
	case !u.Installed && f.Status != nil:
		return []Finding{warning("SERVICE_MISSING", "the daemon runs without a service: nothing starts it after a reboot", "install the package; it takes this daemon's state over")}
	case !u.Installed:
		return well("no service is installed; pilot up runs the daemon")
	case u.Active == "failed":
		return []Finding{problem("SERVICE_FAILED", "the service has failed: "+u.Result, "journalctl -u pilot -n 30 says why; then: sudo pilot up")}
	case u.Active == "activating" && u.Restarts > 0:
		return []Finding{problem("SERVICE_FAILING", fmt.Sprintf("the service ends again and again, %d times so far", u.Restarts), "journalctl -u pilot -n 30 says why")}
	}
	var out []Finding
	if u.Active != "active" && u.Active != "activating" && f.Status == nil {
		out = append(out, problem("SERVICE_STOPPED", "the service does not run", "sudo pilot up"))
	}
	if u.Active != "active" && f.Status != nil {
		out = append(out, warning("SERVICE_BESIDE", "the daemon runs, and not as the service: nothing starts it after a reboot", "sudo pilot down, then sudo pilot up"))
	}
	if !u.Enabled {
		out = append(out, warning("SERVICE_DISABLED", "the service is not started at boot", "sudo systemctl enable pilot"))
	}
	if len(out) == 0 {
		return well("the service is " + u.Active)
	}
	return out
}

// daemon: does it answer, and has it a network?
func daemon(f *Facts) []Finding {
	if s := f.Status; s != nil {
		switch s.State {
		case localapi.StateUp:
			return well(fmt.Sprintf("it answers, and the network %s is up", s.Network))
		case localapi.StateStarting:
			return []Finding{problem("NOT_UP", "the daemon is bringing the network up, and has not managed yet", "its log says what it waits for: journalctl -u pilot, or pilot.log in the state folder")}
		}
		return []Finding{problem("NOT_UP", "the daemon has no network that is up", "pilot up, with an invite if this host is in no network yet")}
	}
	switch e := f.DaemonErr; {
	case e == nil:
		return nil // nobody asked
	case e.Code == localapi.CodePermission:
		return nil // access says it
	case e.Code == localapi.CodeInsecurePath:
		return []Finding{problem("SOCKET_SQUATTED", e.Message, "pilot talks to nobody there: find out who put it there, and remove it")}
	case e.Code == localapi.CodeVersionDiffers:
		return nil // version says it
	case e.Code == localapi.CodeTimeout:
		return []Finding{problem("DAEMON_HANGS", e.Message, "pilot down; if that hangs too, kill -9 the process; and keep its log")}
	default:
		return []Finding{problem("NOT_RUNNING", e.Message, "pilot up")}
	}
}

// access: may this user control the daemon?
func access(f *Facts) []Finding {
	denied := f.DaemonErr != nil && f.DaemonErr.Code == localapi.CodePermission
	g, err := f.Host.Group.Value, f.Host.Group.Err
	switch {
	case f.Status != nil:
		return well("this user may control the daemon")
	case !denied:
		return nil // nobody to be controlled
	case err != nil:
		return []Finding{problem("PERMISSION", f.DaemonErr.Message, "sudo pilot doctor")}
	case g.Windows:
		return []Finding{problem("PERMISSION", "this user may not control the daemon", "open a terminal as an administrator")}
	case !g.Exists:
		return []Finding{problem("PERMISSION", "only root may control the daemon: there is no group "+g.Name, "groupadd --system "+g.Name+", put users in it, and restart the daemon; or use sudo")}
	case g.Listed && !g.Member:
		return []Finding{problem("PERMISSION", "this user is in the group "+g.Name+", and this session does not know it yet", "log out and in again; or: newgrp "+g.Name)}
	case !g.Member:
		return []Finding{problem("PERMISSION", "this user is not in the group "+g.Name, "sudo adduser USER "+g.Name+", then log in again; or use sudo")}
	}
	return []Finding{problem("SOCKET_GROUP", "this user is in the group "+g.Name+", and the socket is not open to it", "the group is newer than the daemon: restart the daemon once")}
}

// version: are this program and the daemon made to understand each other?
func version(f *Facts) []Finding {
	if e := f.DaemonErr; e != nil && e.Code == localapi.CodeVersionDiffers {
		return []Finding{problem("VERSION_DIFFERS", e.Message, e.Hint)}
	}
	if f.Status == nil {
		return nil
	}
	switch localapi.CompareVersions(f.Version, f.Status.Version) {
	case localapi.VersionsMajor:
		return []Finding{problem("VERSION_DIFFERS", fmt.Sprintf("this is pilot %s, and the daemon is %s", f.Version, f.Status.Version), versionHint)}
	case localapi.VersionsMinor:
		return []Finding{warning("VERSION_OLD", fmt.Sprintf("this is pilot %s, and the daemon that runs is %s", f.Version, f.Status.Version), versionHint)}
	}
	return well("this program and the daemon are of one version")
}

const versionHint = "restart the daemon: sudo systemctl restart pilot; without a service: pilot down, then pilot up"

const (
	leastSpace = 16 << 20  // below this a registry or a log soon can't be written
	littleFree = 256 << 20 //
)

// state: is the state folder safe and writable?
func state(f *Facts) []Finding {
	s, err := f.Host.State.Value, f.Host.State.Err
	switch {
	case err != nil:
		return f.unseen(err)
	case !s.Exists:
		return well(s.Path + " is not there yet")
	}
	var out []Finding
	if s.Problem != nil {
		out = append(out, problem("STATE_INSECURE", s.Problem.Error(), "the daemon does not start there: find out who did that; then give it to root or the user pilot, mode 0700"))
	}
	for _, file := range s.Loose {
		out = append(out, problem("STATE_EXPOSED", file+" can be read by others", "chmod 600 it, and take the key for known: revoke it, and join anew"))
	}
	switch {
	case s.ReadOnly:
		out = append(out, problem("DISK_READONLY", "the file system of "+s.Path+" is read-only", "look at dmesg for the reason, and mount it anew"))
	case s.Free < leastSpace:
		out = append(out, problem("DISK_FULL", fmt.Sprintf("%d MB are left on the disk of %s", s.Free>>20, s.Path), "make room: what changes can't be saved"))
	case s.Free < littleFree:
		out = append(out, warning("DISK_LOW", fmt.Sprintf("%d MB are left on the disk of %s", s.Free>>20, s.Path), "make room"))
	}
	if len(out) > 0 {
		return out
	}
	if !s.Files {
		return append(well(s.Path+" is in order, as far as its outside shows"), f.unseen(errors.New("the files in it could not be looked at"))...)
	}
	return well(s.Path + " is in order")
}

const (
	clockLimit      = 5 * time.Minute // handshakes allow as much
	clockNotable    = time.Minute
	certificateLife = 24*time.Hour + 10*time.Minute // no certificate lasts longer than a day, seen by a clock that is right
)

// clock: is it right? Statements and certificates hold by it.
func clock(f *Facts) []Finding {
	const hint = "set it: timedatectl set-ntp true, or by hand; sessions come back by themselves"
	var out []Finding
	known := false
	if f.Status != nil && f.Status.Coordinator != nil && f.Status.Coordinator.ClockOffset != nil {
		known = true
		off := time.Duration(*f.Status.Coordinator.ClockOffset * float64(time.Second))
		text := fmt.Sprintf("this host's clock and the coordinator's are %s apart", off.Abs().Round(time.Second))
		switch {
		case off.Abs() > clockLimit:
			out = append(out, problem("CLOCK_WRONG", text, hint))
		case off.Abs() > clockNotable:
			out = append(out, warning("CLOCK_OFF", text, hint))
		}
	}
	if self := f.self(); self != nil && len(out) == 0 && self.CertificateExpires.Sub(f.Now) > certificateLife {
		out = append(out, problem("CLOCK_WRONG", "by this host's clock the certificate was made in the future: the clock is behind", hint))
	}
	if s := f.Host.State.Value; s.Ahead > clockLimit {
		out = append(out, problem("CLOCK_BACK", fmt.Sprintf("%s was written %s later than now: the clock was set back", s.Future, s.Ahead.Round(time.Second)), hint))
	}
	switch c := f.Host.Clock; {
	case len(out) > 0:
		return out
	case c.Err == nil && !c.Value.Synchronized && !known:
		return []Finding{warning("CLOCK_UNSYNCHRONIZED", "nothing keeps this host's clock right", "timedatectl set-ntp true, or install chrony; in a container or virtual machine the host may do it")}
	case known:
		return well("it agrees with the coordinator's")
	case c.Err != nil:
		return f.unseen(c.Err)
	}
	return well("the system keeps it")
}

// vpnName is whose tunnel an interface is, by its name and kind; empty for all that is none, is down, or is ours.
func vpnName(l inspect.Link, own string) string {
	if l.Name == own || strings.HasPrefix(l.Name, "pilot") || !l.Up {
		return ""
	}
	for _, known := range []struct{ prefix, name string }{
		{"tailscale", "Tailscale"}, {"wt", "NetBird"}, {"netbird", "NetBird"}, {"zt", "ZeroTier"}, {"nebula", "Nebula"}, {"CloudflareWARP", "Cloudflare WARP"},
		{"nordlynx", "NordVPN"}, {"mullvad", "Mullvad"}, {"proton", "Proton VPN"}, {"gpd", "GlobalProtect"}, {"cscotun", "Cisco AnyConnect"}, {"ppp", "a PPP tunnel"},
		{"wg", "WireGuard"}, {"tun", "OpenVPN or another tunnel"}, {"tap", "OpenVPN or another tunnel"},
	} {
		rest, found := strings.CutPrefix(l.Name, known.prefix)
		if found && (l.Kind != "" || numbered(rest)) && l.Kind != "veth" && l.Kind != "device" && l.Kind != "bridge" {
			return known.name
		}
	}
	if l.Kind == "wireguard" {
		return "WireGuard"
	}
	return ""
}

// numbered says whether the rest of an interface's name is a number or nothing.
func numbered(rest string) bool { return strings.Trim(rest, "0123456789") == "" }
