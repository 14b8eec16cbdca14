// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// echo is one line of ping --json.
type echo struct {
	Seq int `json:"seq,omitempty"` // from 1
	*localapi.PingResult
	Error *localapi.Error `json:"error,omitempty"` // why no answer came
}

// pingSummary is what came of all echoes. Times are in milliseconds.
type pingSummary struct {
	Target   string  `json:"target"`
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	Loss     float64 `json:"loss_percent"`
	Min      float64 `json:"rtt_min_ms,omitempty"`
	Avg      float64 `json:"rtt_avg_ms,omitempty"`
	Max      float64 `json:"rtt_max_ms,omitempty"`
}

// pingLine has the fields of all lines that ping --json prints: an echo on each but the last, which has the summary.
type pingLine struct {
	echo
	Summary *pingSummary `json:"summary,omitempty"`
}

func (p *program) pingCommand() *cli.Command {
	return &cli.Command{
		Name: "ping", Usage: "measure the tunnel to an agent", ArgsUsage: "TARGET", BashComplete: p.completeAgents,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "count", Value: 4, Usage: "send `N` echoes (default 4); 0: until interrupted"},
			&cli.StringFlag{Name: "interval", Value: "1s", Usage: "`TIME` from one echo to the next (default 1s)"},
			&cli.StringFlag{Name: "timeout", Value: "5s", Usage: "`TIME` to wait for an answer (default 5s)"},
		},
		Description: manual{
			about: `Sends echoes inside the tunnel to TARGET, a name, address or agent key, and prints for each the path that it took, its
round-trip time, and why the path is not a direct one. It opens a session if none is open. Unlike the system's ping it
tests pilot alone: no firewall of the peer's host is in the way.`,
			examples: []string{"pilot ping warehouse", "pilot ping warehouse --count 0 --interval 200ms"},
			exits: []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitNotFound, localapi.ExitUnreachable,
				localapi.ExitKeyMismatch},
			result: reflect.TypeFor[pingLine](),
			note:   "one object a line: an echo each, the summary in the last one, with error if no answer came at all",
		}.String(),
		Action: p.ping,
	}
}

func (p *program) ping(c *cli.Context) error {
	if err := positional(c, 1, 1); err != nil {
		return err
	}
	count := c.Int("count")
	if count < 0 {
		return usage("--count: %d is below zero", count)
	}
	interval, err := durationFlag(c, "interval")
	if err != nil {
		return err
	}
	timeout, err := durationFlag(c, "timeout")
	if err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	r := &pingRun{p: p, json: c.Bool("json"), summary: pingSummary{Target: c.Args().First()}}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for seq := 1; count == 0 || seq <= count; seq++ {
		if seq > 1 {
			select {
			case <-tick.C:
			case <-c.Context.Done():
				return r.end()
			}
		}
		result, err := ask(c.Context, timeout+2*time.Second, func(ctx context.Context) (localapi.PingResult, error) {
			return client.Ping(ctx, localapi.PingRequest{Target: r.summary.Target, Timeout: timeout})
		})
		if c.Context.Err() != nil {
			return r.end()
		}
		if err := r.add(seq, result, err); err != nil {
			return err
		}
	}
	return r.end()
}

// pingRun prints echoes and adds them up.
type pingRun struct {
	p       *program
	json    bool
	summary pingSummary
	total   float64
	last    *localapi.Error
}

// add takes one echo. An error that more echoes would not mend ends the run.
func (r *pingRun) add(seq int, result localapi.PingResult, err error) error {
	if err == nil {
		s := &r.summary
		if s.Received == 0 || result.RTT < s.Min {
			s.Min = result.RTT
		}
		s.Sent, s.Received, s.Max, r.total = s.Sent+1, s.Received+1, max(s.Max, result.RTT), r.total+result.RTT
		s.Avg = r.total / float64(s.Received)
		if r.json {
			return writeJSON(r.p.stdout, pingLine{echo: echo{Seq: seq, PingResult: &result}}, "")
		}
		why := ""
		if result.Why != "" {
			why = " (" + whyText(result.Why) + ")"
		}
		_, err := fmt.Fprintf(r.p.stdout, "%s %s: seq=%d path=%q rtt=%s%s\n", safe(result.Name), result.Address, seq, result.Path,
			millis(result.RTT), safe(why))
		return err
	}
	e := asError(err)
	switch e.Code {
	case localapi.CodeOffline, localapi.CodeTimeout, localapi.CodeUnavailable:
	default:
		return e
	}
	r.summary.Sent++
	r.last = e
	if r.json {
		return writeJSON(r.p.stdout, pingLine{echo: echo{Seq: seq, Error: e}}, "")
	}
	_, err = fmt.Fprintf(r.p.stdout, "%s: seq=%d no answer: %s\n", safe(r.summary.Target), seq, safe(e.Message))
	return err
}

// end prints the summary and decides how ping ends.
func (r *pingRun) end() error {
	s := &r.summary
	if s.Sent > 0 {
		s.Loss = 100 * float64(s.Sent-s.Received) / float64(s.Sent)
	}
	var failed *localapi.Error
	if s.Received == 0 {
		failed = &localapi.Error{Code: localapi.CodeOffline, Message: s.Target + " did not answer"}
		if r.last != nil {
			failed.Code, failed.Hint = r.last.Code, r.last.Hint
		}
	}
	if r.json {
		if err := writeJSON(r.p.stdout, pingLine{Summary: s, echo: echo{Error: failed}}, ""); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(r.p.stdout, "%s: %d sent, %d received, %.0f%% lost", safe(s.Target), s.Sent, s.Received, s.Loss)
		if s.Received > 0 {
			fmt.Fprintf(r.p.stdout, ", rtt min/avg/max %s / %s / %s", millis(s.Min), millis(s.Avg), millis(s.Max))
		}
		fmt.Fprintln(r.p.stdout)
	}
	switch {
	case failed == nil:
		return nil
	case r.json:
		return exit(localapi.ExitStatus(failed.Code))
	}
	return failed
}
