"""Filters: conditions on the columns of a release, from text to a pyarrow expression.

    folder = 'pizza' and (width >= 600 or title like 'sea%') and not licence in ('a', 'b') and taken is not null

As in SQL: a comparison with a missing value is neither true nor false. Nothing in the text is ever run as code.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from sif_batch.errors import SifBatchError
from sif_batch.query.comparisons import Literal, among, compare, is_text

SYNTAX = "write it as \"folder = 'cats' and width >= 600\", with = != < <= > >= in like is, and or not ( )"
MOST_CHARACTERS, DEEPEST = 10_000, 50
TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|`(?P<quoted>(?:[^`]|``)+)`|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<word>[^\W\d][\w.:-]*)|(?P<sign><=|>=|!=|<>|==|[=<>(),]))""",
    re.VERBOSE,
)
KEYWORDS = {"and", "or", "not", "in", "like", "is", "null", "true", "false"}
SIGNS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=")


def parse_filter(text: str, schema: pa.Schema) -> pc.Expression:
    """The filter as an expression over these columns. Raises SifBatchError where it cannot be one."""
    if len(text) > MOST_CHARACTERS:
        raise SifBatchError(f"a filter of {len(text)} characters, {MOST_CHARACTERS} are the most", remedy=SYNTAX)
    parser = _Parser(text, schema)
    found = parser.either()
    if parser.kind:
        raise parser.wrong("and or or")
    return found


def qualifying(table: pa.Table, condition: pc.Expression) -> pa.Array:
    """Whether each row qualifies: (n,) bool. Raises SifBatchError where the columns do not have it."""
    try:
        found = ds.InMemoryDataset(table).scanner(columns={"": condition}).to_table().column(0)
        return pc.fill_null(found, False).combine_chunks()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise SifBatchError(
            f"the filter cannot be used: {error}",
            remedy=f"it must be a condition on: {', '.join(names_of(table.schema))}",
        ) from error


def names_of(schema: pa.Schema) -> list[str]:
    """The columns that a person may filter by; by place an image is known by its key, which stays when uris change."""
    return [field.name for field in schema if field.name not in ("hash", "uri", "sha256")]


class _Parser:
    """Recursive descent over the tokens. kind, value: of the next one; kind is empty behind the last."""

    def __init__(self, text: str, schema: pa.Schema):
        self.text, self.schema, self.at, self.depth = text, schema, 0, 0
        self.advance()

    def advance(self) -> None:
        self.start = self.at
        found = TOKEN.match(self.text, self.at)
        if found is None:
            if self.text[self.at :].strip():
                raise self.wrong("a column, a value or a sign")
            self.kind, self.value = "", ""
            return
        self.at, self.kind = found.end(), str(found.lastgroup)
        self.value = found[self.kind]
        if self.kind == "word" and self.value.lower() in KEYWORDS:
            self.kind, self.value = "keyword", self.value.lower()

    def wrong(self, expected: str) -> SifBatchError:
        there = self.text[self.start :].strip()
        where = f"at {there[:30]!r}" if there else "at its end"
        return SifBatchError(
            f"the filter {self.text[:200]!r} breaks off {where}: {expected} was expected", remedy=SYNTAX
        )

    def takes(self, value: str) -> bool:
        """Whether the next token is this keyword or sign; passed over if so."""
        if self.kind in ("keyword", "sign") and self.value == value:
            self.advance()
            return True
        return False

    def needs(self, value: str) -> None:
        if not self.takes(value):
            raise self.wrong(value)

    def either(self) -> pc.Expression:
        found = self.both()
        while self.takes("or"):
            found = found | self.both()
        return found

    def both(self) -> pc.Expression:
        found = self.one()
        while self.takes("and"):
            found = found & self.one()
        return found

    def one(self) -> pc.Expression:
        self.depth += 1
        if self.depth > DEEPEST:
            raise SifBatchError(f"a filter more than {DEEPEST} levels deep", remedy=SYNTAX)
        try:
            if self.takes("not"):
                return ~self.one()
            if self.takes("("):
                found = self.either()
                self.needs(")")
                return found
            return self.comparison()
        finally:
            self.depth -= 1

    def comparison(self) -> pc.Expression:
        name = self.column()
        field, type_ = pc.field(name), self.schema.field(name).type
        if self.takes("is"):
            negated = self.takes("not")
            self.needs("null")
            return field.is_valid() if negated else field.is_null()
        negated = self.takes("not")
        if self.takes("in"):
            found = self.among(name, type_)
        elif self.takes("like"):
            found = pc.match_like(field, self.pattern(name, type_))
        elif self.kind == "sign" and self.value in SIGNS and not negated:
            sign = self.value
            self.advance()
            found = compare(name, type_, sign, self.literal())
        else:
            raise self.wrong("in or like" if negated else "= != < <= > >= in like is")
        return ~found if negated else found

    def column(self) -> str:
        if self.kind not in ("word", "quoted"):
            raise self.wrong("a column")
        name = self.value.replace("``", "`")
        if name not in names_of(self.schema):
            raise SifBatchError(
                f"the release has no column {name!r} to filter by", remedy=f"it has: {', '.join(names_of(self.schema))}"
            )
        self.advance()
        return name

    def among(self, name: str, type_: pa.DataType) -> pc.Expression:
        self.needs("(")
        values = [self.literal()]
        while self.takes(","):
            values.append(self.literal())
        self.needs(")")
        return among(name, type_, values)

    def pattern(self, name: str, type_: pa.DataType) -> str:
        if not is_text(type_):
            raise SifBatchError(f"{name} is {type_}: like goes with text alone", remedy="compare it with < = >")
        if self.kind != "text":
            raise self.wrong("a pattern such as 'sea%'")
        return self.literal().text.replace("\\", "\\\\")  # in SQL it escapes nothing, in Arrow it does

    def literal(self) -> Literal:
        if self.kind == "text":
            found = Literal("text", self.value[1:-1].replace("''", "'"))
        elif self.kind == "number":
            found = Literal("number", self.value)
        elif self.kind == "keyword" and self.value in ("true", "false"):
            found = Literal("logical", self.value)
        else:
            raise self.wrong("a value ('text' in quotes, a number, true or false)")
        self.advance()
        return found
