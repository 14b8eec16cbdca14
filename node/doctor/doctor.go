// SPDX-License-Identifier: Apache-2.0

// Package doctor judges what was found on a host: what keeps the network from working, and what helps. It looks at nothing
// itself. Each check is a function of Facts alone.
package doctor

import (
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

// Facts are all that the checks go by.
type Facts struct {
	Now         time.Time
	Version     string // of the program that asks
	System      bool   // the state folder is the one of the system's service
	Host        inspect.Host
	Status      *localapi.Status // of the daemon; nil: it gave none, and DaemonErr says why
	DaemonErr   *localapi.Error
	Netcheck    *localapi.Netcheck // nil: there is none, and NetcheckErr says why where the daemon was asked
	NetcheckErr *localapi.Error
}

// Results of a check.
const (
	OK      = "ok"
	Warning = "warning" // it may become a problem, or is one for some uses
	Problem = "problem" // it keeps the network from working
	Unknown = "unknown" // it could not be looked at
)

// Finding is what one check came to. A check may have several.
type Finding struct {
	Check   string `json:"check"`
	Result  string `json:"result"`         // ok, warning, problem, unknown
	Code    string `json:"code,omitempty"` // stable, of a warning or problem
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // the remedy
}

// Report is what `pilot doctor` shows.
type Report struct {
	At       time.Time `json:"at"`
	Version  string    `json:"version"`
	OS       string    `json:"os"`
	Well     bool      `json:"well"` // no problem was found
	Problems int       `json:"problems"`
	Warnings int       `json:"warnings"`
	Unseen   int       `json:"unseen"` // checks for which something could not be looked at
	Findings []Finding `json:"findings"`
}

// check is one thing to look at.
type check struct {
	name string
	run  func(*Facts) []Finding
}

// checks are in the order in which a person would look: what stands below comes first.
func checks() []check {
	return []check{
		{"tun", tunDriver}, {"ipv6", ipv6}, {"service", service}, {"daemon", daemon}, {"access", access}, {"version", version},
		{"state", state}, {"clock", clock}, {"routes", routes}, {"vpn", vpn}, {"firewall", firewall}, {"fence", fence}, {"dns", names}, {"resolver", resolver},
		{"coordinator", coordinator}, {"certificate", certificate}, {"relays", relays}, {"underlay", underlay}, {"mtu", mtu}, {"other", other},
	}
}

// Examine runs all checks.
func Examine(f Facts) Report {
	r := Report{At: f.Now, Version: f.Version, OS: f.Host.OS, Findings: []Finding{}}
	for _, c := range checks() {
		for _, finding := range c.run(&f) {
			finding.Check = c.name
			switch finding.Result {
			case Problem:
				r.Problems++
			case Warning:
				r.Warnings++
			case Unknown:
				r.Unseen++
			}
			r.Findings = append(r.Findings, finding)
		}
	}
	r.Well = r.Problems == 0
	return r
}

func well(message string) []Finding { return []Finding{{Result: OK, Message: message}} }

func problem(code, message, hint string) Finding {
	return Finding{Result: Problem, Code: code, Message: message, Hint: hint}
}

func warning(code, message, hint string) Finding {
	return Finding{Result: Warning, Code: code, Message: message, Hint: hint}
}

func unknown(message, hint string) []Finding {
	return []Finding{{Result: Unknown, Message: message, Hint: hint}}
}

// unseen is the finding of a check for which something could not be looked at.
func (f *Facts) unseen(err error) []Finding {
	hint := ""
	if !f.Host.Root {
		hint = "root sees more: sudo pilot doctor"
	}
	return unknown(err.Error(), hint)
}

// self is this agent; nil while no network is up.
func (f *Facts) self() *localapi.Self {
	if f.Status == nil {
		return nil
	}
	return f.Status.Self
}

// userspace says that packets get to programs without an interface of the kernel's: nothing of this host's was changed.
func (f *Facts) userspace() bool {
	self := f.self()
	return self != nil && self.TUN == localapi.TUNUserspace
}

func notNeeded() []Finding { return well("not needed without an interface of the kernel's") }

// notUp is the finding of a check that needs a network that is up.
func notUp() []Finding { return unknown("no network is up", "") }
