// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// goldenState copies the files that a pilot of that version wrote: those of "warehouse", who trusts "planner" and has asked "auditor".
func goldenState(t *testing.T, version int) string {
	t.Helper()
	dir := stateDir(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	from := fmt.Sprintf("testdata/state/v%d", version)
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatalf("each version of the state needs its files: %v", err)
	}
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readFields(t *testing.T, path string) fields {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var f fields
	if err := json.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// From each earlier version on, a node starts with the identity, network, consents and peers that it had, and what was in
// the files is in them still.
func TestStateOfEachVersion(t *testing.T) {
	for version := 1; version <= stateVersion; version++ {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			dir := goldenState(t, version)
			before := map[string]fields{}
			for _, name := range []string{agentFile, tunnelFile, nodeFile} {
				before[name] = readFields(t, filepath.Join(dir, name))
			}
			n, err := New(Options{StateDir: dir, Caller: func(net.Conn) error { return nil }})
			if err != nil {
				t.Fatal(err)
			}
			defer n.unlock()
			if n.saved.Name != "warehouse" || !n.saved.member() || len(n.saved.Consents) < 3 || len(n.saved.Peers) < 2 || n.saved.Pins["planner"].IsZero() {
				t.Errorf("%+v", n.saved)
			}
			if n.saved.TUN != localapi.TUNKernel {
				t.Errorf("packets get to programs by %q", n.saved.TUN)
			}
			tunnels, err := n.folder.tunnelKeys(n.saved.Authority, n.key.Public())
			if err != nil || len(tunnels) == 0 {
				t.Errorf("%d tunnel keys, %v", len(tunnels), err)
			}
			for name, old := range before {
				now := readFields(t, filepath.Join(dir, name))
				if string(now["version"]) != fmt.Sprint(stateVersion) {
					t.Errorf("%s has version %s", name, now["version"])
				}
				for field, value := range old {
					var a, b bytes.Buffer
					if err := errors.Join(json.Compact(&a, value), json.Compact(&b, now[field])); err != nil || field != "version" && a.String() != b.String() {
						t.Errorf("%s: %s changed from %s to %s, %v", name, field, &a, &b, err)
					}
				}
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*"+bakSuffix)); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// Cut short at each write, the file is there, whole, and the next start goes on.
func TestMigrationCutShort(t *testing.T) {
	cut := errors.New("the power is gone")
	for _, name := range []string{agentFile, nodeFile} {
		for at := range 3 {
			dir := goldenState(t, 1)
			path := filepath.Join(dir, name)
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			writes := 0
			err = newFolder(dir, nil).migrateFile(name, func(path string, data []byte, perm fs.FileMode) error {
				if writes == at {
					return cut
				}
				writes++
				return platform.WriteFileAtomic(path, data, perm)
			})
			if (err != nil) != (at < 2) {
				t.Fatalf("%s, write %d: %v", name, at, err)
			}
			now, err := os.ReadFile(path)
			if err != nil || at < 2 && !bytes.Equal(now, old) || at == 2 && bytes.Equal(now, old) {
				t.Errorf("%s, write %d: another file, %v", name, at, err)
			}
			if bak, err := os.ReadFile(path + bakSuffix); at == 1 && (err != nil || !bytes.Equal(bak, old)) || at != 1 && err == nil {
				t.Errorf("%s, write %d: .bak: %v", name, at, err)
			}
			n, err := New(Options{StateDir: dir, Caller: func(net.Conn) error { return nil }})
			if err != nil {
				t.Fatalf("%s, write %d: %v", name, at, err)
			}
			if _, err := os.Stat(path + bakSuffix); err == nil {
				t.Errorf("%s, write %d: .bak is still there", name, at)
			}
			if err := n.unlock(); err != nil {
				t.Error(err)
			}
		}
	}
}

// What this version can't know, and what is no state, is an error, and is not touched.
func TestStateThatIsNone(t *testing.T) {
	for text, want := range map[string]string{
		fmt.Sprintf(`{"version":%d,"from_the_future":1}`, stateVersion+1): localapi.CodeStateVersion,
		`{"version":99999999999999999999}`:                                localapi.CodeStateDamaged,
		`{"version":0}`:                                                   localapi.CodeStateDamaged,
		`{"version":"1"}`:                                                 localapi.CodeStateDamaged,
		`{}`:                                                              localapi.CodeStateDamaged,
		`null`:                                                            localapi.CodeStateDamaged,
		``:                                                                localapi.CodeStateDamaged,
		`{"version":1`:                                                    localapi.CodeStateDamaged,
		`{"version":1,"unknown":1}`:                                       localapi.CodeStateDamaged,
	} {
		for _, name := range []string{agentFile, tunnelFile, nodeFile} {
			dir := goldenState(t, stateVersion)
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := New(Options{StateDir: dir})
			if got := code(err); got != want {
				t.Errorf("%s with %s: %v", name, text, err)
			}
			kept, _ := os.ReadFile(path)
			if left, _ := filepath.Glob(path + "*"); string(kept) != text || len(left) != 1 {
				t.Errorf("%s: %s became %s; %v", name, text, kept, left)
			}
		}
	}
}

func FuzzMigrate(f *testing.F) {
	for version := 1; version <= stateVersion; version++ {
		raw, err := os.ReadFile(fmt.Sprintf("testdata/state/v%d/node.json", version))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(nodeFile, raw)
	}
	f.Add(agentFile, []byte(`{"version":1,"seed":"AAAA"}`))
	f.Add(nodeFile, []byte(`{"version":2,"version":1,"authority":null}`))
	f.Fuzz(func(t *testing.T, name string, raw []byte) {
		out, err := migrate(name, raw)
		if err != nil {
			return
		}
		again, err := migrate(name, out)
		if err != nil || !bytes.Equal(again, out) {
			t.Errorf("%q became %q, and then %q, %v", raw, out, again, err)
		}
	})
}
