// SPDX-License-Identifier: Apache-2.0

//go:build unix

package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// child is what this binary does when a test starts it with one of these as its first argument.
func child(what string, args []string) (code int, ok bool) {
	switch what {
	case "child:write":
		return childWrite(args[0]), true
	case "child:dial":
		return childDial(args[0]), true
	case "child:dial-local":
		return childDialLocal(args[0]), true
	case "child:dump":
		return childDump(args[0]), true
	case "child:lock":
		return childLock(args[0]), true
	}
	return 0, false
}

// pattern is a content that shows whether it is whole: its own number over and over, in a length that depends on it.
func pattern(n int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%08d\n", n)), 2000+n%3000) }

func wholePattern(data []byte) error {
	if len(data) < 9 {
		return fmt.Errorf("%d bytes", len(data))
	}
	n, err := strconv.Atoi(string(data[:8]))
	if err != nil {
		return err
	}
	if !bytes.Equal(data, pattern(n)) {
		return fmt.Errorf("content number %d is torn: %d bytes", n, len(data))
	}
	return nil
}

// childWrite writes one content after the other until it is killed. It says when the first is written.
func childWrite(path string) int {
	for n := 0; ; n++ {
		if err := WriteFileAtomic(path, pattern(n), 0o600); err != nil {
			fmt.Println(err)
			return 1
		}
		if n == 0 {
			fmt.Println("ready")
		}
	}
}

// childDial connects and prints what it is told, or "permission".
func childDial(path string) int {
	conn, err := net.Dial("unix", path)
	if errors.Is(err, os.ErrPermission) {
		fmt.Print("permission")
		return 0
	}
	if err != nil {
		fmt.Print(err)
		return 1
	}
	defer conn.Close()
	io.Copy(os.Stdout, conn)
	return 0
}

// childDialLocal connects as the CLI does, and prints nothing, or "insecure".
func childDialLocal(path string) int {
	conn, err := DialLocal(context.Background(), path)
	if errors.Is(err, ErrInsecurePath) {
		fmt.Print("insecure")
		return 0
	}
	if err != nil {
		fmt.Print(err)
		return 1
	}
	conn.Close()
	return 0
}

// childDump writes down all that a background process has of its parent.
func childDump(path string) int {
	var b strings.Builder
	fmt.Fprintf(&b, "args %q\n", os.Args)
	for _, kv := range os.Environ() {
		fmt.Fprintf(&b, "env %s\n", kv)
	}
	dir, _ := os.Getwd()
	fmt.Fprintf(&b, "dir %s\n", dir)
	fmt.Fprintf(&b, "session %v\n", isSessionLeader())
	for fd := range 64 {
		if target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
			fmt.Fprintf(&b, "fd %d %s\n", fd, target)
		}
	}
	fmt.Println("hello log")
	if err := WriteFileAtomic(path, []byte(b.String()), 0o600); err != nil {
		return 1
	}
	return 0
}

// childLock holds a lock until its input ends.
func childLock(path string) int {
	if _, err := LockFile(path); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("locked")
	io.Copy(io.Discard, os.Stdin)
	return 0
}
