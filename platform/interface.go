// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Interface is what the overlay's interface should be like.
type Interface struct {
	Name    string
	MTU     int          // bytes; at least 1280, as IPv6 demands
	Address netip.Addr   // IPv6, set as a /128
	Route   netip.Prefix // IPv6, sent into the interface
	// Segments is how many segments the kernel may hand over as one packet; 0: as many as it likes. Only Linux hands over
	// more than one.
	Segments int
}

func (i Interface) validate() error {
	switch {
	case i.Name == "":
		return fmt.Errorf("%w: no name", ErrInterface)
	case i.MTU < 1280 || i.MTU > 65535:
		return fmt.Errorf("%w: MTU %d", ErrInterface, i.MTU)
	case !i.Address.Is6() || i.Address.Is4In6() || i.Address.Zone() != "":
		return fmt.Errorf("%w: address %v is not an IPv6 address", ErrInterface, i.Address)
	case !i.Route.IsValid() || !i.Route.Addr().Is6() || i.Route.Masked() != i.Route:
		return fmt.Errorf("%w: route %v is not an IPv6 prefix", ErrInterface, i.Route)
	default:
		return nil
	}
}

// command is a program with its arguments.
type command []string

// ifconfigCommands are macOS's commands for an interface. Adding what is there already isn't an error of ifconfig's;
// route is asked to delete first, which may fail.
func ifconfigCommands(i Interface) (setup []command, unroute, route command) {
	setup = []command{
		{"/sbin/ifconfig", i.Name, "mtu", strconv.Itoa(i.MTU)},
		{"/sbin/ifconfig", i.Name, "inet6", i.Address.String(), "prefixlen", "128", "alias"},
		{"/sbin/ifconfig", i.Name, "inet6", "-nud"},
		{"/sbin/ifconfig", i.Name, "up"},
	}
	unroute = command{"/sbin/route", "-q", "-n", "delete", "-inet6", i.Route.String(), "-interface", i.Name}
	route = command{"/sbin/route", "-q", "-n", "add", "-inet6", i.Route.String(), "-interface", i.Name}
	return setup, unroute, route
}

// netshCommands are Windows' commands for an interface. Everything is kept in the active store only, so that nothing
// outlives the adapter. "add" fails when the object exists, then "set" is tried in its place.
func netshCommands(i Interface) (mtu, addAddress, setAddress, addRoute, setRoute command) {
	name := "interface=" + i.Name
	mtu = command{"netsh", "interface", "ipv6", "set", "subinterface", i.Name, "mtu=" + strconv.Itoa(i.MTU), "store=active"}
	address := command{name, "address=" + i.Address.String() + "/128", "store=active"}
	// Without duplicate address detection the address is usable at once.
	addAddress = append(command{"netsh", "interface", "ipv6", "add", "address"}, address...)
	setAddress = append(command{"netsh", "interface", "ipv6", "set", "address"}, address...)
	route := command{"prefix=" + i.Route.String(), name, "metric=0", "store=active"}
	addRoute = append(command{"netsh", "interface", "ipv6", "add", "route"}, route...)
	setRoute = append(command{"netsh", "interface", "ipv6", "set", "route"}, route...)
	return mtu, addAddress, setAddress, addRoute, setRoute
}

// netshNoDAD switches duplicate address detection and router discovery off on an interface.
func netshNoDAD(name string) command {
	return command{"netsh", "interface", "ipv6", "set", "interface", "interface=" + name,
		"dadtransmits=0", "routerdiscovery=disabled", "managedaddress=disabled", "otherstateful=disabled", "store=active"}
}

// InterfacePrefix begins the names that this program wishes for its virtual interfaces; a number follows. macOS chooses its own.
const InterfacePrefix = "pilot"

// excluded reports whether an interface's name begins with a prefix that is not empty.
func excluded(name, prefix string) bool { return prefix != "" && strings.HasPrefix(name, prefix) }
