# "make" or "make help" lists what there is to make.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX  ?= /usr/local
SCRIPTS := deploy/sandbox/sandbox deploy/demo/demo deploy/kernel/init .ci/run
SANDBOX := deploy/sandbox/sandbox
KERNEL  := user-mode-linux nfs-kernel-server nfs-common rpcbind kmod iproute2 e2fsprogs xfsprogs ethtool systemd
GRIDFTP := globus-gridftp-server-progs globus-gass-copy-progs iproute2 procps
PEERS   := $(GRIDFTP) iperf3 xrootd-server xrootd-client rclone aria2 \
	curl lftp nginx-light rsync openssh-server openssh-client
RACE    := agent agent/api glance/store mover/client mover/dtn mover/stream/bases mover/stream/pace tuning/history # tested with the race detector alone,
RACE2   := mover/gridftp mover/localcopy mover/stream nfs/guard # and these a second time, without what is real or long

# A test that fails beside all others runs once more, alone, and is told of: machines may be slow, and the code may not.
GOTEST  := go tool -modfile=tools.mod gotestsum --format pkgname-and-test-fails --hide-summary=skipped \
	--rerun-fails=1 --rerun-fails-max-failures=3 --rerun-fails-abort-on-data-race

export CGO_ENABLED = 0

.DEFAULT_GOAL := help
.PHONY: help build test test-kernel check format demo bench bench-nfs bench-movers eval-relay eval-pcp grid-pcp man completion install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

build: ## bin/glance-dtn, static, with its version
	go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/glance-dtn ./cmd/glance-dtn

test: build test-kernel ## install what the tests need (Debian 12, root) and run all of them, real OpenStack included
	$(SANDBOX) install etcd-server gcc libc6-dev nfs-ganesha nfs-ganesha-vfs rpcbind $(GRIDFTP)
	GLANCE_DTN_REAL=1 GLANCE_DTN=$(CURDIR)/bin/glance-dtn $(GOTEST) --packages \
		"$$(go list ./... | grep -vxF "$$(printf 'github.com/glance-dtn/glance-dtn/%s\n' $(RACE))" | tr '\n' ' ')" -- -count=1 -timeout 45m -skip '^TestGuests$$'
	CGO_ENABLED=1 $(GOTEST) --packages '$(addprefix ./,$(RACE) $(RACE2))' -- -race -count=1 -timeout 45m -skip '^TestConformance'

test-kernel: ## kernel NFS alone: this module's tests for it, each package's in a user-mode-linux guest (Debian 12, root)
	$(SANDBOX) install $(KERNEL)
	GLANCE_DTN_REAL=1 $(GOTEST) --format standard-verbose --packages ./deploy/kernel -- -count=1 -timeout 45m -parallel 3

check: ## formatting, vet, modernisation, staticcheck, module files, shell scripts
	@test -z "$$(gofmt -l .)" || { echo 'not formatted (make format):'; gofmt -l .; exit 1; }
	go vet ./...
	go fix -diff ./...
	go tool -modfile=tools.mod staticcheck ./...
	go mod tidy -diff
	go mod verify
	@if command -v shellcheck >/dev/null; then set -x; shellcheck $(SCRIPTS); \
		else echo 'shellcheck is not installed: the scripts are not checked'; fi

format: ## gofmt and go fix, written to the files
	gofmt -w .
	go fix ./...

demo: ## two real sites on this machine, one image from A to B (KEEP=1 leaves them up, DEMO_MIB=64)
	@deploy/demo/demo

bench: build ## measure: whole jobs between the sandbox sites, and the parts
	$(SANDBOX) install
	GLANCE_DTN_REAL=1 GLANCE_DTN=$(CURDIR)/bin/glance-dtn go test -run '^$$' -bench . -skip '^Benchmark(Guests|Movers|Relays|Grid|PCP)$$' -benchtime 1x -timeout 30m ./...

bench-nfs: ## measure rsize and wsize in all corners of sync and async, on kernel NFS in a guest: tables, CSV and plots into dist/nfs
	$(SANDBOX) install $(KERNEL)
	GLANCE_DTN_REAL=1 go test -run '^$$' -bench '^BenchmarkGuests$$' -benchtime 1x -timeout 25m -v ./deploy/kernel

bench-movers: build ## measure glance-dtn beside its peers, LAN and WAN: runs, tables and a plot into dist/movers (hours; see deploy/movers/README.md)
	$(SANDBOX) install $(PEERS)
	GLANCE_DTN_REAL=1 GLANCE_DTN=$(CURDIR)/bin/glance-dtn go test -run '^$$' -bench '^BenchmarkMovers$$/$(MOVERS_ONLY)' -benchtime 1x -timeout 0 -v ./deploy/movers

eval-relay: build ## measure direct, stored and cut through beside what the planner predicts: runs, table and plot into dist/relay (minutes; see deploy/movers/README.md)
	$(SANDBOX) install curl nginx-light iproute2 procps
	GLANCE_DTN_REAL=1 GLANCE_DTN=$(CURDIR)/bin/glance-dtn go test -run '^$$' -bench '^BenchmarkRelays$$' -benchtime 1x -timeout 0 -v ./deploy/movers

eval-pcp: ## evaluate the advice on pipelining, concurrency and parallelism on paths never seen: report, plots and CSV into dist/pcp
	go test -run '^$$' -bench '^BenchmarkPCP$$' -benchtime 1x -timeout 2h -v ./deploy/advice

grid-pcp: build ## measure the engine with each PCP of a grid on emulated paths, for eval-pcp: rows are added to deploy/advice/testdata/grid.csv (25 minutes a round; see deploy/movers/README.md)
	$(SANDBOX) install iproute2 procps
	GLANCE_DTN_REAL=1 GLANCE_DTN=$(CURDIR)/bin/glance-dtn go test -run '^$$' -bench '^BenchmarkGrid$$/$(GRID_ONLY)' -benchtime 1x -timeout 0 -v ./deploy/movers

man: build ## manual pages, into dist/man
	mkdir -p dist/man
	bin/glance-dtn man dist/man

completion: build ## shell completions, into dist/completion
	mkdir -p dist/completion
	for s in bash zsh fish; do bin/glance-dtn completion $$s >dist/completion/glance-dtn.$$s || exit 1; done

install: build man completion ## binary, manual, completions, units and accounts (PREFIX, DESTDIR)
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin bin/glance-dtn
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 dist/man/*.1
	install -D -m 644 dist/completion/glance-dtn.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/glance-dtn
	install -D -m 644 dist/completion/glance-dtn.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_glance-dtn
	install -D -m 644 dist/completion/glance-dtn.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/glance-dtn.fish
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/sysusers.d deploy/sysusers.d/*.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/tmpfiles.d deploy/tmpfiles.d/*.conf
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for u in deploy/systemd/*.service; do \
		sed 's,/usr/local/bin/,$(PREFIX)/bin/,' $$u >$(DESTDIR)$(PREFIX)/lib/systemd/system/$${u##*/} || exit 1; done

clean: ## remove what was built
	rm -rf bin dist
