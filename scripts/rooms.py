"""Write docs/pictures/rooms.svg: which room imports from which, as the code stands.

python -m scripts.rooms [--check]

Each arrow goes from a room down to one that it imports from; those that follow from others (a imports from b, b from c,
so a may import from c too) are left out. Imports count wherever they stand, at the top of a file or inside a function,
and so do the modules that strings name for a child process to import.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import sif_batch

REPOSITORY = Path(__file__).parents[1]
OUT = REPOSITORY / "docs" / "pictures" / "rooms.svg"
LINKED = ("pipelines", "jobs")  # folders that are seen from inside sif_batch too
NAMED = re.compile(r"sif_batch(?:\.[A-Za-z_]\w*)+(?::\w+)?")
NO_MODULE = {"sif_batch.config"}  # a key of click's context
WIDTH, ROW, BOX, HEIGHT, ASIDE = 900, 62, 104, 26, 0.05


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    if parts[0] in LINKED:
        parts = ("sif_batch", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for top in ("sif_batch", *LINKED) for file in sorted((REPOSITORY / top).rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def module_in(name: str) -> str | None:
    """The module of ours that a dotted name begins with."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def named_in(tree: ast.Module) -> Iterator[str]:
    """The `module` and `module:function` that strings name."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and NAMED.fullmatch(value) and value not in NO_MODULE:
            yield value


def imports(tree: ast.Module) -> Iterator[str]:
    """Every name that is imported, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses(name: str) -> set[str]:
    """The modules of ours that a module uses."""
    tree = TREES[name]
    found = {module_in(used) for used in imports(tree)} | {module_in(used.split(":")[0]) for used in named_in(tree)}
    return {module for module in found if module} - {name}


def room(module: str) -> str:
    """The folder that a module lies in, by its own name; `ground` and `jobs` for the files beside the rooms."""
    _, *inner = module.split(".")
    if inner[:1] == ["jobs"]:
        return inner[1] if inner[1:] and (REPOSITORY / "jobs" / inner[1]).is_dir() else "jobs"
    return inner[0] if inner and (REPOSITORY / "sif_batch" / inner[0]).is_dir() else "ground"


def stated_order() -> list[str]:
    """The rooms in the order that the docstring of sif_batch gives."""
    assert sif_batch.__doc__
    (listed,) = re.findall(r"before it: ([a-z_,\s]+)\.", sif_batch.__doc__)
    return re.findall(r"[a-z_]+", listed)


def room_imports() -> dict[str, set[str]]:
    """For each room those that it imports from."""
    found: dict[str, set[str]] = {name: set() for name in stated_order()}
    for module in set(FILES) - {"sif_batch"}:  # the package's own door looks everywhere
        found[room(module)] |= {room(used) for used in uses(module) - {"sif_batch"}} - {room(module)}
    return found


def levels(edges: dict[str, set[str]]) -> dict[str, int]:
    """How many rooms lie below each at most, one below the other. Needs `edges` without circles."""
    found: dict[str, int] = {}
    for name in stated_order():
        found[name] = max((found[below] + 1 for below in edges[name]), default=0)
    return found


def follows(edges: dict[str, set[str]], a: str, b: str) -> bool:
    """Whether an import of a from b follows from others."""
    ahead = [name for name in edges[a] if name != b]
    while ahead:
        name = ahead.pop()
        if b in edges[name]:
            return True
        ahead += edges[name]
    return False


def draw() -> str:
    """The picture, as SVG."""
    edges, order = room_imports(), stated_order()
    shown = {a: [b for b in order if b in edges[a] and not follows(edges, a, b)] for a in order}
    level = levels(edges)
    top = max(level.values())
    place: dict[str, tuple[float, float]] = {}
    for number in range(top + 1):
        row = [name for name in order if level[name] == number]
        row.sort(key=lambda name: sum(place[below][0] for below in shown[name]) / max(1, len(shown[name])))
        for i, name in enumerate(row):  # every second row stands aside, so that arrows pass between boxes
            x = WIDTH * (i + 0.5) / len(row) + (-1) ** number * WIDTH * ASIDE
            place[name] = x, ROW * (top - number) + HEIGHT
    lines = []
    for a, below in shown.items():
        for (x0, y0), (x1, y1) in ((place[a], place[b]) for b in below):
            lines.append(f'<path class="arrow" d="M{x0:.0f} {y0 + HEIGHT / 2:.0f} L{x1:.0f} {y1 - HEIGHT / 2:.0f}"/>')
    boxes = [
        f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" height="{HEIGHT}" rx="5"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}">{name}</text>'
        for name, (x, y) in place.items()
    ]
    style = (
        "rect{fill:#fff;stroke:#345}text{font:14px sans-serif;text-anchor:middle;fill:#123}"
        ".arrow{stroke:#345;stroke-width:1.3;marker-end:url(#tip)}"
    )
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * top + 2 * HEIGHT}">'
    arrow = f'<defs>{tip}<path d="M0 0 8 4 0 8z" fill="#345"/></marker></defs>'
    paper = '<rect width="100%" height="100%" style="stroke:none"/>'
    return "\n".join([head, f"<style>{style}</style>", arrow, paper, *lines, *boxes, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the picture is not the code's")
    if not parser.parse_args().check:
        OUT.write_text(draw(), encoding="utf-8")
    elif OUT.read_text(encoding="utf-8") != draw():
        sys.exit(f"{OUT} is not that of the code: run make docs")


if __name__ == "__main__":
    main()
