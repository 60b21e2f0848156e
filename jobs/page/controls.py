"""What a visitor asks with: a random image, uploads, a filter, options."""

import contextlib
from typing import Any

import streamlit as st

from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.jobs.page.answers import MOST, UPLOADS, K, check_upload, random_key, where_between, where_values
from sif_batch.jobs.page.gallery import Gallery, gallery
from sif_batch.jobs.page.html_text import readable_error
from sif_batch.jobs.page.thumbnails import SIDES, webp_bytes
from sif_batch.query.filters import names_of, parse_filter
from sif_batch.query.index import Index


def show_controls(shared: Gallery, index: Index) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="controls"):
        st.button("Random", icon=":material/casino:", on_click=ask_random)
        with st.popover("Upload", icon=":material/upload:"):
            show_uploader()
        filtered = "primary" if st.session_state.get("where") or "where" in st.query_params else "secondary"
        with st.popover("Filter", icon=":material/filter_alt:", type=filtered):
            show_filter(shared, index)
        with st.popover("Options", icon=":material/tune:"):
            show_options()


def show_uploader() -> None:
    files = st.file_uploader(
        "One image to ask with, or several that are asked with together",
        accept_multiple_files=True,
        key=f"uploader_{st.session_state.setdefault('uploader', 0)}",
    )
    st.session_state.setdefault("uploads", ())
    names = [file.file_id for file in files]
    if names != st.session_state.get("uploaded", []):
        st.session_state["uploaded"] = names
        take_uploads(files)


def take_uploads(files: list[Any]) -> None:
    """Ask with the uploaded images that can be used; say what is wrong with the others."""
    uploads, pictures, refused = [], [], []
    for file in files[:UPLOADS]:
        data = file.getvalue()
        try:
            pictures.append(webp_bytes(check_upload(data, SIDES[1])))
            uploads.append(data)
        except (ImageError, SifBatchError) as error:
            refused.append(f"{readable_error(error, file.name)}")
    if len(files) > UPLOADS:
        refused.append(f"Only the first {UPLOADS} images are asked with.")
    st.session_state["refused"] = refused
    if uploads or not files:
        st.session_state["uploads"], st.session_state["pictures"] = tuple(uploads), pictures
    if uploads and "key" in st.query_params:
        del st.query_params["key"]


def show_filter(shared: Gallery, index: Index) -> None:
    names = names_of(index.roster.schema)
    st.text_input(
        "Only images where",
        key="where",
        bind="query-params",
        placeholder="folder = 'pizza' and width >= 300",
        help=f"Columns: {', '.join(names)}. Operators: = != < <= > >= in (..) like 'a%' is null, and or not.",
    )
    try:
        parse_filter(st.session_state["where"] or "key is not null", index.roster.schema)
    except SifBatchError as error:  # here too, where it is not hidden by what is open
        st.caption(f":red[{readable_error(error)}]")
    column = st.selectbox("or choose by column", names, index=None, placeholder="Column")
    if column is None:
        return
    choices = shared.choices(index, column)
    if choices.values:
        picked = st.multiselect("Values", choices.values)
        condition = where_values(column, picked) if picked else ""
    elif choices.low < choices.high:
        low, high = st.slider("From, to", choices.low, choices.high, (choices.low, choices.high))
        condition = where_between(column, low, high)
    else:
        st.caption(f"It is {choices.low} everywhere.")
        return
    st.button("Use", disabled=not condition, on_click=st.session_state.update, args=({"where": condition},))


def show_options() -> None:
    st.number_input(f"Images to show, 1 to {MOST}", value=K, step=1, key="k", bind="query-params")
    st.toggle("Show exact copies as one", value=True, key="fold", bind="query-params")
    st.number_input(
        "Widen by so many nearest",
        value=0,
        step=1,
        key="expand",
        bind="query-params",
        help="Ask again with the average of the image and its nearest.",
    )


def ask_random() -> None:
    with contextlib.suppress(SifBatchError):  # the page tells it
        ask(random_key(gallery().current()))


def ask(key: str) -> None:
    """Ask with an image of the release; the uploader is empty again."""
    st.session_state["uploads"], st.session_state["uploaded"] = (), []
    st.session_state["uploader"] += 1
    st.query_params["key"] = key
