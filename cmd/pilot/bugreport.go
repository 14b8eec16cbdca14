// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/bugreport"
	"github.com/pilot-protocol/pilot/node/doctor"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// reportResult says where the report is.
type reportResult struct {
	File     string   `json:"file"`
	Bytes    int64    `json:"bytes"`
	Files    []string `json:"files"` // in the archive
	Redacted bool     `json:"redacted"`
	Missing  []string `json:"missing,omitempty"` // what could not be had, and why
}

func (p *program) bugreportCommand() *cli.Command {
	return &cli.Command{
		Name: "bugreport", Usage: "make one archive for those who look for a defect, without a secret in it",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`, which must not exist; otherwise a name with the time, in the current folder"},
			&cli.BoolFlag{Name: "redact", Usage: "replace names, public addresses, overlay addresses and public keys, the same by the same"},
		},
		Description: manual{
			about: `Makes a tar.gz, readable by you alone, with: version, status, netcheck, doctor, what the doctor looked at (interfaces, routes,
resolver, service, clock), the latest lines of the daemon's log, the end of its log file or journal, where its goroutines
are, and its metrics. A README.txt in it says what each file is. It works without a daemon too, with less.

There is no private key, join key, invite, password or token in it: what goes in is named, and what looks like a secret is
taken out of that once more. Without --redact it has names, public keys and addresses of this agent and its peers. Look
into it before you pass it on.`,
			examples: []string{"pilot bugreport", "sudo pilot bugreport --redact -o /tmp/report.tar.gz"},
			exits:    []int{localapi.ExitConflict},
			result:   reflect.TypeFor[reportResult](),
		}.String(),
		Action: p.bugreport,
	}
}

func (p *program) bugreport(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	dir, err := p.stateDir(c)
	if err != nil {
		return err
	}
	name := c.String("output")
	if name == "" {
		name = "pilot-bugreport-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return &localapi.Error{Code: localapi.CodeConflict, Message: shown(name) + " exists already", Hint: "give another name: -o FILE"}
	case err != nil:
		return err
	}
	result, err := p.writeBugreport(c.Context, file, dir, c.Bool("redact"))
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	if result.File, err = filepath.Abs(name); err != nil {
		return err
	}
	return p.show(c, result, func(w io.Writer) {
		line(w, "report", "%s  (%s)", result.File, size(uint64(result.Bytes)))
		line(w, "files", "%s", strings.Join(result.Files, ", "))
		for _, m := range result.Missing {
			line(w, "missing", "%s", m)
		}
		if !result.Redacted {
			line(w, "note", "it has names, addresses and public keys; without them: --redact")
		}
	})
}

func (p *program) writeBugreport(ctx context.Context, file *os.File, dir string, redact bool) (reportResult, error) {
	contents := p.reportContents(ctx, dir)
	if err := ctx.Err(); err != nil {
		return reportResult{}, err
	}
	files, err := bugreport.Write(file, contents, redact)
	if err != nil {
		return reportResult{}, err
	}
	info, err := file.Stat()
	if err != nil {
		return reportResult{}, err
	}
	return reportResult{Bytes: info.Size(), Files: files, Redacted: redact, Missing: contents.Missing}, nil
}

// reportContents asks the daemon, and looks for what it left in its log before it ended, if it did.
func (p *program) reportContents(ctx context.Context, dir string) bugreport.Contents {
	c := bugreport.Contents{At: time.Now(), Version: buildVersion(), Facts: p.facts(ctx, dir)}
	missing := func(what string, err error) {
		if err != nil {
			c.Missing = append(c.Missing, what+": "+asError(err).Message)
		}
	}
	if e := c.Facts.DaemonErr; e != nil {
		missing("status, netcheck, log, goroutines, metrics", e)
	} else {
		client := p.clientAt(p.sys.SocketPath(dir))
		d, err := ask(ctx, askLimit, client.Diagnose)
		missing("log, goroutines", err)
		c.Log, c.Goroutines = d.Log, d.Goroutines
		c.Metrics, err = ask(ctx, askLimit, client.Metrics)
		missing("metrics", err)
	}
	if e := c.Facts.NetcheckErr; e != nil {
		missing("netcheck", e)
	}
	var err error
	c.OldLog, err = p.oldLog(ctx, dir, c.Facts)
	missing("log-old", err)
	c.Hostname, _ = os.Hostname() // where there is none, there is nothing to hide
	return c
}

// oldLines is how much of the journal is asked for.
const oldLines = "2000"

// oldLog reads the end of the log that is outside of the daemon: in the journal where the service runs it, else in its file.
func (p *program) oldLog(ctx context.Context, dir string, f doctor.Facts) ([]string, error) {
	if f.System && f.Host.Service.Value.Installed {
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		var stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, "journalctl", "--unit=pilot.service", "--lines="+oldLines, "--output=cat", "--no-pager", "--quiet")
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err == nil && len(out) == 0 {
			err = errors.New("the journal shows nothing of pilot.service to this user")
		} else if err != nil {
			err = fmt.Errorf("journalctl: %w: %s", err, strings.TrimSpace(stderr.String()))
		}
		return strings.SplitAfter(string(out), "\n"), err
	}
	tail, err := readTail(filepath.Join(dir, logName), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.SplitAfter(strings.TrimSuffix(string(tail), "\n"), "\n"), err
}
