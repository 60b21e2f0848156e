"""What is served beside the page: thumbnails, map, report. A visitor names a release and a row, never a path."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sif_batch.jobs.page.gallery import PAGES, gallery
from sif_batch.jobs.page.thumbnails import SIDES

SANDBOX = "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox"  # of pages: nothing of the visitor's
ENOUGH = 16  # characters of a release's id


def get_thumbnail(request: Request) -> Response:
    release, row, side = (request.path_params[name] for name in ("release", "row", "side"))
    found = gallery().picture(release, row, side) if side in SIDES and len(release) >= ENOUGH else None
    if found is None:
        return Response("no such image\n", 404)
    caching = "private, max-age=604800, immutable" if found.lasting else "no-store"
    return Response(found.data, media_type=found.mime, headers={"Cache-Control": caching} | SAFE)


def get_run_page(request: Request) -> Response:
    release, name = gallery().current().release, request.path_params["name"]
    known = name in PAGES and release.startswith(request.path_params["release"])
    page = gallery().run_page(release, name) if known else None
    if page is None:
        return Response("no such page\n", 404)
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": SANDBOX} | SAFE)


SAFE = {"X-Content-Type-Options": "nosniff"}
ROUTES = [
    Route("/thumbnails/{release:str}/{row:int}/{side:int}", get_thumbnail),
    Route("/runs/{release:str}/{name:str}", get_run_page),
]
