// SPDX-License-Identifier: Apache-2.0

//go:build unix

package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenLocal listens on a Unix socket that root, this user and the group pilot, where there is one, may open. Its
// folder is made with 0755 if absent. A folder or path that isn't ours to use is refused with ErrInsecurePath, a socket
// on which a daemon answers with ErrLocked; a dead one of ours is replaced. Closing removes the socket.
func ListenLocal(path string) (net.Listener, error) {
	if err := checkPathLength(path); err != nil {
		return nil, err
	}
	if err := SecureDir(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// On Linux the socket file takes its permissions from the descriptor, so it is never wider than it should be,
		// not even for a moment. Elsewhere this fails, and the chmod below comes soon after.
		return c.Control(func(fd uintptr) { _ = unix.Fchmod(int(fd), 0o600) })
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	own := &localListener{Listener: l, path: path}
	if own.info, err = os.Lstat(path); err == nil {
		err = shareSocket(path)
	}
	if err != nil {
		own.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return own, nil
}

// shareSocket opens the socket for the control group, where there is one that this process may give files to.
func shareSocket(path string) error {
	if gid, ok := controlGID(); ok {
		if err := os.Lchown(path, -1, int(gid)); err == nil {
			return os.Chmod(path, 0o660)
		}
	}
	return os.Chmod(path, 0o600)
}

func controlGID() (uint32, bool) {
	g, err := user.LookupGroup(controlGroup)
	if err != nil {
		return 0, false
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(gid), err == nil
}

// clearSocket makes room at path: removes a socket of ours that nobody answers on, and refuses everything else.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := checkSocket(path, info, trusted); err != nil {
		return err
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("listen on %s: %w", path, ErrLocked)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: %w: %w", path, ErrLocked, err)
	}
	return os.Remove(path)
}

func checkSocket(path string, info fs.FileInfo, trusted func(uid uint32) bool) error {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return insecure(path, "is a symbolic link")
	case info.Mode()&fs.ModeSocket == 0:
		return insecure(path, "is not a socket (%v)", info.Mode())
	case !trusted(owner(info)):
		return insecure(path, "belongs to user %d", owner(info))
	default:
		return nil
	}
}

// checkPathLength keeps the path, with its final zero, within the system's sockaddr_un.
func checkPathLength(path string) error {
	var a unix.RawSockaddrUnix
	if len(path) >= len(a.Path) {
		return fmt.Errorf("%w: %s has %d bytes, at most %d fit; use a shorter state folder", ErrPathTooLong, path, len(path), len(a.Path)-1)
	}
	return nil
}

// localListener removes its socket when it is closed, unless another one stands in its place by then.
type localListener struct {
	net.Listener
	path string
	info fs.FileInfo
	once sync.Once
}

func (l *localListener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() {
		if now, statErr := os.Lstat(l.path); statErr == nil && l.info != nil && os.SameFile(now, l.info) {
			os.Remove(l.path)
		}
	})
	return err
}

// trustedServer returns whose socket at path may be talked to: root's, this user's, and in the system's runtime folder
// also the account's that the system service runs as. Only root can give that folder to somebody.
func trustedServer(path string) func(uid uint32) bool {
	account, err := user.Lookup(serviceAccount)
	if err != nil || filepath.Dir(path) != runtimeDir {
		return trusted
	}
	return func(uid uint32) bool { return trusted(uid) || strconv.FormatUint(uint64(uid), 10) == account.Uid }
}

// DialLocal connects to the daemon's socket. A folder, socket or process there that belongs neither to root nor to this
// user, nor to the system service's account where that is the system's socket, is refused with ErrInsecurePath before a
// byte is sent; no socket, or no daemon behind it, is an error for which
// errors.Is(err, fs.ErrNotExist) or errors.Is(err, syscall.ECONNREFUSED) holds.
func DialLocal(ctx context.Context, path string) (net.Conn, error) {
	if err := checkPathLength(path); err != nil {
		return nil, err
	}
	trusted := trustedServer(path)
	if err := checkDir(filepath.Dir(path), trusted); err != nil {
		return nil, fmt.Errorf("dial %s: %w", path, err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	if err := checkSocket(path, info, trusted); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	peer, err := PeerCaller(conn)
	if err != nil || !peer.Known || !trusted(peer.UID) {
		conn.Close()
		return nil, insecure(path, "is served by user %d (%v)", peer.UID, err)
	}
	return conn, nil
}

// PeerCaller says who is at the other end of a connection of ListenLocal's or DialLocal's, as the kernel knows it.
func PeerCaller(c net.Conn) (Caller, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return Caller{}, fmt.Errorf("caller of %T: %w", c, ErrUnsupported)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Caller{}, fmt.Errorf("caller: %w", err)
	}
	var caller Caller
	var inner error
	if err := raw.Control(func(fd uintptr) { caller, inner = peerCaller(int(fd)) }); err != nil {
		return Caller{}, fmt.Errorf("caller: %w", err)
	}
	if inner != nil {
		return Caller{}, fmt.Errorf("caller: %w", inner)
	}
	return caller, nil
}

// MayControl says whether the caller may use the local API: root, the daemon's own user, or a member of the group pilot.
func (c Caller) MayControl() bool {
	if !c.Known {
		return false
	}
	return c.UID == 0 || c.UID == uint32(os.Geteuid()) || c.member
}

// Owns reports whether the caller is a user, or one of those who may do everything: root and the daemon's own user.
func (c Caller) Owns(uid uint32) bool {
	return c.Known && (c.UID == 0 || c.UID == uint32(os.Geteuid()) || c.UID == uid)
}
