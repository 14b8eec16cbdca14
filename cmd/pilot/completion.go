// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/identity"
)

// The scripts ask pilot itself what may come next. They never evaluate the typed line or the answers: completing must
// not run what somebody typed, nor what an agent is called.
const (
	bashCompletion = `# pilot completion for bash
_pilot() {
    local current="${COMP_WORDS[COMP_CWORD]}" word
    local request=("${COMP_WORDS[@]:0:COMP_CWORD}")
    if [[ $current == -* ]]; then
        request+=("$current")
    fi
    COMPREPLY=()
    while IFS= read -r word; do
        if [[ $word == "$current"* ]]; then
            COMPREPLY+=("$word")
        fi
    done < <("${request[@]}" --generate-bash-completion 2>/dev/null)
}
complete -o default -F _pilot pilot
`
	zshCompletion = `#compdef pilot
_pilot() {
    local -a request answers
    request=("${(@Q)words[1,CURRENT-1]}")
    if [[ ${words[CURRENT]} == -* ]]; then
        request+=("${words[CURRENT]}")
    fi
    answers=("${(@f)$("${request[@]}" --generate-bash-completion 2>/dev/null)}")
    if [[ -n ${answers[1]} ]]; then
        compadd -- "${answers[@]}"
    else
        _files
    fi
}
if [[ ${funcstack[1]} == _pilot ]]; then
    _pilot "$@"
else
    compdef _pilot pilot
fi
`
	fishCompletion = `# pilot completion for fish
function __pilot_complete
    set -l request (commandline -opc)
    set -l current (commandline -ct)
    if string match -q -- '-*' $current
        set request $request $current
    end
    $request --generate-bash-completion 2>/dev/null
end
complete -c pilot -a '(__pilot_complete)'
`
)

type completionResult struct {
	Shell  string `json:"shell"`
	Script string `json:"script"`
}

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a script that completes pilot's commands, flags and agents", ArgsUsage: "bash|zsh|fish",
		BashComplete: func(*cli.Context) { fmt.Fprint(p.stdout, "bash\nzsh\nfish\n") },
		Description: manual{
			about: "Prints a script for the shell. It completes commands, flags and the names of agents.",
			examples: []string{
				"pilot completion bash > /etc/bash_completion.d/pilot",
				`pilot completion zsh > "${fpath[1]}/_pilot"`,
				"pilot completion fish > ~/.config/fish/completions/pilot.fish",
			},
			result: reflect.TypeFor[completionResult](),
		}.String(),
		Action: p.completion,
	}
}

func (p *program) completion(c *cli.Context) error {
	if err := positional(c, 1, 1); err != nil {
		return err
	}
	r := completionResult{Shell: c.Args().First()}
	switch r.Shell {
	case "bash":
		r.Script = bashCompletion
	case "zsh":
		r.Script = zshCompletion
	case "fish":
		r.Script = fishCompletion
	default:
		e := usage("there is no completion for %q", r.Shell)
		e.Hint = "shells are bash, zsh and fish"
		return e
	}
	return p.show(c, r, func(w io.Writer) { _, _ = io.WriteString(w, r.Script) })
}

// complete offers flags where one is begun, and subcommands otherwise, a line each.
func (p *program) complete(c *cli.Context) {
	if !strings.HasPrefix(p.last, "-") {
		for _, sub := range c.Command.Subcommands {
			if !sub.Hidden {
				fmt.Fprintln(p.stdout, sub.Name)
			}
		}
		return
	}
	for _, f := range slices.Concat(c.Command.Flags, globalFlags()) {
		if name := "--" + f.Names()[0]; strings.HasPrefix(name, p.last) {
			fmt.Fprintln(p.stdout, name)
		}
	}
}

// completeAgents offers the names of agents besides.
func (p *program) completeAgents(c *cli.Context) {
	p.complete(c)
	if strings.HasPrefix(p.last, "-") {
		return
	}
	client, err := p.client(c)
	if err != nil {
		return // a shell that completes shows no errors
	}
	list, err := ask(c.Context, time.Second, client.Agents)
	if err != nil {
		return
	}
	for _, a := range list.Agents {
		if identity.ValidateName(a.Name) == nil { // nothing else may reach a shell
			fmt.Fprintln(p.stdout, a.Name)
		}
	}
}
