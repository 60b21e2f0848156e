"""Serve the web page of a release. Needs the extra `page`."""

import contextlib
import gc
import importlib.util
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from sif_batch.errors import SifBatchError
from sif_batch.jobs.page.answers import MOST_UPLOADED
from sif_batch.jobs.page.gallery import PageSettings, open_gallery

CONFIG = {
    "browser.gatherUsageStats": False,  # nothing is sent to Streamlit's makers
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "client.toolbarMode": "minimal",
    "global.developmentMode": False,
    "logger.hideWelcomeMessage": True,
    "runner.fastReruns": False,  # see docs/decisions.md, as for the next
    "runner.postScriptGC": False,  # a whole collection after each click is most of its work
    "server.fileWatcherType": "none",
    "server.headless": True,
    "server.maxUploadSize": MOST_UPLOADED // 1_000_000,
    "server.runOnSave": False,
    "theme.base": "light",
    "theme.primaryColor": "#2563eb",
    "theme.textColor": "#1d2129",
}
BINDS = "streamlit.web.server.starlette.starlette_server"
REMEDY = "give another --port or --host"


def check_extra() -> None:
    """Raise SifBatchError where Streamlit is not installed."""
    if importlib.util.find_spec("streamlit") is None:
        raise SifBatchError("the page needs Streamlit", remedy="install 'sif-batch[page]'")


def serve(settings: PageSettings, host: str, port: int, ready: Callable[[str, str, int], None]) -> None:
    """Serve until a signal ends the process. ready is called with the page's address, the release and its rows, once
    the port accepts connections.

    port: 0: any free one. Raises SifBatchError.
    """
    check_extra()
    index = open_gallery(settings).current()
    if port:
        check_port(host, port)

    import streamlit as st

    from sif_batch.jobs.page.routes import ROUTES

    announced = False

    @contextlib.asynccontextmanager
    async def announce(app: st.App) -> AsyncIterator[None]:  # Streamlit listens before it starts its app
        nonlocal announced
        gc.freeze()  # what stays until the end need not be looked through again and again
        announced, shown = True, f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{st.get_option('server.port')}", index.release, len(index))
        yield

    logging.getLogger(BINDS).addFilter(lambda record: False)  # its line about a port, beside ours
    app = st.App(Path(__file__).with_name("app.py"), routes=ROUTES, lifespan=announce)
    try:
        app.run(config=CONFIG | {"server.address": host, "server.port": port})
    except SystemExit:
        if announced:
            raise
        check_port(host, port)
        raise SifBatchError(f"{host}:{port}: cannot listen there", remedy=REMEDY) from None


def check_port(host: str, port: int) -> None:
    """Raise SifBatchError where nothing can listen on a port."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise SifBatchError(f"{host}:{port}: cannot listen there ({error.strerror or error})", remedy=REMEDY) from error
