// SPDX-License-Identifier: Apache-2.0

package relayserver

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

// ErrKeyFile is returned for a key file that can't be used. It is never replaced: whoever knows the relay by that key
// would not know it any more.
var ErrKeyFile = errors.New("relayserver: the relay's key file is damaged; restore it, or remove it for a new key")

const keyVersion = 1

// keyFile is the file's content. Public repeats what follows from Seed, so that damage shows.
type keyFile struct {
	Version int                  `json:"version"`
	Public  identity.AgentPublic `json:"public"`
	Seed    string               `json:"seed"` // base64
}

// LoadKey reads a relay's key, and makes it where there is none.
func LoadKey(path string) (identity.AgentKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createKey(path)
	} else if err != nil {
		return identity.AgentKey{}, fmt.Errorf("reading the relay's key: %w", err)
	}
	var f keyFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil || d.More() || f.Version != keyVersion { // the error may have part of the secret
		return identity.AgentKey{}, fmt.Errorf("%w: %s", ErrKeyFile, path)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(f.Seed)
	if err != nil || len(raw) != identity.KeySize {
		return identity.AgentKey{}, fmt.Errorf("%w: %s", ErrKeyFile, path)
	}
	key := identity.AgentKeyFromSeed([identity.KeySize]byte(raw))
	if key.Public() != f.Public {
		return identity.AgentKey{}, fmt.Errorf("%w: %s", ErrKeyFile, path)
	}
	return key, nil
}

func createKey(path string) (identity.AgentKey, error) {
	key, err := identity.NewAgentKey(rand.Reader)
	if err != nil {
		return identity.AgentKey{}, fmt.Errorf("making the relay's key: %w", err)
	}
	seed := key.Seed()
	data, err := json.MarshalIndent(keyFile{
		Version: keyVersion, Public: key.Public(), Seed: base64.StdEncoding.EncodeToString(seed[:]),
	}, "", "  ")
	if err != nil {
		return identity.AgentKey{}, fmt.Errorf("writing the relay's key: %w", err)
	}
	if err := platform.WriteFileAtomic(path, append(data, '\n'), 0o600); err != nil {
		return identity.AgentKey{}, fmt.Errorf("writing the relay's key: %w", err)
	}
	return key, nil
}
