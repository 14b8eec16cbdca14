// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// need leaves a test out where programs of Debian's are missing. CI has them.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", p)
		}
		t.Skipf("%s is missing", p)
	}
}

// sample is an installer with small files.
func sample(t *testing.T, arch string) msi {
	t.Helper()
	v, err := parseVersion("v1.2.3-4-gdeadbeef")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(folder, name)
		if err := writeFile(path, bytes.Repeat([]byte(name+"\n"), 5000)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return msi{arch: arch, version: v, time: time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC), files: []msiFile{
		{id: "Program", name: "pilot.exe", component: "Program", source: file("pilot.exe")},
		{id: "Wintun", name: "wintun.dll", component: "Wintun", source: file("wintun.dll"), version: "0.14.1.0"},
		{id: "License", name: "LICENSE.txt", component: "Documents", source: file("LICENSE")},
		{id: "Changes", name: "CHANGES.md|CHANGELOG.md", component: "Documents", source: file("CHANGELOG.md")},
	}}
}

// database is what msiinfo reads: rows by table.
type database map[string][][]string

func readDatabase(t *testing.T, path string) database {
	t.Helper()
	db := database{}
	names, err := output(t.Context(), "msiinfo", "tables", path)
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(names) {
		if name == "_ForceCodepage" {
			continue
		}
		cmd := exec.CommandContext(t.Context(), "msiinfo", "export", path, name)
		cmd.Env = append(os.Environ(), "TZ=UTC")
		text, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		rows := [][]string{}
		for i, line := range strings.Split(strings.TrimSuffix(string(text), "\r\n"), "\r\n") {
			if i >= 3 { // names, types, keys
				rows = append(rows, strings.Split(line, "\t"))
			}
		}
		db[name] = rows
	}
	return db
}

// column is one of a table's.
func (db database) column(table string, n int) []string {
	var out []string
	for _, row := range db[table] {
		out = append(out, row[n])
	}
	return out
}

// get is the row whose first column is key.
func (db database) get(t *testing.T, table, key string) []string {
	t.Helper()
	for _, row := range db[table] {
		if row[0] == key {
			return row
		}
	}
	t.Errorf("table %s has no %s", table, key)
	return make([]string, 20)
}

func TestInstallerIsWhatItsTablesSay(t *testing.T) {
	need(t, "msibuild", "msiinfo", "msiextract", "gcab")
	for arch, template := range map[string]string{"amd64": "x64;1033", "arm64": "Arm64;1033"} {
		t.Run(arch, func(t *testing.T) {
			m := sample(t, arch)
			path := filepath.Join(t.TempDir(), "pilot.msi")
			if err := m.write(t.Context(), path, t.TempDir()); err != nil {
				t.Fatal(err)
			}
			db := readDatabase(t, path)

			// What was to be written is what is there.
			tables, err := m.tables()
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tables {
				got := db[want.name]
				if len(got) != len(want.rows) {
					t.Errorf("table %s has %d rows, expected %d", want.name, len(got), len(want.rows))
				}
				for _, row := range want.rows {
					if !slices.ContainsFunc(got, func(r []string) bool { return slices.Equal(r, row) }) {
						t.Errorf("table %s lacks %q", want.name, row)
					}
				}
			}
			summary := map[string]string{}
			for _, row := range db["_SummaryInformation"] {
				summary[row[0]] = row[1]
			}
			for key, want := range map[string]string{"7": template, "14": "500", "15": "2", "12": "2026/03/04 05:06:08", "3": "pilot 1.2.3+4.gdeadbeef"} {
				if summary[key] != want {
					t.Errorf("summary %s: %q, expected %q", key, summary[key], want)
				}
			}

			// What a person gets.
			if row := db.get(t, "ServiceInstall", "Service"); row[1] != "pilot" || row[4] != "2" || row[10] != "daemon --service" {
				t.Errorf("the service: %q", row)
			}
			if event, _ := strconv.Atoi(db.get(t, "ServiceControl", "Control")[2]); event != 1|2|32|128 {
				t.Errorf("the service is controlled by %d", event)
			}
			if row := db.get(t, "Environment", "Path"); row[1] != "=-*PATH" || row[2] != "[~];[INSTALLFOLDER]" {
				t.Errorf("PATH: %q", row)
			}
			if row := db.get(t, "Registry", "EventMessageFile"); row[4] != `#%%SystemRoot%\System32\EventCreate.exe` {
				t.Errorf("the event log: %q", row)
			}
			if row := db.get(t, "Property", "ALLUSERS"); row[1] != "1" {
				t.Errorf("for whom: %q", row)
			}
			if row := db.get(t, "Property", "ProductName"); row[1] != "pilot" || len(db["LaunchCondition"]) != 1 {
				t.Error("it calls itself a test")
			}

			// What was packed comes out again.
			out := t.TempDir()
			if _, err := output(t.Context(), "msiextract", "-C", out, path); err != nil {
				t.Fatal(err)
			}
			for _, f := range m.files {
				name := f.name[strings.IndexByte(f.name, '|')+1:]
				want, _ := os.ReadFile(f.source)
				found := false
				err := filepath.WalkDir(out, func(p string, _ os.DirEntry, err error) error {
					if filepath.Base(p) == name {
						got, _ := os.ReadFile(p)
						found = bytes.Equal(got, want) && filepath.Base(filepath.Dir(p)) == "pilot"
					}
					return err
				})
				if err != nil || !found {
					t.Errorf("%s is not in the folder pilot, or is another: %v", name, err)
				}
			}
		})
	}
}

// A key that points nowhere is found by Windows only when it is needed.
func TestInstallerReferencesExist(t *testing.T) {
	m := sample(t, "amd64")
	tables, err := m.tables()
	if err != nil {
		t.Fatal(err)
	}
	db := database{}
	for _, table := range tables {
		if _, err := table.text(); err != nil {
			t.Error(err)
		}
		db[table.name] = table.rows
		keys := map[string]bool{}
		n := strings.Count(table.keys, "\t") + 1
		for _, row := range table.rows {
			key := strings.Join(row[:n], "\t")
			if keys[key] {
				t.Errorf("table %s has %q twice", table.name, key)
			}
			keys[key] = true
		}
	}
	for _, r := range []struct {
		from   string
		column int
		to     string
	}{
		{"Directory", 1, "Directory"},
		{"Component", 2, "Directory"},
		{"FeatureComponents", 0, "Feature"},
		{"FeatureComponents", 1, "Component"},
		{"Feature", 6, "Directory"},
		{"File", 1, "Component"},
		{"Registry", 5, "Component"},
		{"Environment", 3, "Component"},
		{"ServiceInstall", 11, "Component"},
		{"ServiceControl", 5, "Component"},
		{"MsiFileHash", 0, "File"},
	} {
		for _, key := range db.column(r.from, r.column) {
			if key != "" && !slices.Contains(db.column(r.to, 0), key) {
				t.Errorf("%s names %q, which %s lacks", r.from, key, r.to)
			}
		}
	}
	for _, row := range db["Component"] {
		in := "File"
		if attributes, _ := strconv.Atoi(row[3]); attributes&4 != 0 {
			in = "Registry"
		} else if attributes&256 == 0 {
			t.Errorf("component %s is for 32 bits", row[0])
		}
		if !slices.Contains(db.column(in, 0), row[5]) {
			t.Errorf("component %s has the key path %q, which %s lacks", row[0], row[5], in)
		}
		if !slices.Contains(db.column("FeatureComponents", 1), row[0]) {
			t.Errorf("component %s is in no feature", row[0])
		}
	}
	for _, row := range db["CustomAction"] {
		kind, _ := strconv.Atoi(row[1])
		in := map[int]string{18: "File", 34: "Directory"}[kind&0x3f]
		if !slices.Contains(db.column(in, 0), row[2]) {
			t.Errorf("action %s has its program in %q, which %s lacks", row[0], row[2], in)
		}
		if kind&deferred != deferred {
			t.Errorf("action %s has not the system's rights", row[0])
		}
		if !slices.Contains(db.column("InstallExecuteSequence", 0), row[0]) {
			t.Errorf("action %s never runs", row[0])
		}
	}
	at := func(action string) int {
		n, _ := strconv.Atoi(db.get(t, "InstallExecuteSequence", action)[2])
		return n
	}
	order := []string{"InstallInitialize", "RemoveExistingProducts", "StopServices", "TakeBack", "DeleteServices", "FirewallRemove", "RemoveFiles",
		"Purge", "InstallFiles", "FirewallUndo", "FirewallAdd", "InstallServices", "EndOther", "StartServices", "InstallFinalize"}
	for i := 1; i < len(order); i++ {
		if at(order[i-1]) >= at(order[i]) {
			t.Errorf("%s doesn't come before %s", order[i-1], order[i])
		}
	}
}

// What identifies a version, a file of it and the program to Windows depends on these alone, and not on when and where it
// was built.
func TestInstallerIsReproducible(t *testing.T) {
	need(t, "msibuild", "gcab")
	build := func(m msi) []byte {
		t.Helper()
		path := filepath.Join(t.TempDir(), "pilot.msi")
		if err := m.write(t.Context(), path, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	m, other := sample(t, "amd64"), sample(t, "amd64")
	first := build(m)
	t.Setenv("TZ", "Pacific/Auckland")
	if !bytes.Equal(first, build(other)) {
		t.Error("two builds differ")
	}
	property := func(m msi, name string) string {
		return (database{"Property": m.properties()}).get(t, "Property", name)[1]
	}
	later := m
	later.version.after = "5"
	arm := m
	arm.arch = "arm64"
	test := m
	test.standIn = true
	codes := []string{property(m, "ProductCode"), property(later, "ProductCode"), property(arm, "ProductCode"), property(test, "ProductCode")}
	slices.Sort(codes)
	if len(slices.Compact(codes)) != 4 {
		t.Errorf("product codes %q", codes)
	}
	if property(m, "UpgradeCode") != property(later, "UpgradeCode") || property(m, "UpgradeCode") != property(arm, "UpgradeCode") {
		t.Error("versions don't find each other")
	}
}

// A package with something else than Wintun in it can't be taken for a release.
func TestInstallerWithoutWintunSaysSo(t *testing.T) {
	m := sample(t, "amd64")
	m.standIn = true
	tables, err := m.tables()
	if err != nil {
		t.Fatal(err)
	}
	db := database{}
	for _, table := range tables {
		db[table.name] = table.rows
	}
	if name := db.get(t, "Property", "ProductName")[1]; !strings.Contains(name, "TEST") {
		t.Errorf("its name is %q", name)
	}
	if !slices.Contains(db.column("LaunchCondition", 0), `PILOTTEST="yes" OR Installed`) {
		t.Error("it can be installed without a word")
	}
	for _, code := range db.column("Upgrade", 0) {
		if code == upgradeCode {
			t.Error("it would replace a release")
		}
	}
}

func TestUUID(t *testing.T) {
	// RFC 9562 defines the form; the value was computed by Python's uuid.uuid5.
	if got, want := uuid("component Program"), "{A745173D-0258-5259-84B4-160DE6B50BE7}"; got != want {
		t.Errorf("%s, expected %s", got, want)
	}
}

func TestWintunIsChecked(t *testing.T) {
	ctx := context.Background()
	if err := (wintun{}).missing(); !strings.Contains(err.Error(), "WINTUN=") || !strings.Contains(err.Error(), wintunURL) {
		t.Errorf("without it: %v", err)
	}
	need(t, "osslsigncode", "openssl")
	key := newSigner(t, "WireGuard LLC")
	stranger := newSigner(t, "Somebody Else")
	exe := windowsProgram(t)
	for _, c := range []struct {
		name, signedBy string
		sum            bool
		trusted        signer
		want           string
	}{
		{"as published", "WireGuard LLC", true, key, ""},
		{"another archive", "WireGuard LLC", false, key, "is not the Wintun that is expected"},
		{"unsigned", "", true, key, "signature is not verified"},
		{"signed by a stranger", "Somebody Else", true, key, "signature is not verified"},
		{"signed by a trusted stranger", "Somebody Else", true, stranger, "signed by somebody else"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dll := exe
			switch c.signedBy {
			case "WireGuard LLC":
				dll = key.sign(t, exe)
			case "Somebody Else":
				dll = stranger.sign(t, exe)
			}
			archive, sum := wintunArchive(t, dll)
			if !c.sum {
				sum = wintunSum
			}
			w := wintun{archive: archive, ca: c.trusted.cert, sum: sum, signer: wintunSigner}
			folder := t.TempDir()
			err := w.unpack(ctx, "amd64", folder)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, expected %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, _ := os.ReadFile(filepath.Join(folder, "wintun.dll"))
			want, _ := os.ReadFile(dll)
			if !bytes.Equal(got, want) {
				t.Error("another library came out")
			}
		})
	}
}
