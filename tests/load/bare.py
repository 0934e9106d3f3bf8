"""The yardstick of status polls: a FastAPI app whose one route does one Redis GET, and nothing else."""

import os

import uvicorn
from fastapi import FastAPI

from jobs import connect

app = FastAPI()
redis = connect(os.environ["M3ESR_REDIS_URL"])


@app.get("/get/{name}")
def get(name: str) -> dict[str, str]:
    """The value under `name`."""
    return {"value": (redis.get(name) or b"").decode()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["M3ESR_PORT"]), log_config=None, access_log=False)
