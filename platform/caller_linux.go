// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

const runtimeDir = "/run/pilot"

// peerCaller reads the credentials that the peer had when it connected (unix(7), SO_PEERCRED), and its supplementary
// groups then (SO_PEERGROUPS), which also cover users that /etc/group doesn't list.
func peerCaller(fd int) (Caller, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Caller{}, err
	}
	c := Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid, Known: true}
	if gid, ok := controlGID(); ok {
		c.member = c.GID == gid || slices.Contains(peerGroups(fd), gid)
	}
	return c, nil
}

// peerGroups returns none when the kernel can't tell.
func peerGroups(fd int) []uint32 {
	groups := make([]uint32, 65536) // NGROUPS_MAX
	size := uint32(len(groups) * 4)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil
	}
	return groups[:size/4]
}
