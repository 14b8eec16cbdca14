// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"time"
)

// maxLine bounds one event. The largest, a consent with its certificate, stays below 8 KiB.
const maxLine = 256 << 10

var errSilent = fmt.Errorf("no event for %v", SilenceLimit)

// streamLine is a line of a stream: an event, or the reason why the coordinator ends it.
type streamLine struct {
	Event
	Error *Error `json:"error,omitempty"`
}

// Watch opens a stream of events: first everything that concerns the caller, then EventSynced, then changes as they
// happen. The sequence ends after its first error, which is always an *Error, or when the loop is left; the caller calls Watch
// again, after a pause of its choice. Pings are passed on. A stream that is silent for SilenceLimit counts as broken.
func (c *Client) Watch(ctx context.Context) iter.Seq2[Event, error] { return c.watch(ctx, "/v1/watch") }

// WatchRevocations opens a stream for a relay: all revocations, without their reasons, and nothing else of other agents. Only agents
// with TagRelay may.
func (c *Client) WatchRevocations(ctx context.Context) iter.Seq2[Event, error] {
	return c.watch(ctx, "/v1/watch?"+ShowRevocations)
}

// ShowRevocations is the query of a stream that shows revocations only.
const ShowRevocations = "show=revocations"

func (c *Client) watch(ctx context.Context, path string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var resp *http.Response
		err := c.failover(ctx, func(addr string) (err error) {
			resp, err = c.open(ctx, addr, http.MethodGet, path, nil) //nolint:bodyclose // closed below, once one of them answered
			return err
		})
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer resp.Body.Close()
		watchdog := time.AfterFunc(SilenceLimit, func() { cancel(errSilent) })
		defer watchdog.Stop()

		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			watchdog.Stop() // the caller's own time doesn't count
			event, err := decodeLine(lines.Bytes())
			if err != nil {
				yield(Event{}, err)
				return
			}
			if !yield(event, nil) {
				return
			}
			watchdog.Reset(SilenceLimit)
		}
		err = lines.Err()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		} else if err == nil {
			err = io.ErrUnexpectedEOF
		}
		yield(Event{}, &Error{Code: CodeUnavailable, Message: "the stream from the coordinator broke", cause: err,
			Hint: "Open sessions go on; the stream is opened again after a pause."})
	}
}

func decodeLine(line []byte) (Event, error) {
	var l streamLine
	if err := json.Unmarshal(line, &l); err != nil {
		return Event{}, &Error{Code: CodeInternal, Message: "an event of the coordinator can't be read", cause: err}
	}
	if l.Error != nil {
		return Event{}, l.Error
	}
	if err := l.Event.check(); err != nil {
		return Event{}, &Error{Code: CodeInternal, Message: "an event of the coordinator can't be read", cause: err}
	}
	return l.Event, nil
}

// check reports whether the fields that the type promises are there. Unknown types pass: they may come from a newer coordinator.
func (e Event) check() error {
	switch {
	case e.Type == "":
		return errors.New("it has no type")
	case (e.Type == EventPeer || e.Type == EventInviteUsed) && e.Peer == nil,
		e.Type == EventConsent && e.Consent == nil,
		e.Type == EventRevocation && len(e.Revocation) == 0,
		e.Type == EventSignal && len(e.Signal) == 0:
		return fmt.Errorf("%q lacks its content", e.Type)
	}
	return nil
}
