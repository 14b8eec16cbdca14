// SPDX-License-Identifier: Apache-2.0

package underlay

import "golang.org/x/sys/windows"

// setDontFragment sets IP_DONTFRAGMENT or IPV6_DONTFRAG, which have the same number (ws2ipdef.h).
func setDontFragment(fd uintptr, v6 bool) error {
	const dontFragment = 14
	level := windows.IPPROTO_IP
	if v6 {
		level = windows.IPPROTO_IPV6
	}
	return windows.SetsockoptInt(windows.Handle(fd), level, dontFragment, 1)
}
