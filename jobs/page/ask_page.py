"""The page that asks: an image, the images found, marks.

The address holds the question (?key=...&k=...&where=...): it can be kept, sent and gone back to. Uploads and marks
are the session's.
"""

import base64
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import streamlit as st

from sif_batch.errors import SifBatchError
from sif_batch.evaluation.judgements import keep_judgements
from sif_batch.jobs.page.answers import Answer, Question, answer, digest_of, random_key
from sif_batch.jobs.page.controls import ask, show_controls
from sif_batch.jobs.page.gallery import Gallery, gallery
from sif_batch.jobs.page.html_text import about_card, about_facts, describe_key, read_asset, readable_error
from sif_batch.jobs.page.thumbnails import SIDES
from sif_batch.query.index import Index

MARKS = ("right", "wrong")


def look_page() -> None:
    shared = gallery()
    index = shared.current()
    st.html(about_facts(shared.facts(index)))
    if not len(index):
        st.info("This release holds no image.")
        return
    show_controls(shared, index)
    for refused in st.session_state.pop("refused", ()):
        st.error(refused)
    question = asked(index)
    try:
        found = answered(shared, index, question)
    except SifBatchError as error:
        st.error(readable_error(error))
        return
    show_marks(shared, question)
    show_answer(index, question, found)


def asked(index: Index) -> Question:
    """What the address and the session say; by default, some image."""
    key, uploads = st.query_params.get("key"), st.session_state["uploads"]
    if key is None and not uploads:
        key = st.session_state.setdefault("home", random_key(index))
    about = key or uploads
    if st.session_state.get("about") != about:  # by a click, by the address, or by going back
        st.session_state["about"] = about
        forget_marks()
    marks = st.session_state["asked_marks"]
    right, wrong = (tuple(name for name, mark in marks.items() if mark == kind) for kind in MARKS)
    options = {name: st.session_state[name] for name in ("k", "where", "fold", "expand")}
    return Question(key=key, uploads=() if key else uploads, right=right, wrong=wrong, **options)


def answered(shared: Gallery, index: Index, question: Question) -> Answer:
    """The answer: the last one again where nothing else is asked."""
    last = st.session_state.get("answered")
    if last is None or last[0] != (index.release, question):
        found = answer(index, question)
        last = (index.release, question), found, note_question(shared, index, question, found)
        st.session_state["answered"] = last  # as one, for a script that is broken off here
    return last[1]  # type: ignore[no-any-return]


def note_question(shared: Gallery, index: Index, question: Question, found: Answer) -> str | None:
    """Note it in the usage log, if there is one; returns its id there."""
    if shared.log is None:
        return None
    with telling_of_log():
        return shared.log.asked(
            release=index.release,
            by=question.by,
            k=question.k,
            hits=[card.hit.key for card in found.cards],
            seconds=found.seconds,
            key=question.key,
            where=question.where or None,
            right=len(question.right),
            wrong=len(question.wrong),
            expand=question.expand,
        )
    return None


@contextlib.contextmanager
def telling_of_log() -> Iterator[None]:
    """Go on where the usage log cannot be written: visitors are told that, whoever serves is told why."""
    try:
        yield
    except SifBatchError as error:
        print(f"sif-batch: {error}; {error.remedy}", file=sys.stderr)
        st.warning("The log of questions and clicks cannot be written just now; the page goes on without.")


def show_marks(shared: Gallery, question: Question) -> None:
    marks = st.session_state["marks"]
    right, wrong = (list(marks.values()).count(kind) for kind in MARKS)
    unasked = marks != st.session_state["asked_marks"]
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="marks_bar"):
        st.button("Ask again", type="primary", icon=":material/refresh:", disabled=not unasked, on_click=ask_again)
        if shared.settings.judgements:
            st.button("Keep marks", icon=":material/save:", disabled=not marks, on_click=keep_marks, args=(question,))
        if marks:
            st.button("Forget", on_click=forget_marks)
        st.caption(f"{right} right, {wrong} wrong" if marks else "Mark ✓ right or ✕ wrong")


def show_answer(index: Index, question: Question, found: Answer) -> None:
    release, (small, large) = index.release[:16], SIDES
    if question.key:
        title, lines = describe_key(index, question.key, found.copies)
        pictures = [f"thumbnails/{release}/{index.row_of(question.key)}/{large}"]
    else:
        title, lines = ("Your image" if len(question.uploads) == 1 else f"Your {len(question.uploads)} images"), []
        encoded = [base64.b64encode(data).decode() for data in st.session_state["pictures"][:4]]
        pictures = [f"data:image/webp;base64,{data}" for data in encoded]
    cards = [
        about_card(card) | {"rank": rank, "picture": f"thumbnails/{release}/{card.row}/{small}"}
        for rank, card in enumerate(found.cards, 1)
    ]
    data: dict[str, Any] = {
        "asked": digest_of(repr(question).encode()),
        "query": {"title": title, "lines": lines, "pictures": pictures},
        "cards": cards,
        "marks": st.session_state["marks"],
        "none": "" if cards else "No image qualifies.",
    }
    grid = st.components.v2.component(
        "grid",
        html='<div class="look"></div>',
        css=read_asset("grid.css"),
        js=read_asset("grid.js"),
    )
    grid(key="grid", data=data, on_ask_change=ask_card, on_mark_change=mark_card)


def ask_card() -> None:
    """An image was clicked."""
    if clicked := st.session_state["grid"].get("ask"):
        log, (_, _, logged) = gallery().log, st.session_state["answered"]
        if log and logged:
            with telling_of_log():
                log.clicked(logged, clicked["key"], clicked["rank"])
        ask(clicked["key"])


def mark_card() -> None:
    if clicked := st.session_state["grid"].get("mark"):
        others = {key: mark for key, mark in st.session_state["marks"].items() if key != clicked["key"]}
        st.session_state["marks"] = others | ({clicked["key"]: clicked["mark"]} if clicked["mark"] else {})


def ask_again() -> None:
    st.session_state["asked_marks"] = dict(st.session_state["marks"])


def forget_marks() -> None:
    st.session_state["marks"], st.session_state["asked_marks"] = {}, {}


def keep_marks(question: Question) -> None:
    """Keep the marks as judgements; an upload is named by what it holds."""
    name = question.key or f"upload-{digest_of(b''.join(question.uploads))}"
    marks = st.session_state["marks"]
    right, wrong = ([key for key, mark in marks.items() if mark == kind] for kind in MARKS)
    try:
        keep_judgements(str(gallery().settings.judgements), name, right, wrong)
        st.toast(f"{len(marks)} marks are kept.", icon=":material/check:")
    except SifBatchError as error:
        st.session_state["refused"] = [readable_error(error)]
