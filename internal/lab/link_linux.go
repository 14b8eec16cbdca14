// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// Bridge is an Ethernet switch that hosts are plugged into.
type Bridge struct {
	lab  *Lab
	name string
}

// Link is a host's interface on a bridge.
type Link struct {
	host    *Host
	name    string // of the interface in the host
	port    string // of its other end, in the fabric
	gateway string
}

// Connect plugs the host into a bridge with an address in CIDR form ("192.0.2.10/24"). The first interface is eth0.
func (h *Host) Connect(b *Bridge, address string) *Link {
	h.lab.tb.Helper()
	l := h.lab
	k := &Link{host: h, name: fmt.Sprintf("eth%d", h.links), port: fmt.Sprintf("port%d", l.ports)}
	h.links++
	l.ports++
	if err := l.wire(k); err != nil {
		l.tb.Fatalf("lab: connect %s to %s: %v", h.name, b.name, err)
	}
	l.fabric.must("ip", "link", "set", k.port, "master", b.name)
	l.fabric.must("ip", "link", "set", k.port, "up")
	// No address goes through duplicate detection: it would be unusable for a second.
	h.must("sysctl", "-q", "-w", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf."+k.name+".accept_dad=0")
	h.must("ip", "link", "set", k.name, "up")
	h.must("ip", "addr", "add", address, "dev", k.name)
	return k
}

// Add gives the interface one more address, in CIDR form.
func (k *Link) Add(address string) {
	k.host.lab.tb.Helper()
	k.host.must("ip", "addr", "add", address, "dev", k.name)
}

// Remove takes one of the interface's addresses away, in CIDR form.
func (k *Link) Remove(address string) {
	k.host.lab.tb.Helper()
	k.host.must("ip", "addr", "del", address, "dev", k.name)
}

// Gateway makes the router at address the host's default route for its kind of addresses.
func (k *Link) Gateway(address string) {
	k.host.lab.tb.Helper()
	k.gateway = address
	k.host.must("ip", "route", "replace", "default", "via", address, "dev", k.name)
}

// Move takes the interface's addresses away and gives it another one, as when a laptop changes networks. The link is
// plugged into the bridge b if that is not nil; the default route goes through gateway unless that is empty.
func (k *Link) Move(b *Bridge, address, gateway string) {
	k.host.lab.tb.Helper()
	if b != nil {
		k.host.lab.fabric.must("ip", "link", "set", k.port, "master", b.name)
	}
	k.host.must("ip", "addr", "flush", "dev", k.name, "scope", "global")
	k.host.must("ip", "addr", "add", address, "dev", k.name)
	k.gateway = ""
	if gateway != "" {
		k.Gateway(gateway)
	}
}

// Up takes the link up or down, as when a cable is plugged in or pulled.
func (k *Link) Up(up bool) {
	k.host.lab.tb.Helper()
	state := "down"
	if up {
		state = "up"
	}
	k.host.lab.fabric.must("ip", "link", "set", k.port, state)
}

// wire makes the link: one end in the fabric, the other in the host. The command runs in the fabric's network
// namespace alone, because it names the host by its process id, which is not known inside of a host.
func (l *Lab) wire(k *Link) error {
	fabric := fmt.Sprintf("--net=/proc/%d/ns/net", l.fabric.holder.Process.Pid)
	host := strconv.Itoa(k.host.holder.Process.Pid)
	out, err := exec.Command("nsenter", fabric, "ip", "link", "add", k.port, "type", "veth",
		"peer", "name", k.name, "netns", host).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
