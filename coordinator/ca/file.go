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

// The versions of the file. One that isn't sealed keeps the first, so that an earlier program reads it.
const (
	plainVersion  = 1
	sealedVersion = 2
)

// sealLabel is what the key is sealed for.
const sealLabel = "authority.key"

// keyFile is the file's content. Public repeats what follows from Seed, so that damage shows.
type keyFile struct {
	Version int                      `json:"version"`
	Public  identity.AuthorityPublic `json:"public"`
	Seed    string                   `json:"seed,omitempty"`   // base64
	Sealed  *platform.Sealed         `json:"sealed,omitempty"` // in its place
}

// Load reads the authority key. Where there is no file, it makes a key and writes the file, if mayCreate is set, or else
// returns ErrMissing. One that was sealed is opened by sealing; where that can't be, the error is platform.ErrSealed.
func Load(path string, mayCreate bool, sealing platform.Sealing) (identity.AuthorityKey, error) {
	f, err := read(path)
	if errors.Is(err, ErrMissing) && mayCreate {
		return create(path)
	}
	if err != nil {
		return identity.AuthorityKey{}, err
	}
	return f.key(path, sealing)
}

// Move seals the key of a file, or puts it back, and does nothing where there is none. The file is replaced as a whole, once
// what shall stand in it was proved to open.
func Move(path string, seal bool, sealing platform.Sealing) error {
	f, err := read(path)
	if errors.Is(err, ErrMissing) {
		return nil
	}
	if err != nil || (f.Sealed != nil) == seal {
		return err
	}
	key, err := f.key(path, sealing)
	if err != nil {
		return err
	}
	former := f.Sealed
	seed := key.Seed()
	if seal {
		f.Version, f.Seed = sealedVersion, ""
		if f.Sealed, err = platform.Seal(sealing, sealLabel, seed[:]); err != nil {
			return err
		}
	} else {
		f.Version, f.Seed, f.Sealed = plainVersion, base64.StdEncoding.EncodeToString(seed[:]), nil
	}
	if err := f.write(path); err != nil || former == nil {
		return err
	}
	return former.Forget(sealing, sealLabel)
}

// read reads the file and opens nothing.
func read(path string) (f keyFile, err error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f, fmt.Errorf("%w: %s", ErrMissing, path)
	case err != nil:
		return f, fmt.Errorf("reading the authority key: %w", err)
	case exposed(info.Mode()):
		return f, fmt.Errorf("%w: %s", ErrExposed, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return f, fmt.Errorf("reading the authority key: %w", err)
	}
	if f, err = decode(data); err != nil {
		return f, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	return f, nil
}

// decode never puts the file's content into an error: it is a secret even when damaged.
func decode(data []byte) (f keyFile, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil || d.More() {
		return f, errors.New("not the expected JSON")
	}
	switch {
	case f.Version == plainVersion && f.Sealed == nil, f.Version == sealedVersion && f.Sealed != nil && f.Seed == "":
		return f, nil
	case f.Version == plainVersion || f.Version == sealedVersion:
		return f, errors.New("not the expected fields")
	}
	return f, fmt.Errorf("version %d, and this program knows up to %d", f.Version, sealedVersion)
}

// key is the one in the file.
func (f keyFile) key(path string, sealing platform.Sealing) (key identity.AuthorityKey, err error) {
	var raw []byte
	if f.Sealed != nil {
		if raw, err = f.Sealed.Open(sealing, sealLabel); err != nil {
			return key, fmt.Errorf("%s: %w", path, err)
		}
	} else if raw, err = base64.StdEncoding.Strict().DecodeString(f.Seed); err != nil {
		return key, fmt.Errorf("%w: %s: %w", ErrDamaged, path, errNotASeed)
	}
	if len(raw) != identity.KeySize {
		return key, fmt.Errorf("%w: %s: %w", ErrDamaged, path, errNotASeed)
	}
	key = identity.AuthorityKeyFromSeed([identity.KeySize]byte(raw))
	if key.Public() != f.Public {
		return identity.AuthorityKey{}, fmt.Errorf("%w: %s: the seed isn't that of the public key", ErrDamaged, path)
	}
	return key, nil
}

func (f keyFile) write(path string) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err == nil {
		err = platform.WriteFileAtomic(path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing the authority key: %w", err)
	}
	return nil
}

func create(path string) (identity.AuthorityKey, error) {
	key, err := identity.NewAuthorityKey(rand.Reader)
	if err != nil {
		return identity.AuthorityKey{}, fmt.Errorf("making the authority key: %w", err)
	}
	seed := key.Seed()
	return key, keyFile{Version: plainVersion, Public: key.Public(), Seed: base64.StdEncoding.EncodeToString(seed[:])}.write(path)
}
