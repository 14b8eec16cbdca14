// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Control is one end of the socket between a sandbox and who has started it. One goroutine sends and one receives.
type Control struct{ conn *net.UnixConn }

// maxControl bounds a message, in bytes.
const maxControl = 64 << 10

// controlFD is where the stage finds its end.
const controlFD = 3

// Send sends a message, and a file with it unless that is nil. The caller keeps its own descriptor.
func (c *Control) Send(message []byte, f *os.File) error {
	var rights []byte
	if f != nil {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var sendErr error
		err = raw.Control(func(fd uintptr) {
			rights = unix.UnixRights(int(fd))
			_, _, sendErr = c.conn.WriteMsgUnix(message, rights, nil)
		})
		return errors.Join(err, sendErr)
	}
	_, err := c.conn.Write(message)
	return err
}

// Receive waits for a message; f is nil where no file came with it. After the other end's end the error is net.ErrClosed.
func (c *Control) Receive() (message []byte, f *os.File, err error) {
	buf, oob := make([]byte, maxControl), make([]byte, unix.CmsgSpace(4))
	n, on, _, _, err := c.conn.ReadMsgUnix(buf, oob)
	if n == 0 && (err == nil || errors.Is(err, unix.ECONNRESET)) {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil || len(messages) == 0 {
		return buf[:n], nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return buf[:n], nil, err
	}
	unix.CloseOnExec(fds[0])
	return buf[:n], os.NewFile(uintptr(fds[0]), "passed"), nil
}

// Close ends the conversation.
func (c *Control) Close() error { return c.conn.Close() }

// Sandbox is the first process of a sandbox, as who started it has it.
type Sandbox struct {
	*Control
	cmd  *exec.Cmd
	held *os.File // its network
}

// Hold keeps the network there until Close, also after the last process of the sandbox: without it, whoever carries its packets
// would see an error before it can know of the end. The process must have been heard of.
func (s *Sandbox) Hold() (err error) {
	s.held, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", s.cmd.Process.Pid))
	return err
}

// Close ends the conversation, and with that the sandbox.
func (s *Sandbox) Close() error {
	err := s.Control.Close()
	if s.held != nil {
		err = errors.Join(err, s.held.Close())
	}
	return err
}

// StartSandbox starts this program again, in namespaces of its own, as the same user and with the same files at its standard
// streams: no others of this process's reach it. It has the command line args, whose first word is the program's name, and
// the environment env. SandboxControl is its end of Control. It ends with that.
func StartSandbox(args, env []string) (*Sandbox, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the sandbox: %w", os.NewSyscallError("socketpair", err))
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	control, err := newControl(fds[0])
	if err != nil {
		return nil, fmt.Errorf("start the sandbox: %w", err)
	}
	closeInherited()
	uid, gid := os.Geteuid(), os.Getegid()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: args, Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			// The user stays who he is. A map of more than himself would need privileges.
			UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
			AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP},
		},
	}
	if err := cmd.Start(); err != nil {
		control.Close()
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: %w", ErrNamespaces, err)
		}
		return nil, fmt.Errorf("start the sandbox: %w", err)
	}
	return &Sandbox{Control: control, cmd: cmd}, nil
}

func newControl(fd int) (*Control, error) {
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return &Control{conn: conn.(*net.UnixConn)}, nil
}

// Wait returns the status of the first process, when all processes of the sandbox have ended.
func (s *Sandbox) Wait() (status int, err error) {
	err = s.cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return programStatus(exit.Sys().(syscall.WaitStatus)), nil
	}
	return 0, fmt.Errorf("wait for the sandbox: %w", err)
}

// Kill ends all processes of the sandbox at once.
func (s *Sandbox) Kill() { _ = s.cmd.Process.Kill() }

// SandboxControl is the other end of a Sandbox's Control: for the process that StartSandbox has started, and for the one
// that it became by SealSandbox.
func SandboxControl() (*Control, error) {
	if kind, err := unix.GetsockoptInt(controlFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET || os.Getpid() != 1 {
		return nil, ErrStage
	}
	unix.CloseOnExec(controlFD)
	// The descriptor itself stays: SealSandbox hands it on.
	fd, err := unix.FcntlInt(controlFD, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return newControl(fd)
}

// SealSandbox gives up all that this process could do within its namespaces, for itself and all that will descend from
// it, puts all of them behind a filter of system calls, and becomes this program again, with the command line args. It returns only if it fails.
func SealSandbox(args, env []string) error {
	// Credentials belong to a thread; the thread that calls exec is the one that remains.
	runtime.LockOSThread()
	if err := dropAll(); err != nil {
		return err
	}
	if err := filterCalls(); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(controlFD, unix.F_SETFD, 0); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	return os.NewSyscallError("exec", syscall.Exec("/proc/self/exe", args, env))
}

// dropAll takes away every privilege of the calling thread, which must be locked, and all ways to get one back: through
// programs with set-user-ID, and through being root.
func dropAll() error {
	for c := 0; ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more
		}
		if err != nil {
			return os.NewSyscallError("drop from the bounding set", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("clear the ambient set", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("no new privileges", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return os.NewSyscallError("capset", unix.Capset(&header, &none[0]))
}

// RunSandboxed is the first process of a sandbox: it runs a program, passes on the signals that come through control as
// text, and returns the status that the program ended with. The program's path was looked up; err says why it could not be
// started. When control ends, everything ends.
func RunSandboxed(control *Control, path string, args, env []string) (status int, err error) {
	ignoreSignals()
	// Nobody in the sandbox can look into this process, or take its descriptors.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, os.NewSyscallError("prctl", err)
	}
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return notStartedStatus(err), fmt.Errorf("start %s: %w", path, err)
	}
	go func() {
		for {
			message, _, err := control.Receive()
			if err != nil {
				os.Exit(statusSignal + int(unix.SIGKILL)) // the kernel ends all others with this one
			}
			if number, err := strconv.Atoi(string(message)); err == nil {
				_ = unix.Kill(pid, unix.Signal(number))
			}
		}
	}()
	for {
		var s syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &s, 0, nil) // processes that lost their parent too
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, os.NewSyscallError("wait", err)
		case ended == pid && (s.Exited() || s.Signaled()):
			return programStatus(s), nil
		}
	}
}

// Signal passes a signal on to a sandbox's program.
func (s *Sandbox) Signal(number syscall.Signal) error {
	return s.Send([]byte(strconv.Itoa(int(number))), nil)
}

// HostSockets are the sockets in the file system that services of this host's listen on, but for those in folders that a
// sandbox doesn't have.
func HostSockets(hidden []string) []string {
	hidden = append([]string{"/run", "/var/run", os.Getenv("XDG_RUNTIME_DIR")}, hidden...)
	return sandboxSockets(readTrimmed("/proc/self/net/unix"), func(path string) bool {
		for _, dir := range hidden {
			if rel, err := filepath.Rel(dir, path); dir != "" && err == nil && filepath.IsLocal(rel) {
				return true
			}
		}
		return false
	})
}

// readTrimmed returns what a small file holds, or nothing.
func readTrimmed(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// WhyNoNamespaces asks this system for NamespaceHint.
func WhyNoNamespaces() string { return NamespaceHint(readTrimmed) }

// TerminalSignals tells whether this process is in the foreground of its terminal: what that sends (on Ctrl-C, say) reaches
// all processes of the group by itself.
func TerminalSignals() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
