// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

// stateVersion is written into each file. A file with a higher one was written by a newer pilot and is left alone; those with
// lower ones are brought to this one at the start, by the steps in migrate.go; each version has its files in testdata.
// 2: relays, and jurisdictions to avoid. 3: how packets get to programs, proxies, published ports, and a pass for relays; without
// one a node asks for it at once. 4: keys may be sealed.
const stateVersion = 4

// The files of a state folder. Secrets are in the .key files only.
const (
	agentFile  = "agent.key"  // the identity; written once
	tunnelFile = "tunnel.key" // the tunnel keys of these days
	proxyFile  = "proxy.key"  // the password of the proxies
	nodeFile   = "node.json"  // membership, consents, peers: all signed by somebody else than the file
	lockFile   = "lock"
)

// folder reads and writes a state folder. Each write is atomic and on disk when it returns.
type folder struct {
	dir     string
	sealing platform.Sealing
}

// newFolder takes nil for a system that can't seal.
func newFolder(dir string, sealing platform.Sealing) folder {
	if sealing == nil {
		sealing = func() (platform.Sealer, error) { return nil, platform.ErrUnsupported }
	}
	return folder{dir: dir, sealing: sealing}
}

// savedAgent is agent.key: the seed, or what stands for it.
type savedAgent struct {
	Version int              `json:"version"`
	Seed    []byte           `json:"seed,omitempty"`
	Sealed  *platform.Sealed `json:"sealed,omitempty"`
}

// savedTunnels is tunnel.key: the keys, or what stands for all of them.
type savedTunnels struct {
	Version int              `json:"version"`
	Keys    []savedTunnel    `json:"keys,omitempty"` // newest first
	Sealed  *platform.Sealed `json:"sealed,omitempty"`
}

type savedTunnel struct {
	Secret    []byte `json:"secret"`
	Statement []byte `json:"statement"`
}

// savedNode is node.json. What others signed is kept as they signed it and checked again when it is read.
type savedNode struct {
	Version      int                             `json:"version"`
	Up           bool                            `json:"up"` // the network is wanted
	Name         string                          `json:"name,omitempty"`
	Network      string                          `json:"network,omitempty"`
	Authority    identity.AuthorityPublic        `json:"authority,omitzero"`
	Coordinators []string                        `json:"coordinators,omitempty"`
	Hosted       bool                            `json:"hosted,omitempty"` // the coordinator runs in this daemon
	Listen       string                          `json:"listen,omitempty"` // its address
	Certificate  []byte                          `json:"certificate,omitempty"`
	RelayPass    []byte                          `json:"relay_pass,omitempty"`
	Peers        []api.Peer                      `json:"peers,omitempty"`
	Consents     []api.ConsentEntry              `json:"consents,omitempty"`
	Revocations  [][]byte                        `json:"revocations,omitempty"`
	Pins         map[string]identity.AgentPublic `json:"pins,omitempty"`       // name → key seen first
	Mismatches   map[string][]byte               `json:"mismatches,omitempty"` // name → certificate with another key
	Answered     []answered                      `json:"answered,omitempty"`   // requests that were turned down
	Outbox       [][]byte                        `json:"outbox,omitempty"`     // consents that the coordinator hasn't got yet
	Relays       [][]byte                        `json:"relays,omitempty"`
	Relay        localapi.HostedRelay            `json:"relay,omitzero"` // what the coordinator in this daemon is beside
	// AvoidJurisdictions are those whose relays must not carry this node's traffic.
	AvoidJurisdictions []string `json:"avoid_jurisdictions,omitempty"`
	Owner              uint32   `json:"owner,omitempty"` // of an agent besides the daemon's own: who may act as it
	// TUN is how packets got to programs last: localapi.TUNKernel or TUNUserspace.
	TUN     string       `json:"tun,omitempty"`
	Proxies savedProxies `json:"proxies,omitzero"`
	// Served are the published ports.
	Served []savedPort `json:"served,omitempty"`
}

// answered says up to which serial an agent's requests have got a no.
type answered struct {
	Agent  identity.AgentPublic `json:"agent"`
	Serial uint64               `json:"serial"`
}

// member reports whether the node belongs to a network.
func (s savedNode) member() bool { return !s.Authority.IsZero() && len(s.Certificate) > 0 }

// read decodes a file of this version into v. found is false if there is none; every other trouble is an error that leaves
// the file.
func (f folder) read(name string, v any) (found bool, err error) {
	path := filepath.Join(f.dir, name)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, unreadable(path, err)
	}
	if raw, err = migrate(name, raw); err != nil { // which has nothing to do since the start, unless somebody put an older file there
		return false, damaged(path, err)
	}
	if err := strict(raw, v); err != nil {
		return false, damaged(path, err)
	}
	return true, nil
}

func unreadable(path string, err error) error {
	return &localapi.Error{Code: localapi.CodePermission, Message: fmt.Sprintf("can't read %s: %v", path, err), Hint: "run as root"}
}

func damaged(path string, err error) error {
	if errors.Is(err, errTooNew) {
		return &localapi.Error{Code: localapi.CodeStateVersion, Message: path + ": " + err.Error(), Hint: "install the newer pilot again"}
	}
	return &localapi.Error{
		Code:    localapi.CodeStateDamaged,
		Message: fmt.Sprintf("%s is damaged and was left as it is: %v", path, err),
		Hint:    "restore it from a backup; or move it away, and join again with a new invite",
	}
}

func unwritten(err error) error {
	return &localapi.Error{Code: localapi.CodeInternal, Message: "can't write the state: " + err.Error(), Hint: "is the disk full?"}
}

func (f folder) write(name string, v any) error {
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	if err := platform.WriteFileAtomic(filepath.Join(f.dir, name), append(raw, '\n'), 0o600); err != nil {
		return unwritten(err)
	}
	return nil
}

// writtenAfter reports whether node.json was written later than now: the clock was set back since. Peers remember the time
// of the last handshake under each tunnel key, and would take those of an earlier time for replays.
func (f folder) writtenAfter(now time.Time) bool {
	info, err := os.Stat(filepath.Join(f.dir, nodeFile))
	return err == nil && info.ModTime().After(now.Add(clockStep))
}

// clockStep is by how much a clock may go back without notice: small corrections, and file systems that round times up.
const clockStep = 2 * time.Second

// agentKey returns the identity, making it the first time.
func (f folder) agentKey(random func() (identity.AgentKey, error)) (identity.AgentKey, error) {
	var saved savedAgent
	found, err := f.read(agentFile, &saved)
	if err != nil {
		return identity.AgentKey{}, err
	}
	if found && saved.Sealed != nil {
		if saved.Seed, err = f.unseal(agentFile, saved.Sealed); err != nil {
			return identity.AgentKey{}, err
		}
	}
	if found {
		if len(saved.Seed) != identity.KeySize {
			return identity.AgentKey{}, damaged(filepath.Join(f.dir, agentFile), fmt.Errorf("a seed of %d bytes", len(saved.Seed)))
		}
		return identity.AgentKeyFromSeed([identity.KeySize]byte(saved.Seed)), nil
	}
	key, err := random()
	if err != nil {
		return identity.AgentKey{}, err
	}
	seed := key.Seed()
	return key, f.write(agentFile, savedAgent{Version: stateVersion, Seed: seed[:]})
}

// tunnelKeys returns the tunnel keys that the agent's statements still speak for, newest first.
func (f folder) tunnelKeys(network identity.AuthorityPublic, agent identity.AgentPublic) ([]tunnelKey, error) {
	var saved savedTunnels
	if _, err := f.read(tunnelFile, &saved); err != nil {
		return nil, err
	}
	path := filepath.Join(f.dir, tunnelFile)
	if saved.Sealed != nil {
		plain, err := f.unseal(tunnelFile, saved.Sealed)
		if err != nil {
			return nil, err
		}
		if err := strict(plain, &saved.Keys); err != nil {
			return nil, damaged(path, errors.New("what was sealed is no list of keys"))
		}
	}
	var keys []tunnelKey
	for _, k := range saved.Keys {
		if len(k.Secret) != identity.KeySize {
			return nil, damaged(path, fmt.Errorf("a key of %d bytes", len(k.Secret)))
		}
		key, err := identity.TunnelKeyFromBytes([identity.KeySize]byte(k.Secret))
		if err != nil {
			return nil, damaged(path, err)
		}
		statement, err := identity.OpenTunnelStatement(k.Statement, network)
		if errors.Is(err, identity.ErrNetwork) {
			continue // of a network that this node has left
		}
		if err != nil {
			return nil, damaged(path, err)
		}
		if statement.Agent != agent || statement.Tunnel != key.Public() {
			return nil, damaged(path, errors.New("a key and its statement don't belong together"))
		}
		keys = append(keys, tunnelKey{key: key, statement: statement})
	}
	return keys, nil
}

func (f folder) saveTunnelKeys(keys []tunnelKey) error {
	saved := savedTunnels{Version: stateVersion}
	for _, k := range keys {
		secret := k.key.Bytes()
		saved.Keys = append(saved.Keys, savedTunnel{Secret: secret[:], Statement: k.statement.Raw()})
	}
	// They are kept as the identity is, and never less well because sealing fails just now.
	if place, err := f.keysPlace(); err != nil {
		return err
	} else if place != localapi.KeysInFile {
		plain, err := json.Marshal(saved.Keys)
		if err != nil {
			return err
		}
		if saved.Sealed, err = platform.Seal(f.sealing, tunnelFile, plain); err != nil {
			return explain(err)
		}
		saved.Keys = nil
	}
	return f.write(tunnelFile, saved)
}

// tunnelKey is a tunnel key with the statement that the identity signed for it.
type tunnelKey struct {
	key       identity.TunnelKey
	statement identity.TunnelStatement
}

const (
	// tunnelLife is how long a tunnel key's statement holds.
	tunnelLife = 24 * time.Hour
	// tunnelSkew dates statements back a little, for peers whose clocks are behind.
	tunnelSkew = 10 * time.Minute
	// keptTunnels is how many tunnel keys still answer: the present one and those that peers may still hold.
	keptTunnels = 3
)

// renewAt is when something with a life is due for renewal: at two thirds.
func renewAt(notBefore, notAfter time.Time) time.Time {
	return notBefore.Add(notAfter.Sub(notBefore) / 3 * 2)
}
