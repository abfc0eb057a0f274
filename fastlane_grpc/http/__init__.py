"""The calls of the contract as JSON over HTTP, event streams, and the page: all that knows Starlette and uvicorn."""
