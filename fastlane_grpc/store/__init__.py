"""Tasks, jobs and executions on disk. What was answered is committed and synced; it survives whatever is killed."""

from fastlane_grpc.store.enqueue import Quota
from fastlane_grpc.store.health import StoreHealth
from fastlane_grpc.store.lists import ExecutionQuery, JobQuery, Page, Position
from fastlane_grpc.store.pending import Pending
from fastlane_grpc.store.pruning import Count, Found, Kept, Old, Place
from fastlane_grpc.store.store import Store

__all__ = [
    "Count",
    "ExecutionQuery",
    "Found",
    "JobQuery",
    "Kept",
    "Old",
    "Page",
    "Pending",
    "Place",
    "Position",
    "Quota",
    "Store",
    "StoreHealth",
]
