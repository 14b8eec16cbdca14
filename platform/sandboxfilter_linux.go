// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What a network namespace doesn't hold back: sockets of families that are not in it (those to the machine that a virtual one
// runs on, above all), and keys pressed on the terminal in the place of its user. io_uring makes sockets without the calls that
// are looked at here, and is not there, as in most containers.

// Of struct seccomp_data (seccomp(2)): the number of the call, the kind of processor that it is for, and the lower halves of
// the first arguments.
const (
	offCall   = 0
	offArch   = 4
	offFirst  = 16
	offSecond = 24
)

// x32 marks calls of another calling convention.
const x32 = 0x40000000

// sandboxFilter looks at each system call of a sandbox.
func sandboxFilter() ([]bpf.Instruction, error) {
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	switch runtime.GOARCH {
	case "amd64":
	case "arm64":
		arch = unix.AUDIT_ARCH_AARCH64
	default:
		return nil, fmt.Errorf("a sandbox on %s: %w", runtime.GOARCH, ErrUnsupported)
	}
	refuse := func(e unix.Errno) bpf.Instruction { return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(e)} }
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		refuse(unix.ENOSYS),
		bpf.LoadAbsolute{Off: offCall, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: x32, SkipFalse: 1},
		refuse(unix.ENOSYS),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_IO_URING_SETUP, SkipFalse: 1},
		refuse(unix.ENOSYS),

		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_SOCKET, SkipFalse: 6},
		bpf.LoadAbsolute{Off: offFirst, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_UNIX, SkipTrue: 8},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 7},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: 6},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_NETLINK, SkipTrue: 5},
		refuse(unix.EAFNOSUPPORT),

		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_IOCTL, SkipFalse: 3},
		bpf.LoadAbsolute{Off: offSecond, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSTI, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: tiocLinux, SkipTrue: 1},
		allow,
		refuse(unix.EPERM),
	}, nil
}

// tiocLinux is TIOCLINUX, by which a console can be told to paste.
const tiocLinux = 0x541c

// filterCalls puts the calling thread, and all that will descend from it, behind the filter.
func filterCalls() error {
	instructions, err := sandboxFilter()
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(instructions)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	return os.NewSyscallError("filter system calls", err)
}
