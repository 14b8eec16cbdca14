// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentLimit is how many bytes the kernel may hold that it has not sent yet. More would only wait there: datagrams that
// wait longer than a round trip are better dropped, so that those inside notice.
const unsentLimit = 128 << 10

// Tune makes a TCP connection fit for datagrams: no keep-alive of the kernel's, as both ends have their own, and no long
// queue inside of it.
func Tune(conn net.Conn) {
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetKeepAlive(false)
	}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
		})
	}
}
