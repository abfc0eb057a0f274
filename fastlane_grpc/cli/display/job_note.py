"""A short note about a job or an execution: how it ended, or why it waits, and which attempt it is."""

from fastlane_grpc.cli.display.output import waiting_text
from fastlane_grpc.v1 import fastlane_pb2 as pb


def note_of(nouns: pb.Job | pb.Execution, execution: pb.Execution) -> str:
    attempt = f"attempt {attempts_text(nouns, execution)}" if execution.attempt > 1 else ""
    if nouns.HasField("outcome"):
        outcome = nouns.outcome
        ended = outcome.detail or (f"exited with {outcome.exit_code}" if outcome.exit_code else "")
        return "; ".join(filter(None, [ended, attempt]))
    if not execution.HasField("waiting"):
        return attempt
    waiting = execution.waiting
    if attempt and waiting.reason == pb.WAIT_REASON_BACKOFF:
        return f"{attempt} {waiting_text(waiting)}"
    if execution.HasField("tick_time") and waiting.reason == pb.WAIT_REASON_NOT_DUE:
        # Of a job without its number: runs that never started are counted, too.
        which = f"run {execution.run}" if isinstance(nouns, pb.Execution) else "next run"
        return f"{which} {waiting_text(waiting)}"
    return "; ".join(filter(None, [waiting_text(waiting), attempt]))


def attempts_text(nouns: pb.Job | pb.Execution, execution: pb.Execution) -> str:
    """Return the number of the attempt, and of how many where the spec is known: "2 of 4". Failures of a host are not
    counted, so that there may be more."""
    if isinstance(nouns, pb.Execution) or not nouns.spec.HasField("retry"):
        return str(execution.attempt)
    return f"{execution.attempt} of {max(nouns.spec.retry.max_retries + 1, execution.attempt)}"
