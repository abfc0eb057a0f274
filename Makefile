# What can be made. How is in .ci/, one script each.
.PHONY: help demo test check proto bench chaos
MAKEFLAGS += --no-print-directory

help: ## say what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 14

demo: ## run one job on a server of its own and show its output as it comes
	@.ci/stage demo .ci/demo

test: ## run all tests, against a real engine too; installs what is missing (ARGS='-k tail' goes to pytest)
	@.ci/test $(ARGS)

check: ## check the contract, generated code, style, types and imports
	@.ci/check

proto: ## make the Python code and docs/contract.md from protos/
	@.ci/environment && .ci/proto

bench: ## measure fastlane against the plain engine, side by side
	@.ci/stage bench python -m bench

chaos: ## kill servers and engines at random, over and over, and look for what was lost (ROUNDS=20)
	@.ci/stage chaos .ci/chaos $(ROUNDS)
