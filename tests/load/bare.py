"""The yardstick: FastAPI routes that do one Redis GET and nothing else, served as the API is. Argument: the port."""

import os
import sys

import uvicorn
from fastapi import FastAPI

from jobs import connect, connect_async

app = FastAPI()
redis = connect(os.environ["M3ESR_REDIS_URL"])
awaited = connect_async(os.environ["M3ESR_REDIS_URL"])


@app.get("/threaded/{name}")
def threaded(name: str) -> dict[str, str]:
    """As most write it: a plain function, which FastAPI runs in a thread."""
    return {"value": (redis.get(name) or b"").decode()}


@app.get("/awaited/{name}")
async def awaited_get(name: str) -> dict[str, str]:
    """On the event loop, without a thread."""
    return {"value": (await awaited.get(name) or b"").decode()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, server_header=False)
