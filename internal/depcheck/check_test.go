// SPDX-License-Identifier: Apache-2.0

package depcheck

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// The whole source keeps the rules of the house.
func TestSource(t *testing.T) {
	problems, err := Check(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// tree makes a source tree of one package clause and a body for each file.
func tree(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, body := range files {
		m[name] = &fstest.MapFile{Data: []byte(licenceLine + "package p\n" + body)}
	}
	return m
}

// Each rule finds what breaks it: a check that finds nothing would pass for ever.
func TestCheckFinds(t *testing.T) {
	const own = Module + "/"
	tests := []struct {
		name, file, body, want string // want is part of the only problem; empty: none
	}{
		{"down", "overlay/x.go", `import _ "` + own + `noise"`, ""},
		{"up", "noise/x.go", `import _ "` + own + `overlay"`, "upwards"},
		{"sideways", "overlay/x.go", `import _ "` + own + `coordinator"`, "sideways"},
		{"the same room", "underlay/x.go", `import _ "` + own + `underlay/relay"`, ""},
		{"a room within a room", "coordinator/x.go", `import _ "` + own + `coordinator/api"`, ""},
		{"and not back", "coordinator/api/x.go", `import _ "` + own + `coordinator/store"`, "upwards"},
		{"a name that only begins alike", "node/x.go", `import _ "` + own + `noisemaker"`, "in no room"},
		{"no room", "surprise/x.go", ``, "in no room"},
		{"root", "x.go", `import _ "` + own + `node"`, ""},
		{"nobody imports root", "node/x.go", `import _ "` + Module + `"`, "upwards"},
		{"lab imports all", "internal/lab/x.go", `import _ "` + own + `node/localapi"`, ""},
		{"nobody imports the lab", "cmd/pilot/x.go", `import _ "` + own + `internal/lab"`, "for nobody else"},
		{"other systems count", "noise/x_windows.go", `import _ "` + own + `node"`, "upwards"},
		{"tests don't", "noise/x_test.go", `import _ "` + own + `node"`, ""},

		{"through the door", "identity/x.go", `import _ "github.com/fxamacker/cbor/v2"`, ""},
		{"beside the door", "node/x.go", `import _ "github.com/fxamacker/cbor/v2"`, "whose one door is identity"},
		{"below the door", "coordinator/store/x.go", `import _ "github.com/nats-io/nats.go/jetstream"`, ""},
		{"another room of that folder", "coordinator/api/x.go", `import _ "github.com/nats-io/nats.go"`, "whose one door is coordinator"},
		{"a library without a door", "node/x.go", `import _ "golang.org/x/sync/errgroup"`, ""},

		{"init", "node/x.go", `func init() {}`, "an init function"},
		{"a method of that name", "node/x.go", `type t int; func (t) init() {}`, ""},

		{"error", "node/x.go", `var ErrX = errors.New("x")`, ""},
		{"wrapped error", "node/x.go", `var ErrY = fmt.Errorf("y: %w", ErrX)`, ""},
		{"pattern", "node/x.go", `var re = regexp.MustCompile("x")`, ""},
		{"table", "node/x.go", `var names = map[string][]int{"a": {1, 2}}`, ""},
		{"interface check", "node/x.go", `var _ I = (*T)(nil)`, ""},
		{"embedded file", "node/x.go", "//go:embed page.html\nvar page []byte", ""},
		{"set by the linker", "cmd/pilot/x.go", `var version string`, ""},
		{"lock", "node/x.go", `var mu sync.Mutex`, "a variable of the whole package"},
		{"registry", "node/x.go", `var all = newRegistry()`, "a variable of the whole package"},
		{"made map", "node/x.go", `var all = make(map[string]int)`, "a variable of the whole package"},
		{"hook", "node/x.go", `var now = func() int { return 1 }`, "a variable of the whole package"},
		{"pointer", "node/x.go", `var state = &T{}`, "a variable of the whole package"},
		{"changed table", "node/x.go", `var names = map[string]int{}; func f() { names["a"] = 1 }`, "names is changed here"},
		{"changed value", "node/x.go", `var count = 0; func f() { count++ }`, "count is changed here"},
		{"deleted", "node/x.go", `var names = map[string]int{}; func f() { delete(names, "a") }`, "names is changed here"},
		{"a local of that name", "node/x.go", `var count = 0; func f() { count := 1; count++ }`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			problems, err := Check(tree(map[string]string{tt.file: tt.body}))
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.want == "" && len(problems) > 0:
				t.Errorf("found %q", problems)
			case tt.want != "" && (len(problems) != 1 || !strings.Contains(problems[0], tt.want)):
				t.Errorf("found %q, not one problem with %q", problems, tt.want)
			}
		})
	}
}

func TestCheckFindsAcrossFiles(t *testing.T) {
	problems, err := Check(tree(map[string]string{
		"node/a.go": `var limit = 3`,
		"node/b.go": `func f() { limit = 4 }`,
	}))
	if err != nil || len(problems) != 1 || !strings.HasPrefix(problems[0], "node/b.go:3: limit is changed") {
		t.Errorf("found %q, %v", problems, err)
	}
}

func TestCheckFindsMissingLicence(t *testing.T) {
	problems, err := Check(fstest.MapFS{
		"node/a.go":          {Data: []byte("package p\n")},
		"node/a_test.go":     {Data: []byte("package p\n")},
		"node/testdata/b.go": {Data: []byte("no Go at all")},
		".cache/c.go":        {Data: []byte("no Go at all")},
	})
	want := []string{"node/a.go:1:", "node/a_test.go:1:"}
	if err != nil || !slices.EqualFunc(problems, want, strings.HasPrefix) {
		t.Errorf("found %q, %v", problems, err)
	}
}
