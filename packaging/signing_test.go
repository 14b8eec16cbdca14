// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/zip"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// signer is a certificate for code that nobody but these tests trusts.
type signer struct{ key, cert string }

func newSigner(t *testing.T, name string) signer {
	t.Helper()
	folder := t.TempDir()
	s := signer{filepath.Join(folder, "key.pem"), filepath.Join(folder, "cert.pem")}
	cmd := exec.CommandContext(t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-subj", "/O="+name+"/CN="+name, "-addext", "extendedKeyUsage=codeSigning", "-addext", "keyUsage=digitalSignature",
		"-keyout", s.key, "-out", s.cert)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, said)
	}
	return s
}

// sign returns the path of a signed copy.
func (s signer) sign(t *testing.T, path string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(path))
	cmd := exec.CommandContext(t.Context(), "osslsigncode", "sign", "-certs", s.cert, "-key", s.key, "-h", "sha256", "-in", path, "-out", out)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("osslsigncode: %v: %s", err, said)
	}
	return out
}

// windowsProgram builds a program for Windows that does nothing.
func windowsProgram(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	source, exe := filepath.Join(folder, "main.go"), filepath.Join(folder, "nothing.exe")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, source)
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, said)
	}
	return exe
}

// wintunArchive is an archive of Wintun's form with a library of ours, and its hash.
func wintunArchive(t *testing.T, dll string) (path, sum string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "wintun.zip")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	data, err := os.ReadFile(dll)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"wintun/bin/amd64/wintun.dll": data, "wintun/LICENSE.txt": []byte("license")} {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, fmt.Sprintf("%x", sha256.Sum256(all))
}

// What a release's hooks do, with a certificate that nobody trusts.
func TestSigningHooks(t *testing.T) {
	need(t, "osslsigncode", "openssl", "ssh-keygen", "msibuild", "gcab")
	s := newSigner(t, "The pilot project")
	out := t.TempDir()
	exe, installer := filepath.Join(out, "pilot.exe"), filepath.Join(out, "pilot.msi")
	program, err := os.ReadFile(windowsProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(exe, program); err != nil {
		t.Fatal(err)
	}
	if err := sample(t, "amd64").write(t.Context(), installer, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if said, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, said)
	}
	t.Setenv("CERT", s.cert)
	t.Setenv("KEY", s.key)
	t.Setenv("SUMS_KEY", key)
	const code = `osslsigncode sign -certs "$CERT" -key "$KEY" -h sha256 -n pilot -in "$FILE" -out "$SIGNED"`
	all := map[string]hook{
		"SIGN_MSI":  {"SIGN_MSI", code},
		"SIGN_SUMS": {"SIGN_SUMS", `ssh-keygen -q -Y sign -f "$SUMS_KEY" -n file "$FILE"`},
	}
	if err := (hook{"SIGN_EXE", code}).sign(t.Context(), exe); err != nil {
		t.Fatal(err)
	}
	if err := (release{out: out}).sum(); err != nil {
		t.Fatal(err)
	}
	if err := (release{out: out}).sign(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{exe, installer} {
		verify := func(ca string) error {
			return exec.CommandContext(t.Context(), "osslsigncode", "verify", "-CAfile", ca, "-in", file).Run()
		}
		if err := verify(s.cert); err != nil {
			t.Errorf("%s: the signature is not valid: %v", filepath.Base(file), err)
		}
		if verify(newSigner(t, "Somebody Else").cert) == nil {
			t.Errorf("%s: a stranger's certificate verifies it", filepath.Base(file))
		}
	}
	if db := readDatabase(t, installer); db.get(t, "Property", "ProductName")[1] != "pilot" {
		t.Error("the signature has damaged the installer")
	}
	// The hashes are those of the signed files, and their signature is good.
	check := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = out
	if said, err := check.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v: %s", err, said)
	}
	sums, err := os.Open(filepath.Join(out, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	defer sums.Close()
	check = exec.CommandContext(t.Context(), "ssh-keygen", "-Y", "check-novalidate", "-n", "file", "-s", sums.Name()+".sig")
	check.Stdin = sums
	if said, err := check.CombinedOutput(); err != nil {
		t.Errorf("ssh-keygen: %v: %s", err, said)
	}
}

func TestSigningHooksThatDoNotSign(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := writeFile(file, []byte("content")); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"true":                   "left $FILE (file) as it was",
		"echo no key >&2; false": "no key",
		`osslsigncode sign -pass hunter2 -in "$FILE"`:    "-readpass",
		`gpg --passphrase=hunter2 --detach-sign "$FILE"`: "--passphrase-file",
	} {
		err := hook{"SIGN_MSI", command}.sign(t.Context(), file)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, expected %q", command, err, want)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the secret is shown: %v", command, err)
		}
	}
	// TestAbuse06: the command is not in the list of processes while it runs.
	see := hook{"SIGN_MSI", `tr "\0" " " <"/proc/$$/cmdline" >"$SIGNED" # by-the-way`}
	if err := see.sign(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if seen, err := os.ReadFile(file); err != nil || strings.Contains(string(seen), "by-the-way") || !strings.HasPrefix(string(seen), "sh ") {
		t.Errorf("in the list of processes: %q, %v", seen, err)
	}
	if err := (release{out: t.TempDir()}).sign(t.Context(), hooks(func(string) string { return "" })); err == nil {
		t.Error("without a command it is taken for signed")
	}
}

// repository is a folder with one commit, in which the test then works.
func repository(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := writeFile("file", []byte("content")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"commit", "-q", "-m", "first"}} {
		git(t, args...)
	}
}

func git(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v: %s", args, err, said)
	}
}

func TestReleaseRefusesWhatIsNone(t *testing.T) {
	repository(t)
	look := func(untagged bool, w wintun, goos string) string {
		t.Helper()
		text, err := describe(t.Context())
		if err != nil {
			return err.Error()
		}
		v, err := parseVersion(text)
		if err != nil {
			t.Fatal(err)
		}
		r := release{version: v, wintun: w, systems: []system{{goos, "amd64"}}}
		if err := r.releasable(t.Context(), untagged); err != nil {
			return err.Error()
		}
		return ""
	}
	expect := func(got, want string) {
		t.Helper()
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q, expected %q", got, want)
		}
	}
	expect(look(false, wintun{}, "linux"), "has no tag")
	expect(look(true, wintun{}, "linux"), "")
	git(t, "tag", "v1.0.0-rc.1")
	expect(look(false, wintun{}, "linux"), "")
	expect(look(false, wintun{}, "windows"), wintunURL)
	expect(look(false, wintun{archive: "file"}, "windows"), "")
	expect(look(false, wintun{standIn: "folder"}, "windows"), "for tests")
	if err := writeFile("another", []byte("package pilot")); err != nil {
		t.Fatal(err)
	}
	expect(look(true, wintun{}, "linux"), "another")
	if err := os.Remove("another"); err != nil {
		t.Fatal(err)
	}
	if err := writeFile("file", []byte("changed")); err != nil {
		t.Fatal(err)
	}
	expect(look(true, wintun{}, "linux"), "files differ from the commit")
}
