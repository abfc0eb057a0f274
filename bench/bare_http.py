"""What an HTTP call is measured against: a Starlette application under uvicorn that reads and writes JSON."""

import socket
from contextlib import closing

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def empty(request: Request) -> JSONResponse:
    await request.json()
    return JSONResponse({})


def main() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        print(listener.getsockname()[1], flush=True)
        app = Starlette(routes=[Route("/tasks/{task_id}", empty, methods=["POST"])])
        config = uvicorn.Config(app, http="httptools", loop="uvloop", log_level="error", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
