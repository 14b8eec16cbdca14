// SPDX-License-Identifier: Apache-2.0

// Package platform holds everything that the operating system must be told or asked: addresses and routes, DNS
// settings, local sockets and who calls on them, files that survive a crash, background processes and services.
//
// What can be decided without the system is decided in files without a suffix, and tested everywhere; the files with a
// suffix only carry it out. Nothing here keeps state between calls, unless it is written down under the state folder.
package platform

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/cpu"
)

var (
	// ErrInsecurePath says that a folder, file or socket belongs to somebody else, could be changed by somebody else, or
	// isn't of the kind that it should be.
	ErrInsecurePath = errors.New("insecure path")
	// ErrLocked says that another process holds the lock, or answers on the socket.
	ErrLocked = errors.New("in use by another process")
	// ErrPathTooLong says that a socket's path doesn't fit into the system's socket address.
	ErrPathTooLong = errors.New("socket path too long")
	// ErrUnsupported says that this system has no such thing.
	ErrUnsupported = errors.New("not supported on this system")
	// ErrInterface says that an interface's configuration makes no sense.
	ErrInterface = errors.New("invalid interface configuration")
)

// controlGroup is the group whose members may control the daemon.
const controlGroup = "pilot"

// ControlGroup names the group whose members may control the daemon, where there is one.
func ControlGroup() string { return controlGroup }

// serviceAccount is the user that the system service runs as, where a package has made it.
const serviceAccount = "pilot"

// DefaultStateDir is the folder in which the system's daemon keeps its state.
func DefaultStateDir() string {
	switch runtime.GOOS {
	case "windows":
		base := os.Getenv("ProgramData")
		if base == "" {
			base = `C:\ProgramData`
		}
		return filepath.Join(base, "pilot")
	case "darwin":
		return "/Library/Application Support/pilot"
	default:
		return "/var/lib/pilot"
	}
}

// UserStateDir is the folder in which a daemon of this user's own keeps its state. It is empty where the user's daemon is
// the system's, as root's is, or where the user has no home.
func UserStateDir() string {
	if Privileged() {
		return ""
	}
	base := ""
	switch runtime.GOOS {
	case "windows":
		base = os.Getenv("LOCALAPPDATA")
	case "darwin":
		if home, err := os.UserHomeDir(); err == nil {
			base = filepath.Join(home, "Library", "Application Support")
		}
	default:
		// Of the base directory specification; a relative path in the variable is to be ignored.
		if base = os.Getenv("XDG_STATE_HOME"); !filepath.IsAbs(base) {
			base = ""
			if home, err := os.UserHomeDir(); err == nil {
				base = filepath.Join(home, ".local", "state")
			}
		}
	}
	if !filepath.IsAbs(base) {
		return ""
	}
	return filepath.Join(base, "pilot")
}

// SocketPath is where the daemon with this state folder listens: in the system's runtime folder for the default one,
// else inside the folder itself. On Windows it is the name of a pipe.
func SocketPath(stateDir string) string {
	return socketPath(filepath.Clean(stateDir), filepath.Clean(stateDir) == filepath.Clean(DefaultStateDir()))
}

// HasAES says whether this processor has instructions for AES and for carry-less multiplication, so that AES-GCM is
// faster than ChaCha20-Poly1305, and in constant time.
func HasAES() bool {
	switch runtime.GOARCH {
	case "amd64":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ
	case "arm64":
		// Every 64-bit ARM processor of Apple's has them; that system has no way to ask that the library knows.
		return runtime.GOOS == "darwin" || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	default:
		return false
	}
}

// candidate says whether a peer on another host could use the address to reach this one.
func candidate(a netip.Addr) bool {
	a = a.Unmap()
	switch {
	case !a.IsValid(), a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a.IsInterfaceLocalMulticast():
		return false
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	default:
		return true
	}
}
