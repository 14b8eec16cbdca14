// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"encoding/binary"
	"runtime"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func TestSandboxFilter(t *testing.T) {
	instructions, err := sandboxFilter()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	native, foreign := uint32(unix.AUDIT_ARCH_X86_64), uint32(unix.AUDIT_ARCH_I386)
	if runtime.GOARCH == "arm64" {
		native, foreign = unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM
	}
	refused := func(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }
	for _, c := range []struct {
		name                      string
		arch, call, first, second uint32
		want                      uint32
	}{
		{"read", native, unix.SYS_READ, 0, 0, unix.SECCOMP_RET_ALLOW},
		{"execve", native, unix.SYS_EXECVE, 16, 0x5412, unix.SECCOMP_RET_ALLOW},
		{"socket, IPv4", native, unix.SYS_SOCKET, unix.AF_INET, 1, unix.SECCOMP_RET_ALLOW},
		{"socket, IPv6", native, unix.SYS_SOCKET, unix.AF_INET6, 0x5412, unix.SECCOMP_RET_ALLOW},
		{"socket, Unix", native, unix.SYS_SOCKET, unix.AF_UNIX, 1, unix.SECCOMP_RET_ALLOW},
		{"socket, netlink", native, unix.SYS_SOCKET, unix.AF_NETLINK, 3, unix.SECCOMP_RET_ALLOW},
		{"socket, vsock", native, unix.SYS_SOCKET, unix.AF_VSOCK, 1, refused(unix.EAFNOSUPPORT)},
		{"socket, Bluetooth", native, unix.SYS_SOCKET, unix.AF_BLUETOOTH, 1, refused(unix.EAFNOSUPPORT)},
		{"socket, packet", native, unix.SYS_SOCKET, unix.AF_PACKET, 3, refused(unix.EAFNOSUPPORT)},
		{"ioctl, of files", native, unix.SYS_IOCTL, unix.AF_VSOCK, unix.TCGETS, unix.SECCOMP_RET_ALLOW},
		{"ioctl, keys", native, unix.SYS_IOCTL, 0, unix.TIOCSTI, refused(unix.EPERM)},
		{"ioctl, console", native, unix.SYS_IOCTL, 0, tiocLinux, refused(unix.EPERM)},
		{"io_uring", native, unix.SYS_IO_URING_SETUP, 8, 0, refused(unix.ENOSYS)},
		{"another processor's", foreign, unix.SYS_READ, 0, 0, refused(unix.ENOSYS)},
		{"another convention's", native, unix.SYS_SOCKET | x32, unix.AF_VSOCK, 1, refused(unix.ENOSYS)},
	} {
		// The interpreter reads in the order of the network, the kernel in the machine's.
		data := make([]byte, 64)
		for off, v := range map[int]uint32{offCall: c.call, offArch: c.arch, offFirst: c.first, offSecond: c.second} {
			binary.BigEndian.PutUint32(data[off:], v)
		}
		if got, err := vm.Run(data); err != nil || uint32(got) != c.want {
			t.Errorf("%s: %#x, %v instead of %#x", c.name, got, err, c.want)
		}
	}
}
