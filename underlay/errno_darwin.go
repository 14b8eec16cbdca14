// SPDX-License-Identifier: Apache-2.0

package underlay

import "golang.org/x/sys/unix"

const (
	errAddressInUse = unix.EADDRINUSE
	errMessageSize  = unix.EMSGSIZE
)
