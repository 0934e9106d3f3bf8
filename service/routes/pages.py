"""The pages: the playground at / and the API reference at /docs, with all they need."""

from importlib import resources

from fastapi import APIRouter, Response

from jobs import JobError

# Name -> content type. Only what is listed is served.
_FILES = {
    "index.html": "text/html; charset=utf-8",
    "docs.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "result.js": "text/javascript; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
def playground() -> Response:
    """The page to try the service on."""
    return _page("index.html")


@router.get("/docs")
def reference() -> Response:
    """The API reference, drawn from /openapi.json by a script of ours: no content network is asked."""
    return _page("docs.html")


@router.get("/web/{name}")
def web_file(name: str) -> Response:
    """A script, a style sheet or the icon."""
    return _page(name)


def _page(name: str) -> Response:
    if name not in _FILES:
        raise JobError("not-found", f"There is no file '{name}'.")
    data = resources.files("service").joinpath("web", name).read_bytes()
    return Response(data, headers={"Content-Type": _FILES[name], "Cache-Control": "no-cache"})
