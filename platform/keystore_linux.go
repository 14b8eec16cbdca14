// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	credsTool = "systemd-creds"
	// credsSocket is where systemd seals for users that are not root, from version 256 on.
	credsSocket = "/run/systemd/io.systemd.Credentials"
	credsLimit  = 15 * time.Second // a TPM may be slow
)

// SystemSealer returns systemd's: by the TPM and the host's key where there is a TPM, else by the host's key in
// /var/lib/systemd/credential.secret, which only root can read. A user that is not root gets it where systemd serves those;
// what is sealed for one user no other one can open. The error of ErrUnsupported says why there is none.
func SystemSealer() (Sealer, error) {
	tool, err := exec.LookPath(credsTool)
	if err != nil {
		return nil, fmt.Errorf("%w: the program %s is not there (package systemd, 250 or newer)", ErrUnsupported, credsTool)
	}
	if os.Geteuid() == 0 {
		return systemdCreds{tool: tool}, nil
	}
	if _, err := os.Stat(credsSocket); err != nil {
		return nil, fmt.Errorf("%w: for a user that is not root, systemd seals from version 256 on (%s is not there)", ErrUnsupported, credsSocket)
	}
	return systemdCreds{tool: tool, scope: []string{"--user"}}, nil
}

// systemdCreds calls the tool. The secret goes through pipes, never through arguments or files.
type systemdCreds struct {
	tool  string
	scope []string
}

func (systemdCreds) Name() string { return SealedBySystemd }

func (s systemdCreds) Seal(label string, secret []byte) ([]byte, error) {
	// Not to the state of the firmware: after an update of that the key would be lost.
	args := []string{"--with-key=auto"}
	if len(s.scope) == 0 {
		args = append(args, "--tpm2-pcrs=")
	}
	sealed, err := s.run("encrypt", label, secret, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", credsTool, err)
	}
	if sealed = bytes.TrimSpace(sealed); len(sealed) == 0 || len(sealed) > maxSealed {
		return nil, fmt.Errorf("%s returned %d bytes", credsTool, len(sealed))
	}
	return sealed, nil
}

func (s systemdCreds) Open(label string, sealed []byte) ([]byte, error) {
	secret, err := s.run("decrypt", label, sealed, "--newline=no")
	if err != nil {
		return nil, sealedError(credsTool, err)
	}
	return secret, nil
}

func (systemdCreds) Forget(string, []byte) error { return nil }

func (s systemdCreds) run(verb, label string, input []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), credsLimit)
	defer cancel()
	args = append(append([]string{verb, "--name=" + label}, s.scope...), args...)
	cmd := exec.CommandContext(ctx, s.tool, append(args, "-", "-")...)
	cmd.WaitDelay = time.Second
	cmd.Stdin = bytes.NewReader(input)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C"}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, errors.New(lastSaid(said.Bytes(), err))
	}
	return out, nil
}

// lastSaid is the last line of what a tool printed to standard error, on which there is never a secret.
func lastSaid(said []byte, err error) string {
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		return last
	}
	return err.Error()
}
