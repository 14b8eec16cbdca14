// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// hook is somebody's command that signs one file. Keys, and how to reach them, are theirs: in the environment it finds
// FILE, and writes to SIGNED, beside it, or changes FILE itself.
type hook struct {
	name    string // of the variable that holds the command
	command string
}

// hooks reads the commands from the environment.
func hooks(get func(string) string) map[string]hook {
	all := map[string]hook{}
	for _, name := range []string{"SIGN_EXE", "SIGN_MSI", "SIGN_DEB", "SIGN_RPM", "SIGN_SUMS"} {
		if command := get(name); command != "" {
			all[name] = hook{name, command}
		}
	}
	return all
}

// inArgument finds secrets that a command would show to everybody in the list of processes.
var inArgument = regexp.MustCompile(`(?:^|\s)(-pass|--passphrase|--password)(?:[\s=]|$)`)

// sign runs the command on a file.
func (h hook) sign(ctx context.Context, file string) error {
	if m := inArgument.FindStringSubmatch(h.command); m != nil {
		return fmt.Errorf("%s has a secret after %s, which everybody on this host can see: let it be read from a file (osslsigncode -readpass, gpg --passphrase-file)", h.name, m[1])
	}
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	before, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	signed := file + ".signed"
	if err := h.run(ctx, file, signed); err != nil {
		return err
	}
	after, err := os.ReadFile(signed)
	switch {
	case err == nil:
		return errors.Join(writeFile(file, after), os.Remove(signed))
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if after, err = os.ReadFile(file); err != nil {
		return err
	}
	if bytes.Equal(before, after) {
		return fmt.Errorf("%s made no $SIGNED, and left $FILE (%s) as it was", h.name, filepath.Base(file))
	}
	return nil
}

// run gives the command to a shell through a pipe, so that it is not among the arguments, and shows it to nobody.
func (h hook) run(ctx context.Context, file, signed string) error {
	script, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer script.Close()
	if _, err := write.WriteString(h.command + "\n"); err != nil { // less than a pipe holds
		return errors.Join(err, write.Close())
	}
	if err := write.Close(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "sh", "-eu", "/dev/fd/3")
	cmd.ExtraFiles = []*os.File{script}
	cmd.Env = append(os.Environ(), "FILE="+file, "SIGNED="+signed)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s on %s: %w: %s", h.name, filepath.Base(file), err, strings.TrimSpace(string(said)))
	}
	return nil
}

// sign signs what make made: the programs for Windows before they go into their packages once more, then the packages,
// then the hashes of it all.
func (r release) sign(ctx context.Context, all map[string]hook) error {
	if len(all) == 0 {
		return errors.New("nothing says how to sign: SIGN_EXE, SIGN_MSI, SIGN_DEB, SIGN_RPM, SIGN_SUMS")
	}
	if h, ok := all["SIGN_EXE"]; ok {
		for _, s := range r.systems {
			if s.os != "windows" {
				continue
			}
			if err := h.sign(ctx, r.binary(s)); err != nil {
				return err
			}
			if err := r.windows(ctx, s); err != nil {
				return err
			}
		}
	}
	for _, format := range []string{"msi", "deb", "rpm"} {
		h, ok := all["SIGN_"+strings.ToUpper(format)]
		if !ok {
			continue
		}
		files, err := filepath.Glob(filepath.Join(r.out, "*."+format))
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := h.sign(ctx, f); err != nil {
				return err
			}
		}
	}
	if err := r.sum(); err != nil {
		return err
	}
	h, ok := all["SIGN_SUMS"]
	if !ok {
		return nil
	}
	// The signature is a file beside it, such as SHA256SUMS.sig.
	sums := filepath.Join(r.out, "SHA256SUMS")
	file, err := filepath.Abs(sums)
	if err != nil {
		return err
	}
	if err := h.run(ctx, file, file+".signed"); err != nil {
		return err
	}
	if made, err := filepath.Glob(sums + ".*"); err != nil || len(made) == 0 {
		return fmt.Errorf("SIGN_SUMS made no file SHA256SUMS.*: %w", errors.Join(err, os.ErrNotExist))
	}
	return nil
}
