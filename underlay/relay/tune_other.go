// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package relay

import "net"

// Tune makes a TCP connection fit for datagrams: no keep-alive of the system's, as both ends have their own.
func Tune(conn net.Conn) {
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetKeepAlive(false)
	}
}
