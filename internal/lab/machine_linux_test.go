// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// debEnv names the package that TestPackageOnResolved installs.
const debEnv = "PILOT_LAB_DEB"

// service installs what a package does, on a machine that doesn't run yet.
func (m *Machine) service() {
	m.lab.tb.Helper()
	source, err := filepath.Abs("../../packaging/linux")
	if err != nil {
		m.lab.tb.Fatalf("%v", err)
	}
	script := fmt.Sprintf(`cd "$1"
install -m 755 %s usr/bin/pilot
install -m 644 %[2]s/pilot.service %[2]s/pilot-dns.socket %[2]s/pilot-dns@.service usr/lib/systemd/system
install -m 644 %[2]s/sysusers.conf usr/lib/sysusers.d/pilot.conf
chroot . sh -ec 'systemd-sysusers pilot.conf; systemctl -q enable pilot.service'`, Binary(m.lab.tb), source)
	if out, err := m.mounted("sh", "-ec", script, "sh", filepath.Join(m.root, "root")).CombinedOutput(); err != nil {
		m.lab.tb.Fatalf("lab: install the service on %s: %v\n%s", m.name, err, out)
	}
}

const ownResolved = `cd /debs && dpkg -i systemd-resolved_*.deb >/dev/null
systemctl -q disable NetworkManager
printf '[Resolve]\nLLMNR=no\nMulticastDNS=no\n' >/etc/systemd/resolved.conf # each unknown name would take seconds
`

// networkd gives eth0 its address and the DNS server by systemd-networkd.
const networkd = `systemctl -q enable systemd-networkd
cat >/etc/systemd/network/eth.network <<end
[Match]
Name=eth0
[Network]
Address=192.0.2.%d/24
DNS=192.0.2.53
Domains=office.example
LinkLocalAddressing=no
end
`

// strict makes systemd-resolved want DNSSEC and DNS over TLS of each link that does not say otherwise, as the office's does.
const strict = `printf '[Resolve]\nLLMNR=yes\nMulticastDNS=yes\nDNSSEC=yes\nDNSOverTLS=yes\n' >/etc/systemd/resolved.conf
printf 'LLMNR=no\nDNSSEC=no\nDNSOverTLS=no\n' >>/etc/systemd/network/eth.network
`

// networkManager does the same by NetworkManager.
const networkManager = `systemctl -q enable NetworkManager
cat >/etc/NetworkManager/system-connections/office.nmconnection <<end
[connection]
id=office
type=ethernet
interface-name=eth0
[ipv4]
method=manual
address1=192.0.2.%d/24
dns=192.0.2.53;
dns-search=office.example;
[ipv6]
method=disabled
end
printf '[main]\nno-auto-default=*\n[keyfile]\nunmanaged-devices=interface-name:vpn0\n' >/etc/NetworkManager/conf.d/lab.conf
chmod 600 /etc/NetworkManager/system-connections/office.nmconnection
`

// resolvectl is what systemd-resolved says of all links but ours, which has another number each time.
func resolvectl(ctx context.Context, h *Host) any {
	return h.Run(ctx, "sh", "-c", "resolvectl dns; resolvectl domain; resolvectl default-route; cat /run/systemd/resolve/resolv.conf").Stdout
}

// booted settings, by name, with the script that makes the machine.
type booted struct {
	setting
	script string
}

func settings() []booted {
	restart := func(units string) func(*Host) error {
		return func(h *Host) error { return shell(h, "systemctl restart %s", units) }
	}
	byNetworkd := func(h *Host, server int) error {
		return shell(h, "sed -i 's/^DNS=.*/DNS=192.0.2.%d/' /etc/systemd/network/eth.network; networkctl reload; networkctl reconfigure eth0", server)
	}
	byManager := func(h *Host, server int) error {
		return shell(h, "nmcli connection modify office ipv4.dns 192.0.2.%d; nmcli -w 10 device reapply eth0 >/dev/null || nmcli -w 10 connection up office >/dev/null", server)
	}
	anotherVPN := func(h *Host, up bool) error {
		if up {
			return shell(h, "ip link set vpn0 up; resolvectl dns vpn0 198.51.100.55; resolvectl domain vpn0 '~.' corp.example")
		}
		return shell(h, "resolvectl revert vpn0; ip link set vpn0 down")
	}
	// late is a start of the daemon before that of the resolver.
	late := func(unit string) func(*Host) error {
		return func(h *Host) error {
			return shell(h, `systemctl mask -q --runtime --now %[1]s; systemctl restart pilot
until pilot status --json | grep -q '"dns"'; do sleep 0.1; done
systemctl unmask -q --runtime %[1]s; systemctl start %[1]s`, unit)
		}
	}
	byResolvconf := func(h *Host, server int) error {
		return shell(h, "printf 'nameserver 192.0.2.%d\nsearch office.example\n' | resolvconf -a eth0.dhcp", server)
	}
	vpnByResolvconf := func(h *Host, up bool) error {
		if up {
			return shell(h, "echo nameserver 192.0.2.55 | resolvconf -a tun0.vpn")
		}
		return shell(h, "resolvconf -d tun0.vpn")
	}
	all := []booted{
		{setting{name: "systemd-resolved, networkd", mode: "systemd-resolved", prepare: byNetworkd, vpn: anotherVPN,
			restart: restart("systemd-resolved"), late: late("systemd-resolved"), state: resolvectl}, ownResolved + networkd},
		{setting{name: "systemd-resolved, strict", mode: "systemd-resolved", prepare: byNetworkd,
			restart: restart("systemd-resolved"), state: resolvectl}, ownResolved + networkd + strict},
		{setting{name: "systemd-resolved, NetworkManager", mode: "systemd-resolved", prepare: byManager, vpn: anotherVPN,
			restart: restart("systemd-resolved NetworkManager"), state: resolvectl}, ownResolved + networkManager},
		{setting{name: "NetworkManager", mode: "file", prepare: byManager,
			restart: restart("NetworkManager"), late: late("NetworkManager")}, networkManager},
		{setting{name: "resolvconf", mode: "resolvconf", prepare: byResolvconf, vpn: vpnByResolvconf,
			restart: restart("resolvconf")}, "cd /debs && dpkg -i resolvconf_*.deb >/dev/null; systemctl -q disable NetworkManager; systemctl -q enable systemd-networkd\n" + networkd},
		{setting{name: "openresolv", mode: "resolvconf", prepare: byResolvconf, vpn: vpnByResolvconf,
			restart: func(h *Host) error { return shell(h, "resolvconf -u") }}, "cd /debs && dpkg -i openresolv_*.deb >/dev/null; systemctl -q disable NetworkManager; systemctl -q enable systemd-networkd\n" + networkd},
	}
	for i := range all {
		all[i].service = true
		if strings.Contains(all[i].script, "%d") {
			all[i].script = fmt.Sprintf(all[i].script, 20+i)
		}
	}
	return all
}

// Whole systems, with systemd as process 1 and the daemon as a service of its own user.
func TestResolverServices(t *testing.T) {
	if os.Getenv(imageEnv) == "" {
		t.Skipf("boots whole systems: make dns-matrix, which sets %s", imageEnv)
	}
	o := openOffice(t)
	machines := map[*Host]*Machine{}
	var trials []*trial
	for i, s := range settings() {
		m := o.machine(fmt.Sprintf("m%d", i), s.script, 20+i)
		m.service()
		machines[m.Host] = m
		trials = append(trials, o.try(m.Host, s.setting))
	}
	runAll(t, trials, func(x *trial) {
		x.machine = machines[x.h]
		x.must(x.machine.boot())
	}, func(x *trial) {
		if x.mode == "systemd-resolved" {
			x.checkLink()
		}
		x.machine.halt()
	})
}

// machine makes one whose addresses end so: eth0 in the office, for its system to configure, and vpn0 in the other network.
func (o *office) machine(name, script string, last int) *Machine {
	o.t.Helper()
	m := o.Machine(name, script)
	m.Connect(o.lan, fmt.Sprintf("192.0.2.%d/24", last))
	m.Host.must("ip", "addr", "flush", "dev", "eth0")
	m.Connect(o.corp, fmt.Sprintf("198.51.100.%d/24", last))
	m.Host.must("ip", "link", "set", "eth1", "down")
	m.Host.must("ip", "link", "set", "eth1", "name", "vpn0")
	return m
}

// What a person does with the package on a system that has systemd-resolved: installs it, joins, reaches a peer by its bare
// name, also after a reboot, and purges it. Then names resolve as before.
func TestPackageOnResolved(t *testing.T) {
	deb := os.Getenv(debEnv)
	if deb == "" || os.Getenv(imageEnv) == "" {
		t.Skipf("boots a system and installs a package: make packages-test, which sets %s and %s", debEnv, imageEnv)
	}
	ctx := deadline(t, 3*time.Minute)
	o := openOffice(t)
	s := settings()[0]
	m := o.machine("m", s.script, 20)
	content, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	m.WriteFile("pilot.deb", string(content), 0o644)
	x := o.try(m.Host, s.setting)
	x.t, x.machine = t, m
	x.must(m.boot())
	before := x.settle(ctx)
	x.must(shell(m.Host, "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends %s >/dev/null 2>&1", filepath.Join(m.Home(), "pilot.deb")))
	x.must(x.up())
	known := func(ctx context.Context) error { return x.knows(ctx, m.Host, true, 53) }
	if err := poll(patience, known); err != nil {
		t.Errorf("after the installation: %v", err)
	}
	x.checkLink()
	x.must(m.reboot())
	if err := poll(patience, known); err != nil {
		t.Errorf("after a reboot: %v", err)
	}
	x.must(shell(m.Host, "DEBIAN_FRONTEND=noninteractive apt-get purge -qq -y pilot-protocol >/dev/null 2>&1"))
	if err := poll(patience, func(ctx context.Context) error { return x.asBefore(ctx, before, 53) }); err != nil {
		t.Errorf("after the purge: %v", err)
	}
}

// checkLink looks at what systemd-resolved knows of our link: nothing of the system's own wishes holds for it, and no
// other name is asked there. Addresses have names.
func (x *trial) checkLink() {
	ctx := deadline(x.t, 30*time.Second)
	for property, want := range map[string]string{
		"dns": "::53", "domain": "pilot.internal ~", "default-route": "no", "llmnr": "no", "mdns": "no", "dnssec": "no", "dnsovertls": "no",
	} {
		said := x.h.Must(ctx, "resolvectl", property, "pilot0")
		if _, value, _ := strings.Cut(strings.TrimSpace(said), "): "); !strings.Contains(value, want) {
			x.t.Errorf("%s is %q instead of %q", property, value, want)
		}
	}
	if said := x.h.Must(ctx, "getent", "hosts", x.self.Address.String()); !strings.Contains(said, "planner.pilot.internal") {
		x.t.Errorf("the address of planner has the name %q", said)
	}
}
