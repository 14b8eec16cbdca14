// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// memorySealer is a system's key store in memory: what it seals is a name alone.
type memorySealer struct {
	items map[string][]byte
	seal  error // what Seal returns
	lie   bool  // Open returns something else
}

func (s *memorySealer) Name() string { return "memory" }

func (s *memorySealer) Seal(label string, secret []byte) ([]byte, error) {
	if s.seal != nil {
		return nil, s.seal
	}
	name := fmt.Sprintf("%s#%d", label, len(s.items))
	s.items[name] = bytes.Clone(secret)
	return []byte(name), nil
}

func (s *memorySealer) Open(label string, sealed []byte) ([]byte, error) {
	secret, found := s.items[string(sealed)]
	if !found || !strings.HasPrefix(string(sealed), label+"#") {
		return nil, platform.ErrSealed
	}
	if s.lie {
		return []byte("something else"), nil
	}
	return secret, nil
}

func (s *memorySealer) Forget(_ string, sealed []byte) error {
	delete(s.items, string(sealed))
	return nil
}

func (s *memorySealer) sealing() (platform.Sealer, error) { return s, nil }

// openState starts a node on a folder, without running it, and returns its identity.
func openState(t *testing.T, dir string, sealing platform.Sealing) (key [32]byte, err error) {
	t.Helper()
	n, err := New(Options{StateDir: dir, Sealing: sealing, Caller: func(net.Conn) error { return nil }})
	if err != nil {
		return key, err
	}
	tunnels, err := n.folder.tunnelKeys(n.saved.Authority, n.key.Public())
	if err == nil && len(tunnels) != 1 {
		err = fmt.Errorf("%d tunnel keys", len(tunnels))
	}
	return n.key.Seed(), errors.Join(err, n.unlock())
}

func places(t *testing.T, f folder) (in []string) {
	t.Helper()
	s, err := f.keysStatus()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range s.Keys {
		if k.Movable {
			in = append(in, k.File+" "+k.In)
		}
	}
	return in
}

func TestKeysMoveAndComeBack(t *testing.T) {
	store := &memorySealer{items: map[string][]byte{}}
	dir := goldenState(t, stateVersion)
	f := newFolder(dir, store.sealing)
	seed, err := openState(t, dir, store.sealing)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{localapi.KeysInSystem, localapi.KeysInSystem, localapi.KeysInFile, localapi.KeysInFile, localapi.KeysInSystem} {
		if err := f.moveKeys(to); err != nil {
			t.Fatal(err)
		}
		want := "[agent.key file tunnel.key file]"
		if to == localapi.KeysInSystem {
			want = "[agent.key memory tunnel.key memory]"
		}
		if got := fmt.Sprint(places(t, f)); got != want {
			t.Errorf("to %s: %s", to, got)
		}
		if again, err := openState(t, dir, store.sealing); err != nil || again != seed {
			t.Fatalf("to %s: another identity, %v", to, err)
		}
		raw, err := os.ReadFile(filepath.Join(dir, agentFile))
		if err != nil {
			t.Fatal(err)
		}
		info, _ := os.Stat(filepath.Join(dir, agentFile))
		if sealed := !bytes.Contains(raw, []byte(`"seed"`)); sealed != (to == localapi.KeysInSystem) || info.Mode().Perm() != 0o600 {
			t.Errorf("to %s, mode %v: %s", to, info.Mode(), raw)
		}
		if n := len(store.items); to == localapi.KeysInFile && n != 0 || to == localapi.KeysInSystem && n != 2 {
			t.Errorf("to %s: %d items are left in the store", to, n)
		}
	}
	if err := f.moveKeys("moon"); code(err) != localapi.CodeUsage {
		t.Errorf("%v", err)
	}
	// A new tunnel key is kept as the identity is.
	n, err := New(Options{StateDir: dir, Sealing: store.sealing, Caller: func(net.Conn) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer n.unlock()
	made, err := newTunnelKey(n.saved.Authority, n.key, n.now())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.folder.saveTunnelKeys([]tunnelKey{made}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(places(t, f)); got != "[agent.key memory tunnel.key memory]" {
		t.Error(got)
	}
	store.seal = errors.New("the TPM is busy")
	if err := n.folder.saveTunnelKeys([]tunnelKey{made}); code(err) != localapi.CodeKeyStore {
		t.Errorf("with a store that fails: %v", err)
	}
	if got := fmt.Sprint(places(t, f)); got != "[agent.key memory tunnel.key memory]" {
		t.Errorf("a key was written unsealed: %s", got)
	}
}

// Wherever a move is cut short or fails, each key is there and the node starts with it.
func TestKeysAreNeverLost(t *testing.T) {
	t.Run("between the two files", func(t *testing.T) {
		store := &memorySealer{items: map[string][]byte{}}
		dir := goldenState(t, stateVersion)
		seed, err := openState(t, dir, store.sealing)
		if err != nil {
			t.Fatal(err)
		}
		f := newFolder(dir, store.sealing)
		plain, err := os.ReadFile(filepath.Join(dir, tunnelFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.moveKeys(localapi.KeysInSystem); err != nil {
			t.Fatal(err)
		}
		// As it was when the power went after the first file.
		if err := os.WriteFile(filepath.Join(dir, tunnelFile), plain, 0o600); err != nil {
			t.Fatal(err)
		}
		if again, err := openState(t, dir, store.sealing); err != nil || again != seed {
			t.Errorf("%v", err)
		}
		if err := f.moveKeys(localapi.KeysInSystem); err != nil || fmt.Sprint(places(t, f)) != "[agent.key memory tunnel.key memory]" {
			t.Errorf("%v, %v", err, places(t, f))
		}
	})
	for name, trouble := range map[string]func(*memorySealer){
		"nothing is sealed":                   func(s *memorySealer) { s.seal = errors.New("no") },
		"what is sealed opens as another one": func(s *memorySealer) { s.lie = true },
	} {
		t.Run(name, func(t *testing.T) {
			store := &memorySealer{items: map[string][]byte{}}
			trouble(store)
			dir := goldenState(t, stateVersion)
			before, err := os.ReadFile(filepath.Join(dir, agentFile))
			if err != nil {
				t.Fatal(err)
			}
			if err := newFolder(dir, store.sealing).moveKeys(localapi.KeysInSystem); code(err) != localapi.CodeKeyStore {
				t.Errorf("%v", err)
			}
			if after, _ := os.ReadFile(filepath.Join(dir, agentFile)); !bytes.Equal(after, before) || len(store.items) != 0 {
				t.Errorf("the file changed, or %d items are left: %s", len(store.items), after)
			}
		})
	}
	t.Run("the disk is full", func(t *testing.T) {
		store := &memorySealer{items: map[string][]byte{}}
		dir := goldenState(t, stateVersion)
		seed, err := openState(t, dir, store.sealing)
		if err != nil {
			t.Fatal(err)
		}
		// A folder in the file's place can't be replaced: the write fails as it does on a full disk.
		path := filepath.Join(dir, tunnelFile)
		if err := errors.Join(os.Rename(path, path+".kept"), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
			t.Fatal(err)
		}
		if err := newFolder(dir, store.sealing).moveKeys(localapi.KeysInSystem); err == nil {
			t.Fatal("moved")
		}
		if err := errors.Join(os.RemoveAll(path), os.Rename(path+".kept", path)); err != nil {
			t.Fatal(err)
		}
		if again, err := openState(t, dir, store.sealing); err != nil || again != seed {
			t.Errorf("%v", err)
		}
	})
}

// Another host can't open what was sealed here: the daemon says so, and leaves the files.
func TestSealedElsewhere(t *testing.T) {
	here, there := &memorySealer{items: map[string][]byte{}}, &memorySealer{items: map[string][]byte{}}
	dir := goldenState(t, stateVersion)
	f := newFolder(dir, here.sealing)
	if err := f.moveKeys(localapi.KeysInSystem); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(dir, agentFile))
	for name, sealing := range map[string]platform.Sealing{"another host": there.sealing, "a system without": nil} {
		if sealing == nil {
			sealing = func() (platform.Sealer, error) { return nil, platform.ErrUnsupported }
		}
		if _, err := openState(t, dir, sealing); code(err) != localapi.CodeKeyStore {
			t.Errorf("%s: %v", name, err)
		}
		if err := newFolder(dir, sealing).moveKeys(localapi.KeysInFile); code(err) != localapi.CodeKeyStore {
			t.Errorf("%s: %v", name, err)
		}
		// What is where can be told all the same.
		if got := fmt.Sprint(places(t, newFolder(dir, sealing))); got != "[agent.key memory tunnel.key memory]" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if after, _ := os.ReadFile(filepath.Join(dir, agentFile)); !bytes.Equal(after, before) {
		t.Error("the file changed")
	}
}

// A coordinator starts with the authority's key sealed, and says so where it can't.
func TestAuthorityKeyMovesAlong(t *testing.T) {
	store := &memorySealer{items: map[string][]byte{}}
	dir := stateDir(t)
	d := startDaemon(t, dir)
	made, err := d.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback})
	if err != nil {
		t.Fatal(err)
	}
	d.end()
	f := newFolder(dir, store.sealing)
	if err := f.moveKeys(localapi.KeysInSystem); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(places(t, f)); got != "[agent.key memory tunnel.key memory coordinator/authority.key memory]" {
		t.Error(got)
	}
	path := f.authorityFile()
	key, err := ca.Load(path, false, store.sealing)
	if err != nil {
		t.Fatal(err)
	}
	if invite, err := identity.ParseInvite(made.Invite); err != nil || key.Public() != invite.Authority {
		t.Errorf("another authority, %v", err)
	}
	if _, err := ca.Load(path, true, (&memorySealer{}).sealing); code(explain(err)) != localapi.CodeKeyStore {
		t.Errorf("elsewhere: %v", err)
	}
	if err := f.moveKeys(localapi.KeysInFile); err != nil || len(store.items) != 0 {
		t.Errorf("%v, %d items", err, len(store.items))
	}
}

// The keys of a daemon's other agents move with its own.
func TestKeysOfLocalAgents(t *testing.T) {
	home, _ := members(t, "indexer")
	if s, err := home.MoveKeys(t.Context(), localapi.KeysMove{To: localapi.KeysInFile}); err != nil || len(s.Keys) < 5 || s.Keys[3].File != "agents/indexer/agent.key" {
		t.Errorf("%+v, %v", s, err)
	}
	home.end()
	store := &memorySealer{items: map[string][]byte{}}
	f := newFolder(home.dir, store.sealing)
	all, err := f.folders()
	if err != nil || len(all) != 2 {
		t.Fatalf("%d folders, %v", len(all), err)
	}
	for _, one := range all {
		if err := one.moveKeys(localapi.KeysInSystem); err != nil {
			t.Fatal(err)
		}
	}
	want := "[agent.key memory tunnel.key memory coordinator/authority.key memory agents/indexer/agent.key memory agents/indexer/tunnel.key memory]"
	if got := fmt.Sprint(places(t, f)); got != want {
		t.Error(got)
	}
}

// While a daemon runs, its keys are its own to move.
func TestKeysOfARunningDaemon(t *testing.T) {
	dir := stateDir(t)
	d := startDaemon(t, dir)
	if _, err := d.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	if _, err := KeysOf(dir, localapi.KeysInFile); code(err) != localapi.CodeStateLocked {
		t.Errorf("moved beside the daemon: %v", err)
	}
	s, err := d.Keys(t.Context())
	if err != nil || len(s.Keys) < 3 || s.Keys[0].In != localapi.KeysInFile {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := d.MoveKeys(t.Context(), localapi.KeysMove{To: localapi.KeysInFile}); err != nil {
		t.Error(err)
	}
	if _, err := d.MoveKeys(t.Context(), localapi.KeysMove{To: "moon"}); code(err) != localapi.CodeUsage {
		t.Errorf("%v", err)
	}
}
