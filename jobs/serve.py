"""Serve the web page of a release. Needs the extra `page`."""

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path

from jobs.page.asking import MOST_UPLOADED
from jobs.page.gallery import PageSettings
from jobs.page.serving import open_gallery
from sif_batch.config import SifBatchError

CONFIG = {
    "browser.gatherUsageStats": False,  # nothing is sent to Streamlit's makers
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "client.toolbarMode": "minimal",
    "global.developmentMode": False,
    "logger.hideWelcomeMessage": True,
    "runner.postScriptGC": False,  # a whole collection after each click is most of its work, see docs/decisions.md
    "server.fileWatcherType": "none",
    "server.headless": True,
    "server.maxUploadSize": MOST_UPLOADED // 1_000_000,
    "server.runOnSave": False,
    "theme.base": "light",
    "theme.primaryColor": "#2563eb",
    "theme.textColor": "#1d2129",
}


def check_extra() -> None:
    """Raise SifBatchError where Streamlit is not installed."""
    if importlib.util.find_spec("streamlit") is None:
        raise SifBatchError("the page needs Streamlit", remedy="install 'sif-batch[page]'")


def serve(settings: PageSettings, host: str, port: int, ready: Callable[[str, str, int], None]) -> None:
    """Serve until a signal ends the process. ready is called before, with the page's address, the release and its rows.

    port: 0: any free one. Raises SifBatchError.
    """
    check_extra()
    index = open_gallery(settings).current()
    port = check_port(host, port)

    import streamlit as st

    from jobs.page.routes import ROUTES

    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{port}", index.release, len(index))
    app = st.App(Path(__file__).parent / "page" / "app.py", routes=ROUTES)
    app.run(config=CONFIG | {"server.address": host, "server.port": port})


def check_port(host: str, port: int) -> int:
    """The port, for 0 a free one. Raises SifBatchError where nothing can listen on it."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise SifBatchError(
            f"{host}:{port}: cannot listen there ({error.strerror or error})", remedy="give another --port or --host"
        ) from error
