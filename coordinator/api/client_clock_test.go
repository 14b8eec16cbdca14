// SPDX-License-Identifier: Apache-2.0

package api

import (
	"testing"
	"time"
)

// The offset follows this host's clock when that is set after the answer.
func TestClockOffset(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	c, err := NewClient(ClientOptions{Addresses: []string{"192.0.2.1"}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	if _, known := c.ClockOffset(); known {
		t.Error("known before any answer")
	}
	c.heard("Sun, 01 Mar 2026 12:59:59 GMT")
	if got, known := c.ClockOffset(); !known || got != time.Hour-time.Second/2 {
		t.Errorf("%v, %v", got, known)
	}
	c.heard("yesterday")
	c.heard("")
	if got, _ := c.ClockOffset(); got != time.Hour-time.Second/2 {
		t.Errorf("a date that is none counts: %v", got)
	}
}
