// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"reflect"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) keysCommand() *cli.Command {
	about := `Shows, or moves, the private keys of this agent. They are in the state folder: as they are, in files of mode 0600, or sealed
by what the system offers, so that a copy of the disk or a backup doesn't have them.

  Linux    systemd-creds: by the TPM and the host's key where there is a TPM, else by the host's key, which only root can read.
           The service, which is not root, needs systemd 256 or newer
  macOS    the system's Keychain
  Windows  the Data Protection API, with the machine's key

Sealed keys open on this host only, and for this user only: without a backup made before, they are lost with the host or
its TPM.`
	return &cli.Command{
		Name: "keys", Usage: "show where the private keys are, and move them",
		Description: manual{
			about: about, examples: []string{"pilot keys", "sudo pilot keys move --to system"},
			exits: []int{localapi.ExitForbidden, localapi.ExitState}, result: reflect.TypeFor[localapi.KeysStatus](),
		}.String(),
		Action: func(c *cli.Context) error { return p.keys(c, "") },
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "show where each key is, and what the system offers",
				Description: manual{
					about:    "Shows for each file with a private key how it is kept. No key is opened for that.",
					examples: []string{"pilot keys status"},
					exits:    []int{localapi.ExitForbidden, localapi.ExitState},
					result:   reflect.TypeFor[localapi.KeysStatus](),
				}.String(),
				Action: func(c *cli.Context) error { return p.keys(c, "") },
			},
			{
				Name: "move", Usage: "seal the keys by what the system offers, or put them back into files",
				Flags: []cli.Flag{&cli.StringFlag{Name: "to", Usage: "`PLACE` for the keys: file or system"}},
				Description: manual{
					about: `Moves the identity, the tunnel keys and the authority's key of a coordinator in the daemon; sessions go on. Each file is
replaced as a whole, once what shall stand in it was proved to open again, so that a crash in between loses nothing; what
was not moved then is moved by the same command. The relay's key and the password of the proxies stay in files. Blocks of
the disk that held an unsealed key are not overwritten.

A daemon that runs moves its own keys. Without one it has to be the user whose folder it is.`,
					examples: []string{"sudo pilot keys move --to system", "sudo pilot keys move --to file"},
					exits:    []int{localapi.ExitForbidden, localapi.ExitState},
					result:   reflect.TypeFor[localapi.KeysStatus](),
				}.String(),
				Action: func(c *cli.Context) error {
					switch to := c.String("to"); to {
					case localapi.KeysInFile, localapi.KeysInSystem:
						return p.keys(c, to)
					case "":
						return usage("where to? --to file, or --to system")
					default:
						return usage("keys can't be moved to %q: --to file, or --to system", shown(to))
					}
				},
			},
		},
	}
}

// keys moves the keys if to is not empty, and shows where they are: by the daemon, or where none runs by itself.
func (p *program) keys(c *cli.Context, to string) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	dir, err := p.stateDir(c)
	if err != nil {
		return err
	}
	client := p.clientAt(p.sys.SocketPath(dir))
	s, err := ask(c.Context, askLimit, func(ctx context.Context) (localapi.KeysStatus, error) {
		if to == "" {
			return client.Keys(ctx)
		}
		return client.MoveKeys(ctx, localapi.KeysMove{To: to})
	})
	if codeOf(err) == localapi.CodeNotRunning {
		s, err = p.sys.Keys(dir, to)
	}
	if err != nil {
		return err
	}
	return p.show(c, s, func(w io.Writer) { writeKeys(w, &s) })
}

func writeKeys(w io.Writer, s *localapi.KeysStatus) {
	rows := [][]string{{"KEY", "KEPT"}}
	for _, k := range s.Keys {
		in := "sealed by " + k.In
		if k.In == localapi.KeysInFile {
			in = "in the file"
		}
		rows = append(rows, []string{k.File, in})
	}
	if len(s.Keys) > 0 {
		table(w, rows...)
	} else {
		line(w, "keys", "none yet: pilot up makes them")
	}
	if s.System != "" {
		line(w, "offered", "%s", s.System)
	} else {
		line(w, "offered", "nothing but files: %s", s.SystemWhy)
	}
}
