// SPDX-License-Identifier: Apache-2.0

package underlay

import "golang.org/x/sys/windows"

const (
	errAddressInUse = windows.WSAEADDRINUSE
	errMessageSize  = windows.WSAEMSGSIZE
)
