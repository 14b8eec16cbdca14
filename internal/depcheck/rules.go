// SPDX-License-Identifier: Apache-2.0

// Package depcheck holds the rules of the house and finds where the source breaks them: which package may import
// which, which library has which single door, no init functions, no variables that a package shares with itself.
//
// It reads the source of every system at once, whatever its build constraints say, and compiles nothing.
package depcheck

import (
	"slices"
	"strings"
)

// Module is the path that the imports of this project begin with.
const Module = "github.com/pilot-protocol/pilot"

// room is a folder with a job. Its packages import their own room's, those of rooms in rows above, and no others.
type room struct {
	folder string // "." is the root package alone
	row    int
}

// free is the row of rooms that may import anything, and that no other room may import.
const free = 1000

// rooms is the table of the design. Where folders nest, the longest that fits counts.
func rooms() []room {
	return []room{
		{"identity", 0}, {"tun", 0}, {"platform", 0},
		{"noise", 1}, {"policy", 1}, {"netstack", 1}, {"coordinator/api", 1},
		{"underlay", 2}, {"magicdns", 2},
		{"overlay", 3}, {"coordinator", 3},
		{"node", 4},
		{"cmd/pilot", 5}, {".", 5},
		{"packaging", free}, {"internal/lab", free}, {"internal/depcheck", free},
	}
}

// door says which rooms alone may import a library: usually one.
type door struct {
	library string // a module or a path inside of one
	rooms   []string
}

func doors() []door {
	return []door{
		{"github.com/fxamacker/cbor", []string{"identity"}},
		{"golang.zx2c4.com/wireguard", []string{"tun"}},
		{"golang.zx2c4.com/wintun", []string{"tun"}},
		{"github.com/vishvananda/netlink", []string{"platform"}},
		{"github.com/vishvananda/netns", []string{"platform"}},
		{"github.com/godbus/dbus", []string{"platform"}},
		{"github.com/coreos/go-systemd/v22/dbus", []string{"platform"}},
		{"github.com/Microsoft/go-winio", []string{"platform"}},
		{"golang.org/x/sys/windows/svc", []string{"platform"}},
		{"github.com/flynn/noise", []string{"noise"}},
		{"gvisor.dev/gvisor", []string{"netstack"}},
		{"github.com/miekg/dns", []string{"magicdns"}},
		{"github.com/nats-io", []string{"coordinator"}},
		{"github.com/pion", []string{"underlay"}},
		{"github.com/huin/goupnp", []string{"underlay"}},
		{"github.com/jackpal/go-nat-pmp", []string{"underlay"}},
		{"github.com/prometheus", []string{"node"}},
		{"github.com/urfave/cli", []string{"cmd/pilot"}},
	}
}

// within tells whether path is folder or below it.
func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

// roomOf finds the room of a package's folder.
func roomOf(folder string) (room, bool) {
	var best room
	found := false
	for _, r := range rooms() {
		if within(folder, r.folder) && (!found || len(r.folder) > len(best.folder)) {
			best, found = r, true
		}
	}
	return best, found
}

// mayImport says why a package may not import another, or nothing. Both are folders, relative to the module's.
func mayImport(from, to string) string {
	a, ok := roomOf(from)
	if !ok {
		return "is in no room: give its folder a row in internal/depcheck"
	}
	b, ok := roomOf(to)
	switch {
	case !ok:
		return "imports " + to + ", which is in no room"
	case a.folder == b.folder:
		return ""
	case b.row == free:
		return "imports " + to + ", which is for nobody else"
	case a.row == b.row:
		return "imports " + to + " sideways: both are on one row"
	case a.row < b.row:
		return "imports " + to + " upwards: state goes down by Set, events come up by channel"
	}
	return ""
}

// mayUse says why a package may not import a library, or nothing.
func mayUse(from, library string) string {
	for _, d := range doors() {
		if !within(library, d.library) {
			continue
		}
		if r, ok := roomOf(from); ok && slices.Contains(d.rooms, r.folder) {
			return ""
		}
		return "imports " + library + ", whose one door is " + strings.Join(d.rooms, ", ")
	}
	return ""
}
