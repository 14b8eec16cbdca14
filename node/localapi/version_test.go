// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"testing"
)

func TestCompareVersions(t *testing.T) {
	for _, row := range []struct {
		a, b string
		want VersionsDiffer
	}{
		{"v1.2.3", "v1.2.9", VersionsSame}, {"v1.2.3", "v1.2.3-rc.1", VersionsSame}, {"v1.2.3", "v1.3.0", VersionsMinor}, {"v0.1.0", "v0.2.0", VersionsMinor},
		{"v1.9.0", "v2.0.0", VersionsMajor}, {"v10.0.0", "v1.0.0", VersionsMajor}, {"v0.0.0-20260301120000-abcdef123456", "v0.0.0-20270301120000-abcdef123456", VersionsSame},
		{"(devel)", "v3.0.0", VersionsSame}, {"", "v3.0.0", VersionsSame}, {"v3.0.0", "nonsense", VersionsSame},
	} {
		if got := CompareVersions(row.a, row.b); got != row.want {
			t.Errorf("%s, %s: %v", row.a, row.b, got)
		}
		if got := CompareVersions(row.b, row.a); got != row.want {
			t.Errorf("%s, %s: %v", row.b, row.a, got)
		}
	}
}

// Each answer has the version, refusals and unknown paths included.
func TestVersionIsInEachAnswer(t *testing.T) {
	s := NewServer(ServerOptions{Daemon: &daemon{}, Trust: &daemon{}, Checker: &daemon{}, Caller: anybody, Version: "v1.2.3", Log: slog.New(slog.DiscardHandler)})
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	for _, path := range []string{"/v1/status", "/v1/agents", "/v9/nothing"} {
		for _, known := range []bool{true, false} {
			r := httptest.NewRequest("GET", "http://pilot"+path, nil)
			if known {
				r = r.WithContext(context.WithValue(r.Context(), connKey{}, a))
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if got := w.Header().Get(VersionHeader); got != "v1.2.3" {
				t.Errorf("%s: %q with status %d", path, got, w.Code)
			}
		}
	}
}

// An older daemon can always be ended, by a program of any version.
func TestDownReachesEachVersion(t *testing.T) {
	c := NewClient(ClientOptions{Version: "v2.0.0"})
	if err := c.compare(downPath, "v1.0.0"); err != nil {
		t.Error(err)
	}
	var e *Error
	if err := c.compare("/v1/status", "v1.0.0"); !errors.As(err, &e) || e.Code != CodeVersionDiffers || e.Hint == "" {
		t.Error(err)
	}
	if err := c.compare("/v1/status", ""); err != nil { // older than the header
		t.Error(err)
	}
}
