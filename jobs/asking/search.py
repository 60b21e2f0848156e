"""Ask a release from the command line: with images, keys and marks; and what a log of that says."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from sif_batch.config import Frozen
from sif_batch.errors import SifBatchError
from sif_batch.evaluation.judgements import keep_judgements
from sif_batch.query.hits import Hit, json_value
from sif_batch.query.index import Index
from sif_batch.query.usage_log import UsageLog


class Asking(Frozen):
    """A question as `sif-batch search` takes it; see `Index.search`. judgements: a folder to keep the marks in."""

    images: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    k: int = 10
    together: bool = False
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    expand: int = 0
    where: str | None = None
    judgements: str | None = None
    feedback_log: str | None = None

    @property
    def by(self) -> str:
        kind = "image" if self.images else "key"
        return "marks" if not (self.images or self.keys) else f"{kind}s" if self.together else kind


@dataclass(frozen=True)
class Answer:
    """query: as it was asked; picture: where its image is, None for none."""

    query: str
    picture: str | None
    hits: list[Hit]


def ask(place: str, asking: Asking) -> tuple[str, list[Answer]]:
    """The release's id, and the answers: one for each image or key, or one to all of them together and to marks."""
    log = UsageLog(asking.feedback_log) if asking.feedback_log else None
    index = Index.open(place)
    own = {name: _own_keys(index, getattr(asking, name)) for name in ("keys", "right", "wrong")}
    asking = asking.model_copy(update=own)
    asked = list(asking.images or asking.keys)
    marked = bool(asking.right or asking.wrong)
    one = asking.together or (marked and len(asked) < 2)
    what: dict[str, Any] = {"images": list(asking.images)} if asking.images else {"keys": asked} if asked else {}
    began = time.perf_counter()
    found = index.search(
        **what,
        k=asking.k,
        together=one,
        right=asking.right,
        wrong=asking.wrong,
        expand=asking.expand,
        where=asking.where,
    )
    seconds = time.perf_counter() - began
    pictures = asked if asking.images else [_uri_of(index, key) for key in asked]
    if one:
        answers = [Answer(" + ".join(asked) or "marks", pictures[0] if pictures else None, found)]
    else:
        answers = [Answer(*answer) for answer in zip(asked, pictures, found, strict=True)]
    if log:
        for answer in answers:
            _note(log, index, asking, answer, seconds / len(answers))
    if asking.judgements:
        keep_judgements(asking.judgements, _judged_query(asking), asking.right, asking.wrong)
    return index.release, answers


def _judged_query(asking: Asking) -> str:
    """What the marks were made for: an image of its own, else the first that was marked right."""
    asked = asking.images or asking.keys or asking.right
    if not (asking.right or asking.wrong):
        raise SifBatchError("no marks to keep", remedy="mark hits by --right KEY and --wrong KEY")
    return asked[0]


def _own_keys(index: Index, names: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of the release that these names stand for."""
    return tuple(index.roster.take(index.rows_of(names), ["key"])["key"].to_pylist()) if names else ()


def _uri_of(index: Index, key: str) -> str:
    return str(index.roster.take(index.rows_of([key]), ["uri"])["uri"][0])


def _note(log: UsageLog, index: Index, asking: Asking, answer: Answer, seconds: float) -> None:
    key = answer.query if asking.by == "key" else None
    log.asked(
        release=index.release,
        by=asking.by,
        k=asking.k,
        hits=[hit.key for hit in answer.hits],
        seconds=seconds,
        key=key,
        where=asking.where,
        right=len(asking.right),
        wrong=len(asking.wrong),
        expand=asking.expand,
    )


def answers_json(release: str, answers: list[Answer]) -> dict[str, Any]:
    queries = [{"query": answer.query, "hits": [_hit_json(hit) for hit in answer.hits]} for answer in answers]
    return {"release": release, "queries": queries}


def _hit_json(hit: Hit) -> dict[str, Any]:
    return asdict(hit) | {"columns": {name: json_value(value) for name, value in hit.columns.items()}}
