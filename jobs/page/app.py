"""The script that Streamlit runs for each visitor at each click. What it decides is in the modules beside it."""

import traceback

import streamlit as st

from sif_batch.errors import SifBatchError
from sif_batch.jobs.page.ask_page import look_page
from sif_batch.jobs.page.gallery import gallery
from sif_batch.jobs.page.html_text import about_usage, icon, read_asset, readable_error
from sif_batch.query.usage_log import summarise

KEPT = ("k", "where", "fold", "expand")  # widgets of the first page; Streamlit forgets what no widget shows


def main() -> None:
    st.set_page_config(page_title="Similar images", page_icon=icon(), layout="wide")
    st.html(f"<style>{read_asset('page.css')}</style>")
    pages = [
        st.Page(look_page, title="Look", icon=":material/image_search:", default=True),
        st.Page(map_page, title="Map", icon=":material/scatter_plot:", url_path="map"),
        st.Page(report_page, title="Report", icon=":material/description:", url_path="report"),
    ]
    if gallery().log:
        pages.append(st.Page(usage_page, title="Usage", icon=":material/bar_chart:", url_path="usage"))
    chosen = st.navigation(pages, position="hidden")  # Streamlit's own would cover a phone's screen
    with st.container(horizontal=True, gap="small", key="pages"):
        for page in pages:
            st.page_link(page, width="content")
    try:
        if say_what_changed():
            if chosen.url_path:  # not the first page
                keep_question()
            chosen.run()
    except SifBatchError as error:
        st.error(readable_error(error))
    except Exception:  # a defect: its trace is for whoever serves, not for visitors
        traceback.print_exc()
        st.error("Something went wrong here. The server's log says what.")


def say_what_changed() -> bool:
    """Tell where another release took the place of the one seen before. Returns whether there is one to ask."""
    try:
        release = gallery().current().release
    except SifBatchError as error:
        st.error(readable_error(error), icon=":material/link_off:")
        st.button("Look again", icon=":material/refresh:")
        return False
    before = st.session_state.get("release", release)
    st.session_state["release"] = release
    if before != release:
        st.info(f"Release {before[:12]} was replaced: this is {release[:12]} now.", icon=":material/update:")
    return True


def keep_question() -> None:
    """Hold what was asked last for the visitor's return to the first page."""
    for name in KEPT:
        if name in st.session_state:
            st.session_state[name] = st.session_state[name]
    if isinstance(st.session_state.get("about"), str):
        st.session_state["home"] = st.session_state["about"]


def map_page() -> None:
    show_run_page("map.html", "sif-batch map ROOT makes one.")


def report_page() -> None:
    show_run_page("report.html", "sif-batch report ROOT makes one.")


def show_run_page(name: str, remedy: str) -> None:
    release = gallery().current().release
    if gallery().run_page(release, name) is None:
        st.info(f"Beside release {release[:12]} there is none; {remedy}")
    else:
        st.iframe(f"/runs/{release[:16]}/{name}?ask=1", height=820)


def usage_page() -> None:
    st.html(about_usage(summarise(str(gallery().settings.feedback_log))))


main()
