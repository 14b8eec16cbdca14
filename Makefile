# SPDX-License-Identifier: Apache-2.0
# "make help" lists what there is.

GO      ?= go
LINTER  := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
# nfpm 2.46 and later need modules that the public module proxy does not serve.
NFPM    := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
SBOM    := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
SYSTEMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
BIN     := $(CURDIR)/.bin
DEBIAN  := $(BIN)/debian.tar
# Each fuzz target runs this long (4 s in CI); those of so many packages run at once.
FUZZTIME ?= 10s
FUZZJOBS ?= 2
BENCHTIME ?= 500ms
# This many of the lab's tests run at once, of those that wait nearly all of the time.
LABJOBS ?= 8
# How much "make integrity" moves: all links and both directions together.
BYTES ?= 10G
NODES ?= 100
SOAK  ?= 100000
ROOT    := $(shell [ "$$(id -u)" = 0 ] && echo yes)

export CGO_ENABLED = 0

PACKAGING = $(GO) run ./packaging -nfpm $(BIN)/nfpm-v2.45.2 -sbom $(BIN)/cyclonedx-gomod-v1.10.0 \
	$(if $(WINTUN),-wintun '$(abspath $(WINTUN))') $(if $(WINTUN_CA),-wintun-ca '$(abspath $(WINTUN_CA))')
# What "make packages" and "make reproducible" build for.
PACKAGE_SYSTEMS ?= linux/amd64,linux/arm64,darwin/amd64,darwin/arm64,windows/amd64,windows/arm64

.PHONY: build demo test unit-test lab-test programs bench integrity matrix idle soak packages packages-test reproducible release windows-test lint format vet cross fuzz lab clean help

## build: the binary, ./pilot (the default); its version is the tag or the commit that git knows
build:
	$(GO) build -trimpath -buildvcs=auto -ldflags '-s -w' -o pilot ./cmd/pilot

## demo: a coordinator and three agents in namespaces, real traffic between them, step by step (root)
demo: build
	@PILOT_BINARY=$(CURDIR)/pilot $(GO) run ./internal/lab/cmd/lab demo

## lab: three hosts and a shell to try things (root)
lab: build
	@PILOT_BINARY=$(CURDIR)/pilot $(GO) run ./internal/lab/cmd/lab

## test: all tests with the race detector; as root also the lab, where real programs run in namespaces
test: unit-test lab-test

# The race detector needs a C compiler; the product does without.
unit-test: export CGO_ENABLED = 1
unit-test:
	@command -v gcc >/dev/null || command -v clang >/dev/null || { echo "the race detector needs a C compiler: apt-get install -y gcc libc6-dev" >&2; exit 1; }
	$(GO) test -race -timeout 15m $$($(GO) list ./... | grep -v /internal/lab)

ifeq ($(ROOT),yes)
lab-test: programs build
	PILOT_BINARY=$(CURDIR)/pilot $(GO) test -count=1 -timeout 30m -parallel $(LABJOBS) ./internal/lab/...
else
lab-test:
	@[ "$$CI" != true ] || { echo "CI must run the lab, and the lab needs root" >&2; exit 1; }
	@echo "the lab's tests need root and are left out: run them with  sudo make lab-test"
endif

## programs: install the programs that the lab runs (root), or name the command that does
programs:
	@$(GO) run ./internal/lab/cmd/lab programs

## bench: each benchmark; as root also the lab's (PILOT_BENCH_QUICK=1 make bench BENCHTIME=1x shows that they run)
bench: $(if $(ROOT),programs build)
	PILOT_BINARY=$(CURDIR)/pilot $(GO) test -v -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -timeout 20m -p 1 $(if $(ROOT),,-short) ./...

## integrity: 10 GB through the tunnel over lossy links, hashed at both ends (root; BYTES=1G for less)
integrity: programs build
	PILOT_BINARY=$(CURDIR)/pilot PILOT_LAB_BYTES=$(BYTES) $(GO) test -count=1 -v -timeout 2h -run '^TestIntegrityOfBulkTransfers$$' ./internal/lab

## matrix: sites behind each kind of NAT and firewall connect in pairs: how, and how fast (root)
matrix: programs build
	PILOT_BINARY=$(CURDIR)/pilot $(GO) test -count=1 -v -timeout 20m -run '^TestMatrix$$' ./internal/lab

## dns-matrix: names in each kind of set-up of the system's resolver, through what may happen to it; boots systems (root)
.PHONY: dns-matrix
dns-matrix: programs build $(DEBIAN)
	PILOT_BINARY=$(CURDIR)/pilot PILOT_LAB_IMAGE=$(DEBIAN) $(GO) test -count=1 -v -timeout 20m -parallel 6 -run '^TestResolver' ./internal/lab

# The Debian that tests boot. It is made once; "make clean" removes it.
$(DEBIAN): packaging/image
	@mkdir -p $(BIN)
	packaging/image $(BIN)/debian-new.tar
	@mv $(BIN)/debian-new.tar $@

## idle: packets and processor time of NODES nodes that have nothing to say (root; takes six minutes)
idle: programs build
	PILOT_BINARY=$(CURDIR)/pilot PILOT_LAB_IDLE=$(NODES) $(GO) test -count=1 -v -timeout 30m -run '^TestIdle$$' ./internal/lab

## soak: SOAK short connections each way: by embedded nodes, through the proxies, and as root through serve, forward and run; nothing may be left
soak: $(if $(ROOT),programs build)
	PILOT_SOAK=$(SOAK) $(GO) test -count=1 -v -timeout 20m -run '^TestSoak$$' .
	$(if $(ROOT),PILOT_BINARY=$(CURDIR)/pilot PILOT_LAB_SOAK=$(SOAK) $(GO) test -count=1 -v -timeout 40m -run '^(TestServeSoak|TestSandboxSoak)$$' ./internal/lab)

## lint: the linters of .golangci.yml, in a fixed version
lint: $(BIN)/golangci-lint-v2.15.0
	$< run ./...

$(BIN)/golangci-lint-v2.15.0:
	@mkdir -p $(BIN)
	GOBIN=$(BIN) $(GO) install $(LINTER)
	@mv $(BIN)/golangci-lint $@

## format: rewrite the source as gofmt has it
format:
	gofmt -w $$(git ls-files '*.go')

## vet: the compiler's own checks
vet:
	$(GO) vet ./...

## cross: build and vet for every system
cross:
	@set -e; for system in $(SYSTEMS); do \
		echo "$$system"; \
		GOOS=$${system%/*} GOARCH=$${system#*/} $(GO) build -trimpath -o /dev/null ./...; \
		GOOS=$${system%/*} GOARCH=$${system#*/} $(GO) vet ./...; \
	done

## fuzz: each fuzz target for FUZZTIME, those of FUZZJOBS packages at a time
fuzz:
	@GO=$(GO) .ci/fuzz $(FUZZTIME) $(FUZZJOBS)

## packages: all that a release consists of, in dist: .deb, .rpm, .apk, .msi (with WINTUN=FILE), archives, SBOMs, SHA256SUMS
packages: $(BIN)/nfpm-v2.45.2 $(BIN)/cyclonedx-gomod-v1.10.0
	$(PACKAGING) -systems $(PACKAGE_SYSTEMS) -out dist

# Another folder, umask and time zone: what differs between two machines.
define again
	@set -e; clone=$$(mktemp -d); trap 'rm -rf "$$clone"' EXIT; \
	umask 077; git clone -q . "$$clone/elsewhere"; cd "$$clone/elsewhere"; \
	TZ=Pacific/Auckland $(PACKAGING) -systems $(PACKAGE_SYSTEMS) -out "$$clone/out" >/dev/null; \
	diff $(CURDIR)/dist/SHA256SUMS "$$clone/out/SHA256SUMS"; echo "the same, twice"
endef

## reproducible: make the packages again, from a clone elsewhere, and compare (PACKAGE_SYSTEMS=linux/amd64 for less)
reproducible: packages
	$(again)

## release: make the packages of a tag, make them again and compare, sign them (WINTUN=FILE; SIGN_EXE=COMMAND … in the environment)
release: $(BIN)/nfpm-v2.45.2 $(BIN)/cyclonedx-gomod-v1.10.0
	$(PACKAGING) -release $(if $(UNTAGGED),-untagged) -systems $(PACKAGE_SYSTEMS) -out dist
	$(again)
	@if [ -n "$$SIGN_EXE$$SIGN_MSI$$SIGN_DEB$$SIGN_RPM$$SIGN_SUMS" ]; then \
		$(PACKAGING) -sign -systems $(PACKAGE_SYSTEMS) -out dist; else echo "not signed: no SIGN_… says how"; fi
	@cd dist && sha256sum --quiet --check SHA256SUMS && ls -l --time-style=long-iso | awk '$$1 ~ /^-/ {printf "%6.1f MB  %s\n", $$5 / 1e6, $$8}'

## packages-test: install, upgrade in a download, reboot, remove and purge the .deb in a booted Debian; the .rpm and .apk without systemd (root)
packages-test: export APK_KEY = $(CURDIR)/dist/test/apk.key
packages-test: export APK_KEY_NAME = test.rsa.pub
packages-test: programs build $(DEBIAN) $(BIN)/nfpm-v2.45.2 $(BIN)/cyclonedx-gomod-v1.10.0
	@mkdir -p dist/test && openssl genrsa -traditional -out $(APK_KEY) 2048 2>/dev/null && openssl rsa -in $(APK_KEY) -pubout -out dist/test/apk.pub 2>/dev/null
	$(PACKAGING) -systems linux/amd64 -version v1.0.0 -out dist/test/1
	$(PACKAGING) -systems linux/amd64 -version v1.0.1 -out dist/test/2
	packaging/test dist/test/1 dist/test/2
	PILOT_BINARY=$(CURDIR)/pilot PILOT_LAB_IMAGE=$(DEBIAN) PILOT_LAB_DEB=$$(echo $(CURDIR)/dist/test/1/*.deb) $(GO) test -count=1 -timeout 10m -run '^TestPackageOnResolved$$' ./internal/lab

# Test installers hold no Wintun, and say so.
## windows-test: install, upgrade, remove and purge the .msi in Wine, in a Debian of its own (root; downloads 120 MB)
windows-test: $(BIN)/nfpm-v2.45.2 $(BIN)/cyclonedx-gomod-v1.10.0
	@mkdir -p dist/no-wintun/amd64 && echo "no Wintun" >dist/no-wintun/amd64/wintun.dll
	$(PACKAGING) -systems windows/amd64 -version v1.0.0 -wintun-stand-in dist/no-wintun -out dist/test/1
	$(PACKAGING) -systems windows/amd64 -version v1.0.1 -wintun-stand-in dist/no-wintun -out dist/test/2
	packaging/windows-test dist/test/1 dist/test/2

$(BIN)/nfpm-v2.45.2:
	@mkdir -p $(BIN)
	GOBIN=$(BIN) $(GO) install $(NFPM)
	@mv $(BIN)/nfpm $@

$(BIN)/cyclonedx-gomod-v1.10.0:
	@mkdir -p $(BIN)
	GOBIN=$(BIN) $(GO) install $(SBOM)
	@mv $(BIN)/cyclonedx-gomod $@

## clean: remove what was built
clean:
	rm -rf pilot pilot.exe dist .bin

## help: this list
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)
