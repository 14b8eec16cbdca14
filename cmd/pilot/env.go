// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform/proxy"
)

// variable is one of the environment's.
type variable struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// envResult is what pilot env prints.
type envResult struct {
	Variables []variable `json:"variables"`
	SOCKS5    string     `json:"socks5,omitempty"` // URL with a password; secret
	HTTP      string     `json:"http,omitempty"`   // URL with a password; secret
}

func (p *program) envCommand() *cli.Command {
	return &cli.Command{
		Name: "env", Usage: "print the variables that lead programs through this agent's proxies",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "shell", Value: "sh", Usage: "write them for the `SHELL`: sh, fish or powershell"},
			&cli.BoolFlag{Name: "socks", Usage: "let ALL_PROXY name the SOCKS5 proxy; programs that can't speak that may fail then"},
			&cli.BoolFlag{Name: "unset", Usage: "print what takes the variables away again"},
		},
		Description: manual{
			about: `In userspace mode programs reach agents through the daemon's proxies. This prints HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
NO_PROXY, in capitals and not, for the shell to take over; also NODE_USE_ENV_PROXY for Node.js, which looks
at the variables from 22.21 and 24.5 on (before, it takes a package like undici or global-agent: see docs/operating.md), and
PILOT_AGENT_PROXY, by which nodes that are started in that shell know that these proxies are not for them. Names of agents
are resolved by the daemon: http://planner/ and http://planner.pilot.internal/ both work. What is not an agent's is refused
with a 403, or "not allowed by ruleset" in SOCKS, unless the daemon was started with --proxy-direct.

The variables have a password, without which other users of this host would be let in too: it is that of this state folder,
and stays the same. ALL_PROXY names the HTTP proxy, since some programs fail at the mere sight of a SOCKS proxy.`,
			examples: []string{`eval "$(pilot env)"; curl http://planner/`, "pilot env --shell fish | source", "pilot env --json | jq -r .socks5"},
			exits:    []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitNotFound, localapi.ExitState},
			result:   reflect.TypeFor[envResult](),
		}.String(),
		Action: p.env,
	}
}

func (p *program) env(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	write, unset, err := shellWriter(c.String("shell"))
	if err != nil {
		return err
	}
	var proxies localapi.Proxies
	if !c.Bool("unset") {
		client, err := p.client(c)
		if err != nil {
			return err
		}
		if proxies, err = ask(c.Context, askLimit, client.Proxies); err != nil {
			return err
		}
	}
	result := envResult{Variables: variables(proxies, c.Bool("socks")), SOCKS5: proxies.SOCKS5, HTTP: proxies.HTTP}
	return p.show(c, result, func(w io.Writer) {
		for _, v := range result.Variables {
			if c.Bool("unset") {
				fmt.Fprintln(w, unset(v.Name))
			} else if v.Value != "" {
				fmt.Fprintln(w, write(v.Name, v.Value))
			}
		}
	})
}

// variables are those that programs look at. Some look at the names in capitals only, and some at the others.
func variables(p localapi.Proxies, socks bool) []variable {
	all := p.HTTP
	if all == "" || socks && p.SOCKS5 != "" {
		all = p.SOCKS5
	}
	list := []variable{
		{"HTTP_PROXY", p.HTTP}, {"HTTPS_PROXY", p.HTTP}, {"ALL_PROXY", all}, {"NO_PROXY", "localhost,127.0.0.1,::1"},
	}
	for _, v := range slices.Clone(list) {
		list = append(list, variable{strings.ToLower(v.Name), v.Value})
	}
	var own []string
	for _, text := range []string{p.HTTP, p.SOCKS5} {
		if u, err := url.Parse(text); err == nil && u.Host != "" {
			own = append(own, u.Host)
		}
	}
	return append(list, variable{"NODE_USE_ENV_PROXY", "1"}, variable{proxy.OwnProxies, strings.Join(own, ",")})
}

// shellWriter returns how a shell sets a variable for its children, and takes it away.
func shellWriter(shell string) (set func(name, value string) string, unset func(name string) string, err error) {
	switch shell {
	case "sh":
		return func(name, value string) string {
				return "export " + name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'"
			},
			func(name string) string { return "unset " + name }, nil
	case "fish":
		return func(name, value string) string {
				return "set -gx " + name + " '" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(value) + "'"
			},
			func(name string) string { return "set -e " + name }, nil
	case "powershell":
		return func(name, value string) string {
				return "$env:" + name + " = '" + strings.ReplaceAll(value, "'", "''") + "'"
			},
			func(name string) string { return "Remove-Item -ErrorAction SilentlyContinue env:" + name }, nil
	}
	e := usage("--shell: %q is no shell that is known", shell)
	e.Hint = "known are sh (also for bash, zsh, dash), fish and powershell"
	return nil, nil, e
}
