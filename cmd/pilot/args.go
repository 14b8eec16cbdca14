// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// invocation is a command line in the order that the flag parser needs: it stops at the first argument that is no flag,
// and people write flags before and after arguments.
type invocation struct {
	args []string       // the program, global flags, the command, its flags, "--", its arguments
	path []*cli.Command // the command, outermost first; empty for the program itself
	help bool           // help on the path is asked for
	json bool           // --json was given
}

// arranger walks over a command line once, from left to right.
type arranger struct {
	app      *cli.App
	commands []*cli.Command // those that may come next
	inv      invocation
	globals  []string
	own      []flagUse
	rest     []string // arguments
}

// flagUse is a flag of the command with its value, as it was written.
type flagUse struct {
	name string
	args []string
}

// arrange orders a command line. The returned invocation is filled as far as it was understood, also with an error.
func arrange(app *cli.App, args []string) (invocation, error) {
	a := &arranger{app: app, commands: app.Commands}
	err := a.walk(args[min(1, len(args)):])
	if err == nil {
		err = a.checkFlags()
	}
	if len(a.inv.path) == 0 {
		a.inv.help = true
	}
	a.inv.args = append([]string{app.Name}, a.globals...)
	for _, c := range a.inv.path {
		a.inv.args = append(a.inv.args, c.Name)
	}
	for _, f := range a.own {
		a.inv.args = append(a.inv.args, f.args...)
	}
	a.inv.args = append(append(a.inv.args, "--"), a.rest...)
	if err != nil {
		return a.inv, err // not a nil *localapi.Error in an interface
	}
	return a.inv, nil
}

func (a *arranger) walk(args []string) error {
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--":
			a.rest = append(a.rest, args[i+1:]...)
			return nil
		case arg == "-" || !strings.HasPrefix(arg, "-"):
			if err := a.word(arg); err != nil {
				a.inv.json = a.inv.json || slices.Contains(args[i:], "--json")
				return err
			}
		case arg == "-h" || arg == "--help":
			a.inv.help = true
		case arg == "--version" && len(a.inv.path) == 0:
			if err := a.word("version"); err != nil {
				return err
			}
		default:
			used, err := a.flag(args[i:])
			if err != nil {
				a.inv.json = a.inv.json || slices.Contains(args[i:], "--json")
				return err
			}
			i += used - 1
		}
	}
	return nil
}

// word takes an argument that is no flag: the name of a command, or an argument of the last one.
func (a *arranger) word(arg string) error {
	if len(a.rest) == 0 {
		for _, c := range a.commands {
			if c.HasName(arg) {
				a.inv.path, a.commands = append(a.inv.path, c), c.Subcommands
				return nil
			}
		}
		if len(a.inv.path) == 0 {
			return unknownCommand(a.app.Commands, arg)
		}
	}
	a.rest = append(a.rest, arg)
	return nil
}

// flag takes a flag and the value that follows it, and returns how many of args these were.
func (a *arranger) flag(args []string) (int, error) {
	name, _, hasValue := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
	global := findFlag(a.app.Flags, name)
	f := global
	if f == nil {
		f = findFlag(a.flags(), name)
	}
	if f == nil {
		return 0, a.unknownFlag(args[0], name)
	}
	used := 1
	if takesValue(f) && !hasValue {
		if used = 2; len(args) < 2 {
			e := usage("%s needs a value", args[0])
			e.Hint = a.hint()
			return 0, e
		}
	}
	if name == "json" {
		a.inv.json = args[0] != "--json=false"
	}
	if global != nil {
		a.globals = append(a.globals, args[:used]...)
	} else {
		a.own = append(a.own, flagUse{name: name, args: args[:used]})
	}
	return used, nil
}

// flags are those of the present command, and of its subcommands: one may stand before the name of the subcommand.
func (a *arranger) flags() []cli.Flag {
	if len(a.inv.path) == 0 {
		return nil
	}
	c := a.inv.path[len(a.inv.path)-1]
	flags := slices.Clone(c.Flags)
	for _, sub := range c.Subcommands {
		flags = append(flags, sub.Flags...)
	}
	return flags
}

// checkFlags refuses flags of another command than the one that was named in the end.
func (a *arranger) checkFlags() error {
	if a.inv.help {
		return nil
	}
	for _, f := range a.own {
		c := a.inv.path[len(a.inv.path)-1]
		if findFlag(c.Flags, f.name) == nil {
			e := usage("--%s is no flag of %s", f.name, commandName(a.inv.path))
			e.Hint = a.hint()
			return e
		}
	}
	return nil
}

func (a *arranger) hint() string { return "see: " + helpFor(a.inv.path) }

func (a *arranger) unknownFlag(arg, name string) *localapi.Error {
	arg, _, _ = strings.Cut(arg, "=") // a value may be a secret
	e := usage("there is no flag %s", arg)
	e.Hint = a.hint()
	var names []string
	for _, f := range slices.Concat(a.flags(), a.app.Flags) {
		names = append(names, f.Names()...)
	}
	if near := nearest(names, name); near != "" {
		e.Suggestion = "--" + near
	}
	return e
}

func unknownCommand(commands []*cli.Command, arg string) *localapi.Error {
	e := usage("there is no command %q", shown(arg))
	e.Hint = "see: pilot help"
	if strings.HasPrefix(arg, inviteScheme) {
		e.Suggestion = "pilot up INVITE"
		return e
	}
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Names()...)
		}
	}
	e.Suggestion = nearest(names, arg)
	return e
}

// nearest is the name that was probably meant; empty where none is similar.
func nearest(names []string, word string) string {
	const similar, boost, prefix = 0.75, 0.7, 4 // as usual for Jaro-Winkler; below 0.75 a guess is rather a riddle
	best, found := similar, ""
	for _, name := range names {
		if score := smetrics.JaroWinkler(name, word, boost, prefix); score > best && len(name) > 1 {
			best, found = score, name
		}
	}
	return found
}

func findFlag(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

// commandName is how a command is called: "pilot trust approve".
func commandName(path []*cli.Command) string {
	name := "pilot"
	for _, c := range path {
		name += " " + c.Name
	}
	return name
}

func helpFor(path []*cli.Command) string {
	return strings.Replace(commandName(path), "pilot", "pilot help", 1)
}
