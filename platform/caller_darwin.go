// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"slices"

	"golang.org/x/sys/unix"
)

const runtimeDir = "/var/run/pilot"

// peerCaller reads the peer's effective ids and groups (unix(4), LOCAL_PEERCRED) and its process.
func peerCaller(fd int) (Caller, error) {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return Caller{}, err
	}
	groups := cred.Groups[:min(int(cred.Ngroups), len(cred.Groups))]
	c := Caller{UID: cred.Uid, Known: true}
	if len(groups) > 0 {
		c.GID = groups[0]
	}
	if pid, err := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID); err == nil {
		c.PID = int32(pid)
	}
	if gid, ok := controlGID(); ok {
		c.member = slices.Contains(groups, gid)
	}
	return c, nil
}
