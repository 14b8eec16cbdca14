// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

const overview = `Every agent has a permanent IPv6 address and a name; programs use plain sockets, and everything between two hosts
is encrypted. Two agents talk when both consented.

first steps:
  on one host:      sudo pilot up --name planner      makes a network and prints an invite
  on another one:   sudo pilot up --name warehouse pilot://…
  then, there:      curl http://planner/

Flags may stand before or after arguments; "--" ends them. Lengths of time are written like 90s, 24h, 7d.
Nothing asks questions. Results are on standard output; progress, warnings and hints on standard error.

errors:
  pilot: what happened
  hint: what to do next
  suggestion: what was probably meant, or a name that is free
With --json an error is {"error":{"code":…,"message":…,"hint":…,"suggestion":…}} on standard output. Codes are stable.
`

type helpResult struct {
	Command string `json:"command"`
	Help    string `json:"help"`
}

func (p *program) helpCommand() *cli.Command {
	return &cli.Command{
		Name: "help", Usage: "explain a command", ArgsUsage: "[COMMAND …]",
		Description: manual{
			about:    "Prints what a command does, its flags, its exit statuses and its JSON. The same as COMMAND --help.",
			examples: []string{"pilot help up", "pilot help trust approve"},
			result:   reflect.TypeFor[helpResult](),
		}.String(),
		Action: p.help,
	}
}

func (p *program) help(c *cli.Context) error {
	var path []*cli.Command
	commands := c.App.Commands
	for _, word := range c.Args().Slice() {
		found := (*cli.Command)(nil)
		for _, sub := range commands {
			if sub.HasName(word) {
				found = sub
			}
		}
		if found == nil {
			return unknownCommand(commands, word)
		}
		path, commands = append(path, found), found.Subcommands
	}
	return p.showHelp(c.App, path, c.Bool("json"))
}

// showHelp prints the help on a command, or on pilot itself where path is empty.
func (p *program) showHelp(app *cli.App, path []*cli.Command, asJSON bool) error {
	var b bytes.Buffer
	if len(path) == 0 {
		writeOverview(&b, app)
	} else {
		writeCommand(&b, app, path)
	}
	if asJSON {
		return p.writeJSON(helpResult{Command: commandName(path), Help: b.String()})
	}
	_, err := p.stdout.Write(b.Bytes())
	return err
}

func writeOverview(w io.Writer, app *cli.App) {
	fmt.Fprintf(w, "pilot - %s\n\nusage:\n  pilot COMMAND [flags] [arguments]\n\n%s\n", app.Usage, app.Description)
	writeCommands(w, "pilot", app.Commands)
	writeFlags(w, "flags of all commands", app.Flags)
	fmt.Fprintf(w, "\nexit statuses:\n")
	for status := localapi.ExitOK; status <= localapi.ExitProblems; status++ {
		fmt.Fprintf(w, "  %-5d%s\n", status, exitMeaning(status))
	}
	fmt.Fprintf(w, "  %-5d%s\n\nmore: pilot help COMMAND\n", exitInterrupted, exitMeaning(exitInterrupted))
}

func writeCommand(w io.Writer, app *cli.App, path []*cli.Command) {
	c := path[len(path)-1]
	name := commandName(path)
	fmt.Fprintf(w, "%s - %s\n\nusage:\n  %s\n", name, c.Usage, usageLine(name, c))
	about, rest, _ := strings.Cut(c.Description, examplesHeading)
	fmt.Fprintf(w, "\n%s", about)
	if len(c.Subcommands) > 0 {
		fmt.Fprintln(w)
		writeCommands(w, name, c.Subcommands)
	}
	writeFlags(w, "flags", c.Flags)
	writeFlags(w, "flags of all commands", app.Flags)
	fmt.Fprint(w, examplesHeading+rest)
}

func usageLine(name string, c *cli.Command) string {
	text := name
	if len(c.Flags) > 0 {
		text += " [flags]"
	}
	if c.ArgsUsage != "" {
		text += " " + c.ArgsUsage
	}
	return text
}

// synopsis is the usage line of the command that runs.
func synopsis(c *cli.Command) string { return usageLine(c.HelpName, c) }

func writeCommands(w io.Writer, prefix string, commands []*cli.Command) {
	fmt.Fprintln(w, "commands:")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range commands {
		if !c.Hidden {
			fmt.Fprintf(tw, "  %s\t%s\n", strings.TrimSpace(prefix+" "+c.Name+" "+c.ArgsUsage), c.Usage)
		}
	}
	_ = tw.Flush() // into a buffer
}

func writeFlags(w io.Writer, title string, flags []cli.Flag) {
	if len(flags) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s:\n", title)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		placeholder, text := placeholder(d.GetUsage())
		fmt.Fprintf(tw, "  %s\t%s", strings.TrimSpace("--"+f.Names()[0]+" "+placeholder), text)
		if env := d.GetEnvVars(); len(env) > 0 {
			fmt.Fprintf(tw, " (or $%s)", strings.Join(env, ", $"))
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush() // into a buffer
}

// placeholder takes the word in backquotes out of a flag's usage: what stands for its value.
func placeholder(text string) (word, rest string) {
	before, after, ok := strings.Cut(text, "`")
	if !ok {
		return "", text
	}
	word, after, _ = strings.Cut(after, "`")
	return word, before + word + after
}
