"""Pages: one self-contained HTML file each, from the templates beside this module. Needs the extra `report`."""

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

from PIL import Image

import sif_batch
from sif_batch.errors import SifBatchError
from sif_batch.jobs.wording import format_seconds
from sif_batch.query.index import Index
from sif_batch.sources.originals import find_thumbnail

SIDE = 112  # pixels of a thumbnail
NEEDS = {"jinja2": "Jinja2", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def missing_extra() -> str | None:
    """What is missing to make pages, as a sentence; None: nothing."""
    missing = [name for module, name in NEEDS.items() if importlib.util.find_spec(module) is None]
    return f"pages need {', '.join(missing)}" if missing else None


def check_extra() -> None:
    """Raise SifBatchError where what makes pages is not installed."""
    if missing := missing_extra():
        raise SifBatchError(missing, remedy="install 'sif-batch[report]'")


def render(template: str, **values: Any) -> bytes:
    """A page of templates/, UTF-8."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"seconds": format_duration, "bytes": format_bytes, "data_url": data_url}
    return environment.get_template(template).render(version=sif_batch.__version__, **values).encode()


def format_duration(seconds: float) -> str:
    return format_seconds(seconds) if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def format_bytes(size: float) -> str:
    """12 B, 3.4 kB, 5.6 MB, 7.8 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def picture_of(index: Index, row: int, kind: str = "", caption: str = "") -> dict[str, Any]:
    """What the templates show of a row: its thumbnail, its key, and a caption, by default the key's end."""
    key = index.column("key")[row].as_py()
    image = find_thumbnail(index.column("uri")[row].as_py(), SIDE)
    return {"image": image, "caption": caption or key.partition("/")[2], "title": key, "kind": kind}


def data_url(image: Image.Image, quality: int = 72) -> str:
    """The image inside the page, as WebP."""
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()
