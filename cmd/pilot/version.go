// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"reflect"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// versionResult says which pilot this is.
type versionResult struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"` // it was built from files that no commit has
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version of this program",
		Description: manual{
			about:    `Prints the version of this program; that of a daemon that runs is in "pilot status".`,
			examples: []string{"pilot version"},
			result:   reflect.TypeFor[versionResult](),
		}.String(),
		Action: func(c *cli.Context) error {
			if err := positional(c, 0, 0); err != nil {
				return err
			}
			v := buildVersion()
			return p.show(c, v, func(w io.Writer) {
				fmt.Fprintf(w, "pilot %s %s/%s %s\n", safe(v.Version), v.OS, v.Arch, v.Go)
			})
		},
	}
}

// buildVersion reads what the Go tool wrote into the binary: the version comes from the tag or the commit.
func buildVersion() versionResult {
	v := versionResult{Version: "unknown", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}
