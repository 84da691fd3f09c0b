# The commands of this repository. `make help` lists them.

GO     ?= go
# Leaves out step-ca's databases, which this repository does not use.
TAGS   := nobadger,nobbolt,nomysql,nopgx
# -buildvcs puts the commit into `step-csi version` and `step-csi-reload --version`.
BUILD  := $(GO) build -trimpath -buildvcs=auto -tags $(TAGS)
# Programs that only tests use have their own modules.
MODULES := . test/cluster test/cluster/coredns test/cluster/helm test/cluster/runc test/e2e/images/nats test/realca/module
# The clusters' other versions of Kubernetes: the same programs, of other modules.
MODFILES := kubernetes-1.34.mod
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$(PATH)")

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## Run the plugin with a real step-ca and two mTLS peers, 15 s (needs root)
	@CGO_ENABLED=0 $(BUILD) -o bin/step-csi-demo ./test/demo
	@$(SUDO) bin/step-csi-demo

# -count 1: the test cache does not notice changes of binaries that tests build and run.
# -p 1: each of these packages keeps two cores busy. Some have certificates that live for
# seconds, and test/programs gives servers ports that no other package may take.
BUSY = ./test/crash ./test/integration ./test/programs
.PHONY: test
test: ## Run every test (needs root for mounts)
	@$(SUDO) test/setup.sh test
	$(SUDO) $(GO) test -count 1 -timeout 30m -tags $(TAGS) $$($(GO) list -tags $(TAGS) ./... | grep -v -F $(BUSY:./%=-e /%))
	$(SUDO) $(GO) test -count 1 -timeout 30m -tags $(TAGS) -p 1 $(BUSY)

.PHONY: build
build: ## Build step-csi, step-csi-reload and the kubectl plugin into bin/
	CGO_ENABLED=0 $(BUILD) -ldflags "-s -w" -o bin/ ./cmd/...

# Variables: IMAGE, RELOAD_IMAGE, VERSION, PLATFORM, BUILDER, IMAGE_ARCHIVE,
# RELOAD_IMAGE_ARCHIVE, and BASE=local for a machine without a registry;
# deploy/image/build.sh describes them.
.PHONY: image
image: ## Build both images with docker, podman or buildah
	@deploy/image/build.sh

# CLUSTER is the name of the cluster, and KUBERNETES its version.
CLUSTER    ?= step-csi
KUBERNETES ?=
cluster     = $(SUDO) bin/step-csi-cluster --name $(CLUSTER) $(if $(KUBERNETES),--kubernetes $(KUBERNETES))

.PHONY: try
try: bin/step-csi-cluster ## Run the README's quick start here: cluster, images, step-ca, chart and a pod (needs root)
	@$(SUDO) test/setup.sh try
	@CLUSTER=$(CLUSTER) KUBERNETES=$(KUBERNETES) $(SUDO) test/try.sh

.PHONY: cluster
cluster: bin/step-csi-cluster ## Start a real one-node Kubernetes here; KUBERNETES=1.34 for another version (needs root)
	@$(cluster) up

.PHONY: load
load: bin/step-csi-cluster ## Build the images of the README and the examples, and load them into the cluster (needs root)
	@$(SUDO) test/setup.sh load
	@CLUSTER=$(CLUSTER) $(SUDO) test/load.sh

.PHONY: cluster-down
cluster-down: bin/step-csi-cluster ## Stop and remove the cluster of make cluster or make try
	@$(cluster) down

.PHONY: bin/step-csi-cluster
bin/step-csi-cluster:
	@CGO_ENABLED=0 $(GO) build -C test/cluster -o ../../bin/step-csi-cluster .

# -parallel 64: TestE2E itself decides how many scenarios run at once.
.PHONY: e2e
e2e: bin/step-csi-cluster ## Run the scenarios in a real Kubernetes; SCENARIO=name for one, KUBERNETES=1.34 (needs root)
	@$(SUDO) test/setup.sh e2e
	$(if $(SCENARIO),,@$(cluster) suite >/dev/null)
	$(if $(SCENARIO),,$(SUDO) $(GO) test -count 1 -timeout 30m -tags e2e,$(TAGS) ./test/image)
	@$(GO) test -c -tags e2e,$(TAGS) -o bin/e2e.test ./test/e2e
	@cd test/e2e && KUBERNETES=$(KUBERNETES) $(SUDO) ../../bin/e2e.test -test.timeout 60m -test.parallel 64 -test.run 'TestE2E$(if $(SCENARIO),/.*/^$(SCENARIO)$$)'

# VULNDB is the URL of another database of vulnerabilities than https://vuln.go.dev.
.PHONY: lint
lint: ## Check formatting, go vet, staticcheck, known vulnerabilities, and that go.mod is tidy
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	$(GO) vet -tags $(TAGS),e2e ./...
	$(GO) tool staticcheck -tags $(TAGS),e2e ./...
	cd test/cluster && $(GO) vet . && $(GO) tool -modfile=../../go.mod staticcheck .
	@for module in $(MODULES); do echo "$(GO) -C $$module mod tidy -diff"; $(GO) -C $$module mod tidy -diff || exit 1; done
	@for file in $(MODFILES); do echo "$(GO) -C test/cluster mod tidy -modfile=$$file -diff"; $(GO) -C test/cluster mod tidy -modfile=$$file -diff || exit 1; done
	$(GO) run ./test/vulncheck $(if $(VULNDB),-db $(VULNDB)) -tags $(TAGS) ./cmd/...

.PHONY: generate
generate: ## Generate the chart's README, deploy/kustomize, deploy/monitoring and the authority's protocol (needs protoc)
	protoc --plugin=$$($(GO) tool -n protoc-gen-go) --plugin=$$($(GO) tool -n protoc-gen-go-grpc) \
	  --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative issuer/ra/rapb/ra.proto
	$(GO) test -tags $(TAGS) -run TestGenerated ./test/chart -update

# Starts its own cluster, because the authority asks the API server for token reviews.
.PHONY: bench
bench: bin/step-csi-cluster ## Compare publishing a volume with a bare sign by the CA, and through the authority (needs root)
	@$(SUDO) test/bench/run.sh $(GO) test -tags $(TAGS) -run '^$$' -bench . -skip RSA -benchtime 3000x ./test/bench
	$(SUDO) $(GO) test -tags $(TAGS) -timeout 30m -run '^$$' -bench RSA -benchtime 20x ./test/bench

.PHONY: fuzz
fuzz: ## Fuzz the parsers of users' and nodes' input, and the combinations of formats, one minute each
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz FuzzParse -fuzztime 60s ./driver/attributes
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz FuzzConvert -fuzztime 60s ./cmd/kubectl-step_csi
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz FuzzFormats -fuzztime 60s ./driver/payload
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz Fuzz -fuzztime 60s ./issuer/policy
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz FuzzSign -fuzztime 60s ./issuer/ra/server
	$(GO) test -tags $(TAGS) -run '^$$' -fuzz FuzzReport -fuzztime 60s ./issuer/ra/server

# SOAK is the duration; SEED repeats the random choices of an earlier run.
.PHONY: soak
soak: ## Kill the plugin at random, under load, for SOAK=30m (needs root)
	$(SUDO) $(GO) test -count 1 -timeout 0 -tags $(TAGS) -v -run TestRandomKills ./test/crash -soak $(or $(SOAK),30m) -seed $(or $(SEED),0)

# The attackers run on this machine, at the lowest priority for its processors. ATTACK is
# the name of one attack, as the table has it.
.PHONY: attack
attack: ## Measure the registration authority under attack, for docs/security.md (15 minutes); ATTACK=name for one
	@$(GO) run -tags $(TAGS) ./test/load $(if $(ATTACK),-only "$(ATTACK)")

.PHONY: capacity
capacity: ## Measure how the CA's database grows, for docs/capacity.md (ten minutes; needs root, for PostgreSQL)
	@$(GO) run -tags $(TAGS) ./test/capacity

# Needs neither root nor a network.
.PHONY: fleet
fleet: ## Simulate 5,000 nodes, and write docs/fleet.md (half an hour, 4 GB); SCENARIO=name for one
	$(GO) test -count 1 -timeout 0 -tags $(TAGS) -v -run 'TestFleet$(if $(SCENARIO),/^$(SCENARIO)$$)' ./test/fleet -nodes 5000 -update

.PHONY: clean
clean: ## Remove the built programs
	rm -rf bin
