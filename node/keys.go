// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pilot-protocol/pilot/coordinator"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// placeOf is how a file keeps its secret.
func placeOf(s *platform.Sealed) string {
	if s == nil {
		return localapi.KeysInFile
	}
	return s.By
}

// unseal returns the secret of a key file that was sealed.
func (f folder) unseal(name string, s *platform.Sealed) ([]byte, error) {
	secret, err := s.Open(f.sealing, name)
	if err != nil {
		return nil, explain(fmt.Errorf("%s: %w", filepath.Join(f.dir, name), err))
	}
	return secret, nil
}

// keysPlace is how the identity is kept, which new keys follow.
func (f folder) keysPlace() (string, error) {
	var agent savedAgent
	_, err := f.read(agentFile, &agent)
	return placeOf(agent.Sealed), err
}

// authorityFile is the coordinator's key, where this node has one.
func (f folder) authorityFile() string {
	return filepath.Join(f.dir, coordinatorDir, coordinator.KeyFile)
}

// folders are this one and those of the daemon's other agents.
func (f folder) folders() ([]folder, error) {
	all := []folder{f}
	entries, err := os.ReadDir(filepath.Join(f.dir, localsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, unreadable(filepath.Join(f.dir, localsDir), err)
	}
	for _, entry := range entries {
		if entry.IsDir() && identity.ValidateName(entry.Name()) == nil {
			all = append(all, newFolder(filepath.Join(f.dir, localsDir, entry.Name()), f.sealing))
		}
	}
	return all, nil
}

// keysStatus says where each key is, those of all of the daemon's agents, without opening any.
func (f folder) keysStatus() (s localapi.KeysStatus, err error) {
	s.Keys = []localapi.KeyPlace{}
	all, err := f.folders()
	if err != nil {
		return s, err
	}
	names := []string{agentFile, tunnelFile, filepath.Join(coordinatorDir, coordinator.KeyFile)}
	for _, other := range all[1:] {
		for _, name := range []string{agentFile, tunnelFile} {
			names = append(names, filepath.Join(localsDir, filepath.Base(other.dir), name))
		}
	}
	for _, name := range names {
		var file struct {
			Sealed *platform.Sealed `json:"sealed"`
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
		s.Keys = append(s.Keys, localapi.KeyPlace{File: filepath.ToSlash(name), In: placeOf(file.Sealed), Movable: true})
	}
	// The relay's key and the proxies' password are of little use without the rest.
	for _, name := range []string{proxyFile, filepath.Join(coordinatorDir, "relay.key")} {
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
		if err := f.moveKey(agentFile, to, agent.Sealed, agent.Seed, func(seed []byte, sealed *platform.Sealed) any {
			return savedAgent{Version: stateVersion, Seed: seed, Sealed: sealed}
		}); err != nil {
			return err
		}
	}
	var tunnels savedTunnels
	if found, err := f.read(tunnelFile, &tunnels); err != nil {
		return err
	} else if found {
		if err := f.moveTunnels(to, tunnels); err != nil {
			return err
		}
	}
	return explain(ca.Move(f.authorityFile(), to == localapi.KeysInSystem, f.sealing))
}

func (f folder) moveTunnels(to string, tunnels savedTunnels) error {
	plain, err := json.Marshal(tunnels.Keys)
	if err != nil {
		return err
	}
	return f.moveKey(tunnelFile, to, tunnels.Sealed, plain, func(keys []byte, sealed *platform.Sealed) any {
		saved := savedTunnels{Version: stateVersion, Sealed: sealed}
		if sealed == nil {
			_ = json.Unmarshal(keys, &saved.Keys) // it was decoded when it was opened
		}
		return saved
	})
}

// moveKey moves the secret of one file. content makes the file of one of the two.
func (f folder) moveKey(name, to string, from *platform.Sealed, plain []byte, content func(plain []byte, sealed *platform.Sealed) any) error {
	if (from != nil) == (to == localapi.KeysInSystem) {
		return nil // there already
	}
	if from == nil {
		sealed, err := platform.Seal(f.sealing, name, plain)
		if err != nil {
			return explain(err)
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
	return from.Forget(f.sealing, name)
}

// Keys says where the keys are.
func (n *Node) Keys(context.Context) (localapi.KeysStatus, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.folder.keysStatus()
}

// MoveKeys moves them, those of the daemon's other agents too. No session notices: they are in memory.
func (n *Node) MoveKeys(ctx context.Context, r localapi.KeysMove) (localapi.KeysStatus, error) {
	select {
	case n.upLock <- struct{}{}: // a network that is coming up may be writing new ones
		defer func() { <-n.upLock }()
	case <-ctx.Done():
		return localapi.KeysStatus{}, ctx.Err()
	}
	if err := n.moveOwnKeys(r.To); err != nil {
		return localapi.KeysStatus{}, err
	}
	for _, l := range n.locals.all() {
		if l.node == nil {
			continue // it could not be read: its files stay as they are
		}
		if _, err := l.node.MoveKeys(ctx, r); err != nil {
			return localapi.KeysStatus{}, err
		}
	}
	return n.Keys(ctx)
}

func (n *Node) moveOwnKeys(to string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.folder.moveKeys(to)
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
	all, err := f.folders()
	if err != nil {
		return s, err
	}
	for _, f := range all {
		if err := f.migrateAll(); err != nil {
			return s, err
		}
		if err := f.moveKeys(to); err != nil {
			return s, err
		}
	}
	return f.keysStatus()
}
