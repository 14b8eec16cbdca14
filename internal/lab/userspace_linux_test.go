// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// pilotAs runs a user's pilot with --json and decodes its answer.
func pilotAs[T any](ctx context.Context, t *testing.T, u *user, args ...string) T {
	t.Helper()
	var answer T
	out := u.Must(ctx, u.as(append([]string{u.pilot, "--json"}, args...)...)...)
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("%s: %v in %s", u.Name(), err, out)
	}
	return answer
}

// sh runs a line of a shell as the user, with the variables of pilot env.
func (u *user) sh(ctx context.Context, line string) Result {
	return u.Run(ctx, u.as("sh", "-c", `eval "$(`+u.pilot+` env)"; `+line)...)
}

// urllibScript fetches with nothing but Python's own library.
const urllibScript = `import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode(), end="")`

// requestsScript fetches with the library that most programs in Python use.
const requestsScript = `import sys, requests; print(requests.get(sys.argv[1], timeout=10).text, end="")`

// nodeScript fetches as programs for a Node.js do that looks at the variables by itself (22.21, and from 24 on), and with
// undici, told of the proxy, where it doesn't.
const nodeScript = `
const proxy = new URL(process.env.HTTP_PROXY), [major, minor] = process.versions.node.split(".").map(Number)
let get = fetch
if (major < 24 && !(major == 22 && minor >= 21)) {
	const undici = require("undici")
	undici.setGlobalDispatcher(new undici.ProxyAgent({
		uri: proxy.origin, token: "Basic " + Buffer.from(proxy.username + ":" + proxy.password).toString("base64"),
	}))
	get = undici.fetch
}
get(process.argv[1]).then(r => r.text()).then(text => process.stdout.write(text))
`

// Ordinary users of hosts without /dev/net/tun, and of one where it may not be used, are members of the network: unmodified
// programs reach agents by name through the proxies, and nothing else.
func TestUserspace(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m, _ := openWorld(t)
	Programs(t, "git", pythonRequests, pythonSocks, "node", nodeUndici)
	found(t, m.a, "planner")
	m.a.WriteFile("index.html", "the plan", 0o644)
	m.a.Must(ctx, "sh", "-c", "git init -q work && cd work && git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m first && "+
		"git clone -q --bare . ../plans.git && cd ../plans.git && git update-server-info")
	serve(m.a)
	b, c := m.b.user(), m.c.user()
	m.b.must("rm", "/dev/net/tun")
	for name, u := range map[string]*user{"indexer": b, "crawler": c} {
		before := u.Snapshot()
		up := pilotAs[localapi.UpResult](ctx, t, u, "up", "--name", name, "--invite-file", u.invite(t, m.a))
		if up.TUN != localapi.TUNUserspace || up.TUNWhy == "" || up.SOCKS5 == "" || up.HTTPProxy == "" || !up.Joined {
			t.Errorf("the answer to up: %+v", up)
		}
		for line, want := range map[string]string{
			"curl -sS --max-time 10 http://planner/":                "the plan",
			"curl -sS --max-time 10 http://planner.pilot.internal/": "the plan",
			"curl -sS --max-time 10 --proxytunnel http://planner/":  "the plan",
			`unset http_proxy; ALL_PROXY= all_proxy=$(` + u.pilot + ` --json env | grep -o 'socks5h://[^"]*' | head -n 1) curl -sS --max-time 10 http://planner/`: "the plan",
			"python3 -c '" + urllibScript + "' http://planner/":                                                                       "the plan",
			"python3 -c '" + requestsScript + "' http://planner/":                                                                     "the plan",
			`eval "$(` + u.pilot + ` env --socks)"; unset http_proxy HTTP_PROXY; python3 -c '` + requestsScript + "' http://planner/": "the plan",
			"NODE_PATH=" + nodeModules + " node -e '" + nodeScript + "' http://planner/":                                              "the plan",
			"git clone -q http://planner/plans.git && git -C plans log --format=%s":                                                   "first\n",
			"curl -s --max-time 10 -o /dev/null -w %{http_code} http://127.0.0.1:80/ --noproxy ''":                                    "403",
			"curl -s --max-time 10 -o /dev/null -w %{http_code} http://planner:81/":                                                   "502",
			"curl -s --max-time 10 -o /dev/null -w %{http_code} http://192.0.2.10/":                                                   "403",
			"http_proxy=${http_proxy#*@} curl -s --max-time 10 -o /dev/null -w %{http_code} http://planner":                           "407",
		} {
			if r := u.sh(ctx, line); r.Stdout != want {
				t.Errorf("%s: %q expected, got %v", u.Name(), want, r)
			}
		}
		// Nothing listens there: it is said at once, as by a host with an interface.
		refusedFast(ctx, t, m.a, up.Address, "ECONNREFUSED")
		m.a.Must(ctx, "ping", "-c", "1", "-W", "5", name)
		status := u.Must(ctx, u.as(u.pilot, "status")...)
		for _, want := range []string{"interface    none: userspace (", "proxies      SOCKS5 127.0.0.1:", "planner"} {
			if !strings.Contains(status, want) {
				t.Errorf("%s: the status lacks %q:\n%s", u.Name(), want, status)
			}
		}
		// It comes back as it was.
		crash(t, u.Host)
		again := pilotAs[localapi.UpResult](ctx, t, u, "up")
		if again.TUN != localapi.TUNUserspace || again.SOCKS5 != up.SOCKS5 || again.HTTPProxy != up.HTTPProxy || again.Address != up.Address {
			t.Errorf("after a crash: %+v", again)
		}
		if r := u.sh(ctx, "curl -sS --max-time 10 http://planner/"); r.Stdout != "the plan" {
			t.Errorf("after a crash: %v", r)
		}
		u.Must(ctx, u.as(u.pilot, "down")...)
		// The internet is reached too if the operator says so, by names and addresses, but nothing inward.
		pilotAs[localapi.UpResult](ctx, t, u, "up", "--proxy-direct")
		for url, want := range map[string]string{
			"http://planner/": "200", "http://5.5.5.80/": "200", "http://example.test/": "200", "http://[2600:5::80]/": "200",
			"http://inside.test/": "403", "http://10.7.7.7/": "403", "http://metadata.test/": "403", "http://mapped.test/": "403",
			"http://rebound.test/": "403", "http://nobody/": "502", "http://nobody.pilot.internal/": "502",
		} {
			if r := u.sh(ctx, "curl -s --max-time 10 -o /dev/null -w %{http_code} "+url); r.Stdout != want {
				t.Errorf("%s, with --proxy-direct: %s: %q expected, got %v", u.Name(), url, want, r)
			}
		}
		u.Must(ctx, u.as(u.pilot, "down")...)
		untouched(t, u.Host, before)
	}
}
