// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// archive makes the .tar.gz of a system: the program, its documents, and the files that the system's service manager
// wants.
func (r release) archive(s system, docs string) error {
	folder := fmt.Sprintf("pilot_%s_%s/", r.version, s)
	files := [][2]string{ // name, source
		{"pilot", r.binary(s)},
		{"LICENSE", "LICENSE"}, {"README.md", "README.md"}, {"CHANGELOG.md", "CHANGELOG.md"},
		{"docs/operating.md", "docs/operating.md"}, {"docs/security.md", "docs/security.md"},
		{"completions/pilot.bash", filepath.Join(docs, "pilot.bash")},
		{"completions/pilot.fish", filepath.Join(docs, "pilot.fish")},
		{"completions/_pilot", filepath.Join(docs, "_pilot")},
	}
	pages, err := filepath.Glob(filepath.Join(docs, "man", "*.gz")) // in order of names
	if err != nil {
		return err
	}
	for _, page := range pages {
		files = append(files, [2]string{"man/" + filepath.Base(page), page})
	}
	switch s.os {
	case "linux":
		for _, name := range []string{"pilot.service", "pilot-dns.socket", "pilot-dns@.service", "sysusers.conf"} {
			files = append(files, [2]string{"systemd/" + name, "packaging/linux/" + name})
		}
	case "darwin":
		const plist = "com.pilot-protocol.pilot.plist"
		files = append(files, [2]string{"launchd/" + plist, "packaging/macos/" + plist},
			[2]string{"install.sh", "packaging/macos/install.sh"}, [2]string{"uninstall.sh", "packaging/macos/uninstall.sh"})
	}
	var tarball bytes.Buffer
	w := tar.NewWriter(&tarball)
	for _, f := range files {
		data, err := os.ReadFile(f[1])
		if err != nil {
			return err
		}
		mode := int64(0o644)
		if f[0] == "pilot" || strings.HasSuffix(f[0], ".sh") {
			mode = 0o755
		}
		header := &tar.Header{Name: folder + f[0], Mode: mode, Size: int64(len(data)), ModTime: r.time, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return writeGzip(r.file(s, ".tar.gz"), tarball.Bytes())
}

// writeGzip compresses data into a file without a name or a time in it.
func writeGzip(path string, data []byte) error {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return writeFile(path, b.Bytes())
}

// writeFile makes a file with the same permissions whatever the umask is, since nfpm takes them over.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}
