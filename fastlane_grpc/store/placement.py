"""The pools of the lines of the queue: which hosts a line is claimed for."""

from fastlane_grpc.pools import NO_POOL, Pools
from fastlane_grpc.store.database import Connection


def placed_by(db: Connection) -> str:
    """Return what the lines are placed by, as `Pools.placement`."""
    placement: str = db.execute("SELECT pools FROM pools_in_force").fetchall()[0][0]
    return placement


def put_in_force(db: Connection, pools: Pools) -> None:
    """Place all lines anew, if they are placed by other pools than these."""
    if placed_by(db) == pools.placement:
        return
    db.execute("UPDATE pools_in_force SET pools = ?", [pools.placement])
    if pools:
        db.execute("UPDATE lines SET pool = NULL")
        place(db, pools)
    else:
        db.execute("UPDATE lines SET pool = ?", [NO_POOL])


def place(db: Connection, pools: Pools) -> None:
    """Place the lines that came since."""
    found = db.execute("SELECT task_id FROM lines INDEXED BY lines_unplaced WHERE pool IS NULL").fetchall()
    if found:
        db.executemany(
            "UPDATE lines SET pool = ? WHERE task_id = ? AND pool IS NULL",
            [(pools.of_task(task_id), task_id) for (task_id,) in found],
        )
