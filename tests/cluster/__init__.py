"""A Kubernetes cluster on this machine, for the tests that need one; `.ci/cluster` runs a command beside it.

A control plane and two nodes. The control plane is in the network namespace of the tests. Each node has namespaces of
its own, and ends as a whole when its first process does.
"""
