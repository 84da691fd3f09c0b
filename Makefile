# The commands of this repository. `make help` lists them.

GO     ?= go
# The client library's server side has databases that nothing here needs.
TAGS   := nobadger,nobbolt,nomysql,nopgx
# -buildvcs puts the commit into `step-csi version`.
BUILD  := $(GO) build -trimpath -buildvcs=auto -tags $(TAGS)
# Programs of the tests have modules of their own.
MODULES := . test/cluster test/cluster/coredns test/cluster/helm test/e2e/images/nats test/realca/module
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$(PATH)")

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## Show what step-csi does, for real, in 15 s (needs root for mounts)
	@$(SUDO) bin/step-csi-demo

# -count: some tests run the built binary, which the test cache knows nothing of.
.PHONY: test
test: ## Build, and run every test (needs root for mounts)
	@$(SUDO) test/setup.sh test
	$(SUDO) $(GO) test -count 1 -timeout 30m -tags $(TAGS) ./...

.PHONY: build
build: ## Build step-csi and its demo into bin/
	CGO_ENABLED=0 $(BUILD) -ldflags "-s -w" -o bin/ ./cmd/...

# Variables: IMAGE, VERSION, PLATFORM, BUILDER, IMAGE_ARCHIVE, and BASE=local for a
# machine without a registry; deploy/image/build.sh describes them.
.PHONY: image
image: ## Build the image with docker, podman or buildah
	@deploy/image/build.sh

.PHONY: cluster
cluster: bin/step-csi-cluster ## Start a real one-node Kubernetes here (needs root)
	@$(SUDO) bin/step-csi-cluster up

.PHONY: cluster-down
cluster-down: bin/step-csi-cluster ## Remove that cluster
	@$(SUDO) bin/step-csi-cluster down

.PHONY: bin/step-csi-cluster
bin/step-csi-cluster:
	@CGO_ENABLED=0 $(GO) build -C test/cluster -o ../../bin/step-csi-cluster .

# -parallel: two cores do not take more at once.
.PHONY: e2e
e2e: bin/step-csi-cluster ## Run the scenarios in a real Kubernetes; SCENARIO=name for one (needs root)
	@$(SUDO) test/setup.sh e2e
	$(if $(SCENARIO),,$(SUDO) $(GO) test -count 1 -tags e2e,$(TAGS) ./test/image)
	@$(GO) test -c -tags e2e,$(TAGS) -o bin/e2e.test ./test/e2e
	@cd test/e2e && $(SUDO) ../../bin/e2e.test -test.timeout 60m -test.parallel 4 -test.run 'TestE2E$(if $(SCENARIO),/.*/^$(SCENARIO)$$)'

.PHONY: lint
lint: ## Check formatting, go vet, staticcheck, and that go.mod is tidy
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	$(GO) vet -tags $(TAGS),e2e ./...
	$(GO) tool staticcheck -tags $(TAGS),e2e ./...
	cd test/cluster && $(GO) vet . && $(GO) tool -modfile=../../go.mod staticcheck .
	@for module in $(MODULES); do echo "$(GO) -C $$module mod tidy -diff"; $(GO) -C $$module mod tidy -diff || exit 1; done

.PHONY: generate
generate: ## Make the chart's README, deploy/kustomize, deploy/monitoring, and the authority's protocol (needs protoc)
	protoc --plugin=$$($(GO) tool -n protoc-gen-go) --plugin=$$($(GO) tool -n protoc-gen-go-grpc) \
	  --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative issuer/ra/rapb/ra.proto
	$(GO) test -tags $(TAGS) -run TestGenerated ./test/chart -update

# With a cluster of its own, whose API server the authority asks.
.PHONY: bench
bench: bin/step-csi-cluster ## Compare publishing a volume with a bare sign by the CA, and through the authority (needs root)
	@$(SUDO) test/bench/run.sh $(GO) test -tags $(TAGS) -run '^$$' -bench . -benchtime 3000x ./test/bench

.PHONY: fuzz
fuzz: ## Fuzz what users and nodes send, for a minute each
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz FuzzParse -fuzztime 60s ./driver/attributes
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz Fuzz -fuzztime 60s ./issuer/policy
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz Fuzz -fuzztime 60s ./issuer/ra/server

# SOAK is for how long, SEED repeats a run.
.PHONY: soak
soak: ## Kill the plugin at random, under load, for SOAK=30m (needs root)
	$(SUDO) $(GO) test -count 1 -timeout 0 -tags $(TAGS) -v -run TestRandomKills ./test/crash -soak $(or $(SOAK),30m) -seed $(or $(SEED),0)

# Without root, and without a network.
.PHONY: fleet
fleet: ## Simulate 5,000 nodes, and write docs/fleet.md (half an hour, 4 GB); SCENARIO=name for one
	$(GO) test -count 1 -timeout 0 -tags $(TAGS) -v -run 'TestFleet$(if $(SCENARIO),/^$(SCENARIO)$$)' ./test/fleet -nodes 5000 -update

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
