"""Tasks, jobs and executions on disk. What was answered is committed and synced; it survives whatever is killed."""

from fastlane_grpc.store.audit import AUDITED, AuditedCall, AuditEntry
from fastlane_grpc.store.batch import EnqueueBatch, Enqueued
from fastlane_grpc.store.census import Census
from fastlane_grpc.store.changes import FIRST_POSITION, Change, ChangeKind, ChangePosition, JobsRead
from fastlane_grpc.store.enqueue import Quota, first_job
from fastlane_grpc.store.execution_counts import CAUSES, ExecutionCounts
from fastlane_grpc.store.health import StoreHealth
from fastlane_grpc.store.hosts import Drain
from fastlane_grpc.store.job_changes import etag_of
from fastlane_grpc.store.job_filter import FINAL_STATES, OPEN_STATES, JobFilter, Order
from fastlane_grpc.store.job_state import Rules
from fastlane_grpc.store.lists import AuditQuery, DeliveryQuery, ExecutionQuery, JobQuery, ListPage, Position
from fastlane_grpc.store.outbox import Attempt, Due
from fastlane_grpc.store.pending import Pending
from fastlane_grpc.store.pruning import Count, PruneCandidate, PruneCursor, PruneQuery, RetentionTotals
from fastlane_grpc.store.store import Store
from fastlane_grpc.store.task_limits import LimitedTasks

__all__ = [
    "AUDITED",
    "CAUSES",
    "FINAL_STATES",
    "FIRST_POSITION",
    "OPEN_STATES",
    "Attempt",
    "AuditEntry",
    "AuditQuery",
    "AuditedCall",
    "Census",
    "Change",
    "ChangeKind",
    "ChangePosition",
    "Count",
    "DeliveryQuery",
    "Drain",
    "Due",
    "EnqueueBatch",
    "Enqueued",
    "ExecutionCounts",
    "ExecutionQuery",
    "JobFilter",
    "JobQuery",
    "JobsRead",
    "LimitedTasks",
    "ListPage",
    "Order",
    "Pending",
    "Position",
    "PruneCandidate",
    "PruneCursor",
    "PruneQuery",
    "Quota",
    "RetentionTotals",
    "Rules",
    "Store",
    "StoreHealth",
    "etag_of",
    "first_job",
]
