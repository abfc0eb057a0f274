"""Tasks, jobs and executions on disk. What was answered is committed and synced; it survives whatever is killed."""

from fastlane_grpc.store.enqueue import Quota
from fastlane_grpc.store.fitness import Fitness
from fastlane_grpc.store.pending import Pending
from fastlane_grpc.store.pruning import Count, Found, Kept, Old, Place
from fastlane_grpc.store.store import Store

__all__ = ["Count", "Fitness", "Found", "Kept", "Old", "Pending", "Place", "Quota", "Store"]
