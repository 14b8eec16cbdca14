// SPDX-License-Identifier: Apache-2.0

package underlay

import "golang.org/x/sys/unix"

// setDontFragment sets the option of RFC 3542, section 11.2, and its twin for IPv4 (macOS 11).
func setDontFragment(fd uintptr, v6 bool) error {
	if v6 {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_DONTFRAG, 1)
}
