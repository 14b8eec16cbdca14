// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// Sealing is how the keys of a node are kept from those who have a copy of its disk.
type Sealing func() (platform.Sealer, error)

// savedSealed stands in a key file in the place of the secret.
type savedSealed struct {
	By   string `json:"by"` // the way of the system's, as platform.Sealer names it
	Data []byte `json:"data"`
}

// place is how the file keeps its secret.
func (s *savedSealed) place() string {
	if s == nil {
		return localapi.KeysInFile
	}
	return s.By
}

// unseal returns the secret of a key file that was sealed.
func (f folder) unseal(name string, s *savedSealed) ([]byte, error) {
	path := filepath.Join(f.dir, name)
	sealer, err := f.sealing()
	if err == nil && sealer.Name() != s.By {
		err = fmt.Errorf("here keys are sealed by %s", sealer.Name())
	}
	var secret []byte
	if err == nil {
		secret, err = sealer.Open(name, s.Data)
	}
	if err != nil {
		return nil, &localapi.Error{Code: localapi.CodeKeyStore, Message: fmt.Sprintf("%s was sealed by %s and can't be opened: %v", path, s.By, err),
			Hint: "it opens on the host, and for the user, that sealed it only; otherwise restore an unsealed backup, or move the state folder away and join again with a new invite"}
	}
	return secret, nil
}

// seal returns what stands for the secret, once it is sure that it can be opened again.
func (f folder) seal(name string, secret []byte) (*savedSealed, error) {
	sealer, err := f.sealing()
	if err != nil {
		return nil, keyStore("this system offers nothing to seal keys with", err)
	}
	data, err := sealer.Seal(name, secret)
	if err != nil {
		return nil, keyStore("the key could not be sealed", err)
	}
	if again, err := sealer.Open(name, data); err != nil || !bytes.Equal(again, secret) {
		return nil, keyStore("what was sealed does not open again", errors.Join(err, sealer.Forget(name, data)))
	}
	return &savedSealed{By: sealer.Name(), Data: data}, nil
}

func keyStore(message string, err error) error {
	return &localapi.Error{Code: localapi.CodeKeyStore, Message: fmt.Sprintf("%s: %v", message, err), Hint: "the keys stay where they are; pilot keys status says what is offered"}
}

// keysPlace is how the identity is kept, which new keys follow.
func (f folder) keysPlace() (string, error) {
	var agent savedAgent
	_, err := f.read(agentFile, &agent)
	return agent.Sealed.place(), err
}

// keysStatus says where each key is, without opening any.
func (f folder) keysStatus() (s localapi.KeysStatus, err error) {
	s.Keys = []localapi.KeyPlace{}
	for _, name := range []string{agentFile, tunnelFile} {
		var file struct {
			Sealed *savedSealed `json:"sealed"`
		}
		raw, err := os.ReadFile(filepath.Join(f.dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return s, unreadable(filepath.Join(f.dir, name), err)
		}
		if err := json.Unmarshal(raw, &file); err != nil {
			return s, damaged(filepath.Join(f.dir, name), errors.New("it is no JSON"))
		}
		s.Keys = append(s.Keys, localapi.KeyPlace{File: name, In: file.Sealed.place(), Movable: true})
	}
	// What is read by others than the node: by the coordinator, and by the programs that use the proxies.
	for _, name := range []string{proxyFile, filepath.Join(coordinatorDir, "authority.key"), filepath.Join(coordinatorDir, "relay.key")} {
		if _, err := os.Stat(filepath.Join(f.dir, name)); err == nil {
			s.Keys = append(s.Keys, localapi.KeyPlace{File: filepath.ToSlash(name), In: localapi.KeysInFile})
		}
	}
	if sealer, err := f.sealing(); err != nil {
		s.SystemWhy = err.Error()
	} else {
		s.System = sealer.Name()
	}
	return s, nil
}

// moveKeys moves each key, one after the other: a file is replaced as a whole, when what shall stand in it was proved to open.
// Cut short, each file says for itself how it is kept, so that everything works, and the rest can be moved later.
func (f folder) moveKeys(to string) error {
	if to != localapi.KeysInFile && to != localapi.KeysInSystem {
		return errUsage(fmt.Sprintf("keys can't be moved to %q", to), "to file or to system")
	}
	var agent savedAgent
	if found, err := f.read(agentFile, &agent); err != nil {
		return err
	} else if found {
		if err := f.moveKey(agentFile, to, agent.Sealed, agent.Seed, func(seed []byte, sealed *savedSealed) any {
			return savedAgent{Version: stateVersion, Seed: seed, Sealed: sealed}
		}); err != nil {
			return err
		}
	}
	var tunnels savedTunnels
	found, err := f.read(tunnelFile, &tunnels)
	if err != nil || !found {
		return err
	}
	plain, err := json.Marshal(tunnels.Keys)
	if err != nil {
		return err
	}
	return f.moveKey(tunnelFile, to, tunnels.Sealed, plain, func(keys []byte, sealed *savedSealed) any {
		saved := savedTunnels{Version: stateVersion, Sealed: sealed}
		if sealed == nil {
			_ = json.Unmarshal(keys, &saved.Keys) // it was decoded when it was opened
		}
		return saved
	})
}

// moveKey moves the secret of one file. content makes the file of one of the two.
func (f folder) moveKey(name, to string, from *savedSealed, plain []byte, content func(plain []byte, sealed *savedSealed) any) error {
	if (from != nil) == (to == localapi.KeysInSystem) {
		return nil // there already
	}
	if from == nil {
		sealed, err := f.seal(name, plain)
		if err != nil {
			return err
		}
		return f.write(name, content(nil, sealed))
	}
	plain, err := f.unseal(name, from)
	if err != nil {
		return err
	}
	if name == tunnelFile && !json.Valid(plain) {
		return damaged(filepath.Join(f.dir, name), errors.New("what was sealed is no list of keys"))
	}
	if err := f.write(name, content(plain, nil)); err != nil {
		return err
	}
	if sealer, err := f.sealing(); err == nil {
		return sealer.Forget(name, from.Data)
	}
	return nil
}

// Keys says where the keys are.
func (n *Node) Keys(context.Context) (localapi.KeysStatus, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.folder.keysStatus()
}

// MoveKeys moves them. No session notices: they are in memory.
func (n *Node) MoveKeys(ctx context.Context, r localapi.KeysMove) (localapi.KeysStatus, error) {
	select {
	case n.upLock <- struct{}{}: // a network that is coming up may be writing new ones
		defer func() { <-n.upLock }()
	case <-ctx.Done():
		return localapi.KeysStatus{}, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.folder.moveKeys(r.To); err != nil {
		return localapi.KeysStatus{}, err
	}
	return n.folder.keysStatus()
}

// KeysOf says where the keys of a folder are that no daemon uses, and moves them before if to is not empty. It has to be the
// folder's own user who asks: what another one seals or writes, the daemon could not read.
func KeysOf(stateDir, to string) (s localapi.KeysStatus, err error) {
	f := newFolder(stateDir, platform.SystemSealer)
	if to == "" {
		return f.keysStatus()
	}
	if err := platform.OwnDir(stateDir); err != nil {
		return s, &localapi.Error{Code: localapi.CodePermission, Message: fmt.Sprintf("the keys in %s are not this user's to move: %v", stateDir, err),
			Hint: "start the daemon, which moves its own: pilot up, then pilot keys move"}
	}
	unlock, err := lockState(stateDir)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := f.migrateAll(); err != nil {
		return s, err
	}
	if err := f.moveKeys(to); err != nil {
		return s, err
	}
	return f.keysStatus()
}
