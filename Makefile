# The commands of a developer. Each is a script in .ci/.
.PHONY: help demo test cluster kit image check proto conformance picture bench chaos
MAKEFLAGS += --no-print-directory

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

demo: ## run one job on a server of its own and show its output live
	@.ci/stage demo .ci/demo

test: ## run all tests, on a real engine; installs what is missing (ARGS='-k tail' goes to pytest)
	@.ci/test $(ARGS)

cluster: ## bring up a Kubernetes cluster of two nodes, until Ctrl-C (ARGS='pytest -m cluster' runs that beside it)
	@.ci/cluster $(ARGS)

kit: ## build the image that pods of a Kubernetes host need (TAG=registry.example.org/fastlane-kit:1, ARCH=arm64; PUSH=yes pushes it)
	@PUSH=$(PUSH) .ci/kit $(TAG) $(ARCH)

image: ## build the image of the server (TAG=registry.example.org/fastlane:1, BASE=python:3.12-slim; PUSH=yes pushes it)
	@PUSH=$(PUSH) .ci/image $(or $(TAG),"") $(BASE)

check: ## check the contract, generated code, style, types and imports
	@.ci/check

proto: ## generate the Python code, docs/contract.md and the code of clients/rust from protos/
	@.ci/environment && .ci/proto && .ci/tools cargo && PATH="$$PWD/.tools/bin:$$PATH" clients/rust/generate/run

conformance: ## run the clients' suite and record its results for docs/client-conformance.md
	@.ci/conformance

picture: ## take the picture of the page in the documentation anew
	@.ci/picture

tail: ## build fastlane-tail for each system into dist/cli
	@.ci/tail

bench: ## measure fastlane and the plain engine side by side
	@.ci/environment && { .ci/peers; .ci/tools chromium || true; } && .ci/stage bench python -m bench

chaos: ## kill servers and engines at random and check that nothing is lost (ROUNDS=20; ROW=… of docs/reliability.md)
	@$(if $(filter pods-%,$(ROW)),.ci/cluster,.ci/stage chaos) .ci/chaos $(or $(ROUNDS),20) $(ROW)
