"""The queue: a line for each task that has queued executions of a priority, and for no other. The lowest turn is served next."""

from fastlane_grpc.model import State
from fastlane_grpc.store.database import Connection


def line_up(db: Connection, execution_id: str) -> None:
    """Its task gets a line of its priority, behind the others, unless it has one."""
    db.execute(
        """
        INSERT INTO lines (priority, task_id, turn)
        SELECT priority, task_id, (SELECT coalesce(max(turn), 0) + 1 FROM lines WHERE lines.priority = executions.priority)
        FROM executions WHERE execution_id = ? ON CONFLICT (priority, task_id) DO NOTHING
        """,
        [execution_id],
    )


def to_the_end(db: Connection, execution_id: str) -> None:
    """The line of its task has had its turn."""
    db.execute(
        """
        UPDATE lines SET turn = (SELECT max(turn) + 1 FROM lines AS others WHERE others.priority = lines.priority)
        WHERE (priority, task_id) = (SELECT priority, task_id FROM executions WHERE execution_id = ?)
        """,
        [execution_id],
    )


def leave_line(db: Connection, execution_id: str) -> None:
    """The line of its task goes, if nothing is left in it."""
    db.execute(
        f"""
        DELETE FROM lines WHERE (priority, task_id) = (SELECT priority, task_id FROM executions WHERE execution_id = ?)
        AND NOT EXISTS (
            SELECT 1 FROM executions AS queued INDEXED BY executions_queued
            WHERE queued.state = {State.QUEUED} AND queued.priority = lines.priority AND queued.task_id = lines.task_id
        )
        """,
        [execution_id],
    )
