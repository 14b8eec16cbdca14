// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/platform"
)

// The reasons why a key file is refused. A network can't outlive the loss of its authority key, so nothing here ever
// replaces one.
var (
	ErrDamaged  = errors.New("ca: the authority key file is damaged; restore it from a backup")
	ErrMissing  = errors.New("ca: the authority key file is missing, but its network exists; restore it from a backup")
	ErrExposed  = errors.New("ca: the authority key file can be read by others; set its mode to 0600 and consider the key known")
	errNotASeed = errors.New("not 32 bytes in base64")
)

const fileVersion = 1

// keyFile is the file's content. Public repeats what follows from Seed, so that damage shows.
type keyFile struct {
	Version int                      `json:"version"`
	Public  identity.AuthorityPublic `json:"public"`
	Seed    string                   `json:"seed"` // base64
}

// Load reads the authority key. Where there is no file, it makes a key and writes the file, if mayCreate is set, or else
// returns ErrMissing.
func Load(path string, mayCreate bool) (identity.AuthorityKey, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && mayCreate:
		return create(path)
	case errors.Is(err, fs.ErrNotExist):
		return identity.AuthorityKey{}, fmt.Errorf("%w: %s", ErrMissing, path)
	case err != nil:
		return identity.AuthorityKey{}, fmt.Errorf("reading the authority key: %w", err)
	case exposed(info.Mode()):
		return identity.AuthorityKey{}, fmt.Errorf("%w: %s", ErrExposed, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return identity.AuthorityKey{}, fmt.Errorf("reading the authority key: %w", err)
	}
	key, err := decode(data)
	if err != nil {
		return identity.AuthorityKey{}, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	return key, nil
}

// decode never puts the file's content into an error: it is a secret even when damaged.
func decode(data []byte) (identity.AuthorityKey, error) {
	var f keyFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil || d.More() {
		return identity.AuthorityKey{}, errors.New("not the expected JSON")
	}
	if f.Version != fileVersion {
		return identity.AuthorityKey{}, fmt.Errorf("version %d, and this program knows %d", f.Version, fileVersion)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(f.Seed)
	if err != nil || len(raw) != identity.KeySize {
		return identity.AuthorityKey{}, errNotASeed
	}
	key := identity.AuthorityKeyFromSeed([identity.KeySize]byte(raw))
	if key.Public() != f.Public {
		return identity.AuthorityKey{}, errors.New("the seed isn't that of the public key")
	}
	return key, nil
}

func create(path string) (identity.AuthorityKey, error) {
	key, err := identity.NewAuthorityKey(rand.Reader)
	if err != nil {
		return identity.AuthorityKey{}, fmt.Errorf("making the authority key: %w", err)
	}
	seed := key.Seed()
	data, err := json.MarshalIndent(keyFile{
		Version: fileVersion, Public: key.Public(), Seed: base64.StdEncoding.EncodeToString(seed[:]),
	}, "", "  ")
	if err != nil {
		return identity.AuthorityKey{}, fmt.Errorf("writing the authority key: %w", err)
	}
	if err := platform.WriteFileAtomic(path, append(data, '\n'), 0o600); err != nil {
		return identity.AuthorityKey{}, fmt.Errorf("writing the authority key: %w", err)
	}
	return key, nil
}
