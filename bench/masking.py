"""Output of one container with secrets, which the recorder masks, against the same without any."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.ratio import Ratio, in_turn
from bench.server import server
from bench.throughput import megabytes_per_second

MEGABYTES = 400
GOAL = 0.8
LINES = {
    "lines": "2026-11-29T03:50:30 INFO app.server handled GET /api/v1/users?id=%20 in 0.013s",
    "digits": "0123456789" * 9 + "01234567",
}
SECRETS = {
    "PASSWORD": "9dK2mPq8vXw3LtZr7BnC5yHs",
    "URL": "postgres://user:pa55w0rd@db.internal:5432/main",
    "TOKEN": "ghx_16C7e42F292c6912E7710c838347Ae178B4a",
}


def rows(stage: Path, image: str, engine: str, rounds: int) -> Iterator[Ratio]:
    directory = stage / "secrets"
    directory.mkdir(exist_ok=True)
    for name, value in SECRETS.items():
        (directory / name).write_text(value)
    file = stage / "secrets.toml"
    file.write_text(f'[[secrets]]\nname = "bench"\ntasks = "*"\ndirectory = "{directory}"\n')
    with server(stage, "--engine", engine, "--config", str(file)) as running:
        masked = [word for name in SECRETS for word in ("--secret-env", f"{name}=bench/{name}")]
        for name, line in LINES.items():
            script = f"yes '{line}' | head -c {MEGABYTES}000000"
            run = [sys.executable, "-m", "fastlane_grpc.cli", "run", "-q", "-a", running.address]
            yield in_turn(
                f"{MEGABYTES} MB of {name} with three secrets, against none",
                "MB/s",
                GOAL,
                partial(megabytes_per_second, [*run, *masked, image, "--", "sh", "-c", script], MEGABYTES),
                partial(megabytes_per_second, [*run, image, "--", "sh", "-c", script], MEGABYTES),
                rounds=rounds,
            )
