// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	securityTool   = "/usr/bin/security"
	systemKeychain = "/Library/Keychains/System.keychain"
	securityLimit  = 20 * time.Second
)

// SystemSealer returns the system's Keychain, which root alone can write and which is open after boot.
func SystemSealer() (Sealer, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: the system's Keychain is root's", ErrUnsupported)
	}
	return keychain{}, nil
}

// keychain keeps each secret in an item of its own, of which the file has the name.
type keychain struct{}

func (keychain) Name() string { return SealedByKeychain }

func (keychain) Seal(label string, secret []byte) ([]byte, error) {
	account := label + "-" + strings.ToLower(rand.Text()) // never in the place of another one
	line, err := keychainAdd(systemKeychain, account, secret)
	if err != nil {
		return nil, err
	}
	if _, err := security(line, "-i"); err != nil {
		return nil, err
	}
	return []byte(account), nil
}

func (keychain) Open(label string, sealed []byte) ([]byte, error) {
	account := string(sealed)
	if !strings.HasPrefix(account, label+"-") || !keychainWord(account) {
		return nil, sealedError(SealedByKeychain, errors.New("the item is another one's"))
	}
	out, err := security(nil, keychainFind(systemKeychain, account)...)
	if err == nil {
		out, err = keychainSecret(out)
	}
	if err != nil {
		return nil, sealedError(SealedByKeychain, err)
	}
	return out, nil
}

func (keychain) Forget(_ string, sealed []byte) error {
	if !keychainWord(string(sealed)) {
		return errors.New("keychain: a name that can't be one")
	}
	_, err := security(nil, keychainDelete(systemKeychain, string(sealed))...)
	return err
}

func security(input []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), securityLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, securityTool, args...)
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", securityTool, err) // what it printed may have what it was given
	}
	return out, nil
}
