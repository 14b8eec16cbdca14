// SPDX-License-Identifier: Apache-2.0

package platform

// Caller is the process at the other end of a local connection. UID and GID mean nothing on Windows, where the pipe
// itself admits only those who may control the daemon.
type Caller struct {
	UID, GID uint32
	PID      int32 // 0 where the system doesn't tell
	Known    bool  // false in the zero value, which may do nothing

	member bool // of the control group
}
