// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

// socketPath names a pipe. The protected prefix can be used by administrators only, so nobody else can squat on it.
func socketPath(stateDir string, isDefault bool) string {
	if isDefault {
		return `\\.\pipe\ProtectedPrefix\Administrators\pilot`
	}
	sum := sha256.Sum256([]byte(strings.ToLower(stateDir)))
	return `\\.\pipe\pilot-` + hex.EncodeToString(sum[:8])
}

// ListenLocal listens on a named pipe that only SYSTEM, administrators and this user may open, and only from this
// machine. A name that is taken is refused with ErrLocked.
func ListenLocal(path string) (net.Listener, error) {
	sid, err := ownSID()
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Only in message mode can one direction of a pipe be closed on its own.
	l, err := winio.ListenPipe(path, &winio.PipeConfig{SecurityDescriptor: pipeSDDL(sid.String()), MessageMode: true})
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_PIPE_BUSY) {
		return nil, fmt.Errorf("listen on %s: %w: %w", path, ErrLocked, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// DialLocal connects to the daemon's pipe. One whose owner is neither SYSTEM, the administrators nor this user is
// refused with ErrInsecurePath before a byte is sent.
func DialLocal(ctx context.Context, path string) (net.Conn, error) {
	conn, err := winio.DialPipeContext(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := checkPipeOwner(conn); err != nil {
		conn.Close()
		return nil, insecure(path, "%v", err)
	}
	return conn, nil
}

func pipeHandle(conn net.Conn) (windows.Handle, error) {
	f, ok := conn.(interface{ Fd() uintptr })
	if !ok {
		return 0, fmt.Errorf("%T is not a pipe: %w", conn, ErrUnsupported)
	}
	return windows.Handle(f.Fd()), nil
}

func checkPipeOwner(conn net.Conn) error {
	h, err := pipeHandle(conn)
	if err != nil {
		return err
	}
	sd, err := windows.GetSecurityInfo(h, windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("has no readable owner: %w", err)
	}
	return checkOwner(sd)
}

func checkOwner(sd *windows.SECURITY_DESCRIPTOR) error {
	owner, _, err := sd.Owner()
	if err != nil {
		return fmt.Errorf("has no owner: %w", err)
	}
	own, err := ownSID()
	if err != nil {
		return err
	}
	if owner.Equals(own) || owner.IsWellKnown(windows.WinLocalSystemSid) || owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) {
		return nil
	}
	return fmt.Errorf("belongs to %s", owner)
}

func ownSID() (*windows.SID, error) {
	u, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("find own user: %w", err)
	}
	return u.User.Sid, nil
}

// PeerCaller says which process is at the other end of a connection of ListenLocal's.
func PeerCaller(c net.Conn) (Caller, error) {
	h, err := pipeHandle(c)
	if err != nil {
		return Caller{}, err
	}
	var pid uint32
	if err := windows.GetNamedPipeClientProcessId(h, &pid); err != nil {
		return Caller{}, fmt.Errorf("caller: %w", err)
	}
	return Caller{PID: int32(pid), Known: true}, nil
}

// MayControl says whether the caller may use the local API. Whoever could open the pipe may.
func (c Caller) MayControl() bool { return c.Known }

// Owns reports whether the caller is a user, or may do everything: whoever gets through the pipe may.
func (c Caller) Owns(uint32) bool { return c.Known }
