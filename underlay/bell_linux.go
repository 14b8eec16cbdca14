// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"os"

	"golang.org/x/sys/unix"
)

// bell is a descriptor that can be read while it rings: for poll(2), together with sockets. Its owner's lock guards it.
type bell struct {
	fd      int
	ringing bool
	count   [8]byte // is written and read; here, so that nothing is allocated
}

func (b *bell) open() (err error) {
	b.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return os.NewSyscallError("eventfd", err)
}

func (b *bell) ring() {
	if !b.ringing {
		b.count = [8]byte{0: 1, 7: 1} // not zero in either byte order
		_, err := unix.Write(b.fd, b.count[:])
		b.ringing = err == nil
	}
}

func (b *bell) silence() {
	if b.ringing {
		_, err := unix.Read(b.fd, b.count[:])
		b.ringing = err != nil
	}
}

func (b *bell) close() error { return unix.Close(b.fd) }
