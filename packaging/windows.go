// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// testMark is in the name of an installer that is for tests alone.
const testMark = "_TEST-without-wintun"

// windows makes the .zip of a system, and the installer where there is Wintun to go into it.
func (r release) windows(ctx context.Context, s system) error {
	library := filepath.Join(r.out, "work", s.String(), "wintun")
	if r.wintun.given() {
		if err := r.wintun.unpack(ctx, s.arch, library); err != nil {
			return err
		}
		if err := r.installer(ctx, s, library); err != nil {
			return err
		}
	} else {
		fmt.Printf("no .msi for %s: %v\n", s.arch, r.wintun.missing())
	}
	return r.zip(s, library)
}

// installer makes the .msi.
func (r release) installer(ctx context.Context, s system, library string) error {
	m := msi{arch: s.arch, version: r.version, time: r.time, standIn: r.wintun.standIn != "", files: []msiFile{
		{id: "Program", name: "pilot.exe", component: "Program", source: r.binary(s)},
		{id: "Wintun", name: "wintun.dll", component: "Wintun", source: filepath.Join(library, "wintun.dll"), version: wintunVersion + ".0"},
		{id: "License", name: "LICENSE.txt", component: "Documents", source: "LICENSE"},
		{id: "WintunLicense", name: "WINTUN.txt", component: "Documents", source: filepath.Join(library, "license.txt")},
		{id: "Readme", name: "README.md", component: "Documents", source: "README.md"},
		{id: "Changes", name: "CHANGES.md|CHANGELOG.md", component: "Documents", source: "CHANGELOG.md"},
		{id: "Operating", name: "OPERATE.md|operating.md", component: "Documents", source: "docs/operating.md"},
	}}
	mark := ""
	if m.standIn {
		m.files[1].version = "" // what stands in has none
		mark = testMark
	}
	path := filepath.Join(r.out, fmt.Sprintf("pilot_%s_%s%s.msi", r.version, s.arch, mark))
	return m.write(ctx, path, filepath.Join(r.out, "work", s.String(), "msi"))
}

// zip makes the archive for those who want no installer.
func (r release) zip(s system, library string) error {
	folder := fmt.Sprintf("pilot_%s_%s/", r.version, s)
	files := [][2]string{ // name, source
		{"pilot.exe", r.binary(s)},
		{"LICENSE.txt", "LICENSE"}, {"README.md", "README.md"}, {"CHANGELOG.md", "CHANGELOG.md"},
		{"docs/operating.md", "docs/operating.md"}, {"docs/security.md", "docs/security.md"},
	}
	if r.wintun.archive != "" {
		files = append(files, [2]string{"wintun.dll", filepath.Join(library, "wintun.dll")},
			[2]string{"WINTUN.txt", filepath.Join(library, "license.txt")})
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	for _, f := range files {
		data, err := os.ReadFile(f[1])
		if err != nil {
			return err
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: folder + f[0], Method: zip.Deflate, Modified: r.time})
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	return writeFile(r.file(s, ".zip"), b.Bytes())
}
