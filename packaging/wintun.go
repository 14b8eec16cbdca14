// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Wintun is the one thing in a package that is not built from source: its driver works on no Windows without the signature
// that Microsoft gave it. It is pinned here and never committed.
const (
	wintunVersion = "0.14.1"
	wintunURL     = "https://www.wintun.net/builds/wintun-" + wintunVersion + ".zip"
	wintunSum     = "07c256185d6ee3652e09fa55c0b673e2624b565e02c4b9091c79ca7d2f24ef51" // as that site shows it
	wintunSigner  = "WireGuard LLC"
	// maxWintun bounds what is unpacked of a file of the archive, in bytes.
	maxWintun = 8 << 20
)

// wintun is where the library comes from.
type wintun struct {
	archive string // the .zip as it was published, or empty
	standIn string // a folder with amd64/wintun.dll and so on, for tests; archive is empty then
	ca      string // certificates that its signature is checked against; empty: the system's
	sum     string // hash of the archive
	signer  string
}

func (w wintun) given() bool { return w.archive != "" || w.standIn != "" }

// missing is why there is no installer.
func (w wintun) missing() error {
	return fmt.Errorf("an installer for Windows needs Wintun, which is not in the source: download %s and give its path (make … WINTUN=PATH)", wintunURL)
}

// unpack puts wintun.dll of an architecture, and its license, into a folder, after everything about it was checked.
func (w wintun) unpack(ctx context.Context, arch, folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	dll := filepath.Join(folder, "wintun.dll")
	if w.standIn != "" {
		data, err := os.ReadFile(filepath.Join(w.standIn, arch, "wintun.dll"))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(folder, "license.txt"), []byte("This is no Wintun.\r\n")); err != nil {
			return err
		}
		return writeFile(dll, data)
	}
	archive, err := os.ReadFile(w.archive)
	if err != nil {
		return fmt.Errorf("wintun: %w", err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(archive)); sum != w.sum {
		return fmt.Errorf("%s is not the Wintun that is expected: its SHA-256 is %s, that of %s is %s", w.archive, sum, wintunURL, w.sum)
	}
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		return fmt.Errorf("%s: %w", w.archive, err)
	}
	for name, path := range map[string]string{"wintun/bin/" + arch + "/wintun.dll": dll, "wintun/LICENSE.txt": filepath.Join(folder, "license.txt")} {
		f, err := z.Open(name)
		if err != nil {
			return fmt.Errorf("%s: %w", w.archive, err)
		}
		data, err := io.ReadAll(io.LimitReader(f, maxWintun))
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %s: %w", w.archive, name, err)
		}
		if err := writeFile(path, data); err != nil {
			return err
		}
	}
	return w.verify(ctx, dll)
}

// verify checks who signed the library.
func (w wintun) verify(ctx context.Context, dll string) error {
	args := []string{"verify", "-in", dll}
	if w.ca != "" {
		args = append(args, "-CAfile", w.ca, "-TSA-CAfile", w.ca)
	}
	cmd := exec.CommandContext(ctx, "osslsigncode", args...)
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("wintun.dll's signature is not verified (osslsigncode; the certificates that it may rest on: make … WINTUN_CA=FILE): %w: %s", err, said)
	}
	if !strings.Contains(string(said), w.signer) {
		return fmt.Errorf("wintun.dll is signed by somebody else than %s: %s", w.signer, said)
	}
	return nil
}
