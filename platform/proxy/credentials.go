// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

const (
	// commandLimit bounds the command that prints credentials.
	commandLimit = 10 * time.Second
	// maxCredentials bounds what a file or a command may hold, in bytes.
	maxCredentials = 4096
)

// credentials for a proxy; both empty: none. It has no String method, and formats as a mark.
type credentials struct{ user, password string }

// Format keeps them out of logs.
func (credentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "<credentials>") }

// source is where credentials come from that are not in the proxy's URL. A command goes before a file.
type source struct{ file, command string }

func (s source) empty() bool { return s == source{} }

// read returns the credentials as they are now. Its errors hold nothing of what was read, nor the command.
func (s source) read(ctx context.Context) (credentials, error) {
	if s.command != "" {
		return s.run(ctx)
	}
	f, err := os.Open(s.file)
	if err != nil {
		return credentials{}, fmt.Errorf("%w: %s: %w", ErrConfig, AuthFile, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCredentials))
	if err != nil {
		return credentials{}, fmt.Errorf("%w: %s: %w", ErrConfig, AuthFile, err)
	}
	return parse(data, AuthFile)
}

func (s source) run(ctx context.Context) (credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	shell := []string{"/bin/sh", "-c", s.command}
	if runtime.GOOS == "windows" {
		shell = []string{"cmd", "/c", s.command}
	}
	cmd := exec.CommandContext(ctx, shell[0], shell[1:]...)
	cmd.WaitDelay = time.Second
	cmd.Env = withoutPasswords(os.Environ())
	out, err := cmd.Output()
	if ctx.Err() != nil {
		err = ctx.Err()
	} else if err != nil {
		// What it printed may be a secret.
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("exit status %d", exit.ExitCode())
		}
	}
	if err != nil {
		return credentials{}, fmt.Errorf("%w: the command in %s failed: %w", ErrConfig, AuthCommand, err)
	}
	return parse(out[:min(len(out), maxCredentials)], AuthCommand)
}

// parse takes the first line apart at its first colon.
func parse(data []byte, from string) (credentials, error) {
	line, _, _ := bytes.Cut(data, []byte{'\n'})
	user, password, ok := strings.Cut(strings.TrimRight(string(line), "\r"), ":")
	if !ok {
		return credentials{}, fmt.Errorf("%w: %s does not give \"user:password\"", ErrConfig, from)
	}
	return credentials{user, password}, nil
}

// withoutPasswords leaves out the proxies that a program which prints credentials has no need of: those in whose URL there
// are others.
func withoutPasswords(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, value, _ := strings.Cut(kv, "=")
		return strings.HasSuffix(strings.ToUpper(name), "_PROXY") && strings.Contains(value, "@")
	})
}
