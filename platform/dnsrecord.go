// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	dnsRecordFile    = "dns-backup.json"
	dnsRecordVersion = 1
)

// dnsRecord is written down before the system's settings are changed, and removed when they are as they were. Its
// presence at the start means that an earlier process was killed.
type dnsRecord struct {
	Version   int        `json:"version"`
	Mode      string     `json:"mode"`
	Interface string     `json:"interface,omitempty"`
	Server    netip.Addr `json:"server"`
	Program   string     `json:"program,omitempty"` // kind of resolvconf
	Paths     []string   `json:"paths,omitempty"`   // files that are ours altogether
	File      *savedFile `json:"file,omitempty"`
	// Former are the files before that one, the latest last, each with what we made of it.
	Former []savedFile `json:"former,omitempty"`
}

// savedFile is a file as it was, and what we put in its place.
type savedFile struct {
	Path    string    `json:"path"`
	Existed bool      `json:"existed"`
	Symlink string    `json:"symlink,omitempty"` // it was a symlink to this
	Content []byte    `json:"content"`           // of the file, or of the symlink's target
	SHA256  string    `json:"sha256"`            // of Content
	Mode    uint32    `json:"mode"`              // permission bits
	UID     int       `json:"uid"`
	GID     int       `json:"gid"`
	ModTime time.Time `json:"mod_time"`
	InPlace bool      `json:"in_place,omitempty"` // can't be replaced by renaming
	Written []byte    `json:"written"`
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// loadDNSRecord returns nil when there is none.
func loadDNSRecord(stateDir string) (*dnsRecord, error) {
	path := filepath.Join(stateDir, dnsRecordFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r dnsRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDNSRecord, path, err)
	}
	if r.Version != dnsRecordVersion {
		return nil, fmt.Errorf("%w: %s has version %d, known is %d", ErrDNSRecord, path, r.Version, dnsRecordVersion)
	}
	if r.File != nil && r.File.SHA256 != digest(r.File.Content) {
		return nil, fmt.Errorf("%w: %s: the saved file doesn't match its checksum", ErrDNSRecord, path)
	}
	return &r, nil
}

func (r *dnsRecord) save(stateDir string) error {
	r.Version = dnsRecordVersion
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return WriteFileAtomic(filepath.Join(stateDir, dnsRecordFile), append(data, '\n'), 0o600)
}

func removeDNSRecord(stateDir string) error {
	if err := os.Remove(filepath.Join(stateDir, dnsRecordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ours says whether what is in the file now came from us: all of it, or a rewritten file that still names our server,
// or the mix of both that an interrupted write in place leaves.
func (f *savedFile) ours(now []byte, server netip.Addr) bool {
	if bytes.Equal(now, f.Written) || bytes.Contains(now, []byte(resolvMarker)) {
		return true
	}
	if slices.Contains(parseResolvConf(now).Nameservers, server) {
		return true
	}
	return f.InPlace && !bytes.Equal(now, f.Content) && bytes.Equal(now, overlaid(f.Content, f.Written))
}

// overlaid is what a file with content under holds after over was written onto it from the start, and not cut yet.
func overlaid(over, under []byte) []byte {
	if len(over) >= len(under) {
		return over
	}
	return append(slices.Clone(over), under[len(over):]...)
}

// removeOurFiles removes files that we made, each with the marker in its first line; another's are left alone.
func removeOurFiles(paths []string) error {
	var errs []error
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && strings.HasPrefix(string(data), resolvMarker) {
			err = os.Remove(p)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
