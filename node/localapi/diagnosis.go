// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"io"
	"net/http"
)

// Diagnosis is what a daemon tells of itself beside its state, for a report on a defect.
type Diagnosis struct {
	Log        []string `json:"log"`        // the latest lines, as JSON
	Goroutines string   `json:"goroutines"` // where each of them is, without arguments
}

// Diagnoser tells it.
type Diagnoser interface {
	Diagnose(context.Context) (Diagnosis, error)
}

// Diagnose asks for what a report on a defect needs.
func (c *Client) Diagnose(ctx context.Context) (Diagnosis, error) {
	return call[Diagnosis](ctx, c, http.MethodGet, "/v1/diagnosis", nil)
}

// Metrics asks for the daemon's metrics, in Prometheus's text format.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", &Error{Code: CodeInternal, Message: "the daemon's metrics: " + resp.Status}
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return string(text), err
}
