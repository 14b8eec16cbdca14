// SPDX-License-Identifier: Apache-2.0

// Command packaging makes what a release consists of: packages for Linux, installers for Windows, archives for all systems,
// a list of what is inside each program, and the hashes of it all.
//
// The same commit gives the same bytes, whenever and wherever it is built with the same Go: times come from the commit,
// owners and permissions from here, and nothing of the machine's reaches a file.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// release is one run.
type release struct {
	out        string // folder that is filled
	nfpm, sbom string // programs: nfpm, cyclonedx-gomod
	systems    []system
	version    version
	time       time.Time // of the commit
	wintun     wintun
}

type system struct{ os, arch string }

func (s system) String() string { return s.os + "_" + s.arch }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("packaging", flag.ContinueOnError)
	r := release{}
	flags.StringVar(&r.out, "out", "dist", "the folder that is filled; what is in it is removed")
	flags.StringVar(&r.nfpm, "nfpm", "nfpm", "the program nfpm")
	flags.StringVar(&r.sbom, "sbom", "cyclonedx-gomod", "the program cyclonedx-gomod")
	systems := flags.String("systems", "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64,windows/amd64,windows/arm64", "what to build for")
	r.wintun = wintun{sum: wintunSum, signer: wintunSigner}
	flags.StringVar(&r.wintun.archive, "wintun", "", "the `file` wintun-"+wintunVersion+".zip; without it there are no installers for Windows")
	flags.StringVar(&r.wintun.ca, "wintun-ca", "", "a `file` with the certificates that Wintun's signature is checked against, instead of the system's")
	flags.StringVar(&r.wintun.standIn, "wintun-stand-in", "", "a `folder` with ARCH/wintun.dll that is no Wintun: for installers that are tests and say so")
	final := flags.Bool("release", false, "refuse what is no release: a commit without a tag, files that no commit has, no Wintun")
	untagged := flags.Bool("untagged", false, "with -release, take a commit without a tag")
	sign := flags.Bool("sign", false, "build nothing, and sign what is in the folder, by the commands in SIGN_EXE, SIGN_MSI, SIGN_DEB, SIGN_RPM, SIGN_SUMS")
	described := flags.String("version", "", "instead of what git describes, for a second package to upgrade to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if r.wintun.archive != "" && r.wintun.standIn != "" {
		return errors.New("-wintun and -wintun-stand-in exclude each other")
	}
	for s := range strings.SplitSeq(*systems, ",") {
		goos, arch, ok := strings.Cut(s, "/")
		if !ok {
			return fmt.Errorf("-systems: %q", s)
		}
		r.systems = append(r.systems, system{goos, arch})
	}
	seconds, err := output(ctx, "git", "log", "-1", "--format=%ct")
	if err != nil {
		return err
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return fmt.Errorf("the commit's time: %w", err)
	}
	r.time = time.Unix(unix, 0).UTC()
	if *described == "" {
		if *described, err = describe(ctx); err != nil {
			return err
		}
	}
	if r.version, err = parseVersion(*described); err != nil {
		return err
	}
	if *final {
		if err := r.releasable(ctx, *untagged); err != nil {
			return err
		}
	}
	if *sign {
		return r.sign(ctx, hooks(os.Getenv))
	}
	return r.make(ctx)
}

// releasable says why this is no release. That all files are those of the commit, describe has seen to, but for those that
// git doesn't know, and that the compiler would take.
func (r release) releasable(ctx context.Context, untagged bool) error {
	unknown, err := output(ctx, "git", "status", "--porcelain")
	switch {
	case err != nil:
		return err
	case unknown != "":
		return fmt.Errorf("there are files that no commit has: commit or remove them first\n%s", unknown)
	case r.version.after != "" && !untagged:
		return fmt.Errorf("commit %s has no tag: git tag v1.2.3, or make release UNTAGGED=yes", r.version.commit)
	case r.wintun.standIn != "":
		return errors.New("-wintun-stand-in is for tests")
	}
	for _, s := range r.systems {
		if s.os == "windows" && r.wintun.archive == "" {
			return r.wintun.missing()
		}
	}
	return nil
}

// make fills the folder.
func (r release) make(ctx context.Context) error {
	if err := os.RemoveAll(r.out); err != nil {
		return err
	}
	work := filepath.Join(r.out, "work")
	for _, s := range append(r.systems, system{runtime.GOOS, runtime.GOARCH}) {
		if err := r.build(ctx, s, r.binary(s)); err != nil {
			return err
		}
	}
	docs := filepath.Join(work, "docs")
	if err := r.document(ctx, r.binary(system{runtime.GOOS, runtime.GOARCH}), docs); err != nil {
		return err
	}
	for _, s := range r.systems {
		if err := r.list(ctx, s); err != nil {
			return err
		}
		if s.os == "linux" {
			for _, format := range []string{"deb", "rpm", "apk"} {
				if err := r.pack(ctx, s, format, docs); err != nil {
					return err
				}
			}
		}
		if s.os == "windows" {
			if err := r.windows(ctx, s); err != nil {
				return err
			}
			continue
		}
		if err := r.archive(s, docs); err != nil {
			return err
		}
	}
	return r.sum()
}

// binary is where the program for a system is put.
func (r release) binary(s system) string {
	name := "pilot"
	if s.os == "windows" {
		name += ".exe"
	}
	return filepath.Join(r.out, "work", s.String(), name)
}

// file is the path of a file of the release.
func (r release) file(s system, suffix string) string {
	return filepath.Join(r.out, fmt.Sprintf("pilot_%s_%s%s", r.version, s, suffix))
}

// maxBinary and maxDeb bound what people download, in bytes.
const (
	maxBinary = 35_000_000
	maxDeb    = 14_000_000
	maxMSI    = 18_000_000
)

func (r release) build(ctx context.Context, s system, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil // the machine's own system is usually among the others
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=auto", "-ldflags", "-s -w", "-o", path, "./cmd/pilot")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS="+s.os, "GOARCH="+s.arch)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build for %s: %w", s, err)
	}
	return within(path, maxBinary)
}

// within refuses a file that has grown too much.
func within(path string, limit int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() > limit {
		return fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), limit)
	}
	fmt.Printf("%-40s %6.1f MB\n", filepath.Base(filepath.Dir(path))+"/"+filepath.Base(path), float64(info.Size())/1e6)
	return nil
}

// list writes down which modules are inside a program.
func (r release) list(ctx context.Context, s system) error {
	_, err := output(ctx, r.sbom, "bin", "-json", "-std", "-noserial", "-notimestamp", "-version", "v"+r.version.String(),
		"-output", r.file(s, ".cdx.json"), r.binary(s))
	return err
}

// pack makes one package.
func (r release) pack(ctx context.Context, s system, format, docs string) error {
	zsh := "/usr/share/zsh/site-functions"
	if format == "deb" {
		zsh = "/usr/share/zsh/vendor-completions"
	}
	version, rel := r.version.of(format)
	if rel != "" {
		rel = "release: " + strconv.Quote(rel)
	}
	scripts := filepath.Join(r.out, "work", s.String()+"."+format)
	if err := copyScripts(filepath.Join("packaging", format), scripts, r.time); err != nil {
		return err
	}
	pages, err := pages(docs)
	if err != nil {
		return err
	}
	words := map[string]string{
		"PAGES":   pages,
		"SCRIPTS": scripts,
		"ARCH":    s.arch, "VERSION": version, "RELEASE": rel, "MTIME": r.time.Format(time.RFC3339),
		"MAINTAINER": maintainer, "BINARY": r.binary(s), "DOCS": docs, "ZSH": zsh,
		"APK_KEY": strconv.Quote(os.Getenv("APK_KEY")), "APK_KEY_NAME": strconv.Quote(os.Getenv("APK_KEY_NAME")),
	}
	text, err := os.ReadFile("packaging/nfpm.yaml")
	if err != nil {
		return err
	}
	var missing []string
	filled := os.Expand(string(text), func(word string) string {
		value, ok := words[word]
		if !ok && word != "…" {
			missing = append(missing, word)
		}
		return value
	})
	if len(missing) > 0 {
		return fmt.Errorf("nfpm.yaml has words that nobody fills in: %v", missing)
	}
	config := filepath.Join(r.out, "work", s.String()+"."+format+".yaml")
	if err := os.WriteFile(config, []byte(filled), 0o644); err != nil {
		return err
	}
	path := filepath.Join(r.out, fmt.Sprintf("pilot_%s_%s.%s", r.version, s.arch, format))
	cmd := exec.CommandContext(ctx, r.nfpm, "package", "--config", config, "--packager", format, "--target", path)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(r.time.Unix(), 10))
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nfpm: %w: %s", err, said)
	}
	if format == "deb" {
		return within(path, maxDeb)
	}
	return nil
}

// pages lists the manual pages one by one, for nfpm.yaml: given the folder, nfpm would make it the package's own, and in an
// .apk with a mode that no system knows.
func pages(docs string) (string, error) {
	found, err := filepath.Glob(filepath.Join(docs, "man", "*.gz")) // in order of names
	if err != nil {
		return "", err
	}
	var lines []string
	for _, path := range found {
		lines = append(lines, fmt.Sprintf("- {src: %q, dst: /usr/share/man/man1/%s, file_info: {mode: 0644}}", path, filepath.Base(path)))
	}
	return strings.Join(lines, "\n  "), nil
}

// copyScripts gives the maintainer's scripts permissions and a time that don't depend on when and how the source was
// checked out: nfpm takes them over.
func copyScripts(from, to string, t time.Time) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		path := filepath.Join(to, e.Name())
		if err := writeFile(path, data); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
		if err := os.Chtimes(path, t, t); err != nil {
			return err
		}
	}
	return nil
}

// sum writes the hashes of all files in the form of sha256sum(1).
func (r release) sum() error {
	entries, err := os.ReadDir(r.out) // in order of names
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), "SHA256SUMS") { // those of before the files were signed
			continue
		}
		data, err := os.ReadFile(filepath.Join(r.out, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(data), e.Name())
	}
	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), []byte(sums.String()), 0o644)
}

// output runs a program and returns what it prints, without the last line feed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}
