import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import ENCODER, checked

from sif_batch.config import IndexSettings
from sif_batch.errors import SifBatchError
from sif_batch.index.quantizer_spec import FLAT_AT_LEAST, FLAT_BELOW, QuantizerSpec, choose_family, choose_spec

AUTO, FLAT, IVF = (IndexSettings.model_validate({"family": family}) for family in ("auto", "flat", "ivf-pq"))
FAMILIES = ["flat", "ivf-flat", "ivf-pq", "ivf-rabitq", "hnsw"]


def test_the_family_is_exact_below_the_line_unless_asked_otherwise() -> None:
    assert choose_family(AUTO, FLAT_BELOW - 1, 1280, None) == "flat"
    assert choose_family(AUTO, FLAT_BELOW, 1280, None) == "ivf-pq"
    assert choose_family(FLAT, 10**7, 1280, "ivf-pq") == "flat"
    assert choose_family(IVF, 100, 1280, "flat") == "ivf-pq"


@pytest.mark.parametrize(
    ("max_query_ms", "dimension", "rows"),
    [(0.512, 1280, 2400), (0.512, 512, 6000), (5, 512, FLAT_BELOW), (0.01, 2048, FLAT_AT_LEAST)],
)
def test_an_index_is_exact_for_no_more_rows_than_a_query_has_time_for(
    max_query_ms: float, dimension: int, rows: int
) -> None:
    hurried = IndexSettings(max_query_ms=max_query_ms)
    assert choose_family(hurried, rows - 1, dimension, None) == "flat"
    assert choose_family(hurried, rows, dimension, "flat") == "ivf-pq"
    assert choose_family(hurried, rows - 1, dimension, "ivf-pq") == "ivf-pq"
    assert choose_family(FLAT.model_copy(update={"max_query_ms": max_query_ms}), rows, dimension, None) == "flat"


def test_near_the_line_the_family_in_use_stays() -> None:
    sizes = [9_000, 10_500, 9_500, 8_000, 7_999, 9_999, 10_000]
    family, seen = None, []
    for size in sizes:
        family = choose_family(AUTO, size, 1280, family)
        seen.append(family)
    assert seen == ["flat", "ivf-pq", "ivf-pq", "ivf-pq", "flat", "flat", "ivf-pq"]


@checked
@given(st.integers(69, 5_000_000), st.sampled_from([48, 512, 768, 1280]))
def test_the_shape_fits_the_rows_there_are(rows: int, dimension: int) -> None:
    spec = choose_spec(IVF, "ivf-pq", ENCODER, dimension, rows)
    trainable = rows * 15 // 16
    assert 1 <= spec.cells <= 1.5 * rows**0.5 and spec.cells & (spec.cells - 1) == 0
    assert spec.cells * 39 <= trainable  # faiss warns below 39 training rows a centroid
    assert spec.row_dimension == 0 and spec.bytes_per_row == spec.code_bytes + dimension + 4
    assert 4 <= spec.reduced <= min(256, dimension) and spec.reduced % 4 == 0
    assert spec.code_bytes == -(-spec.reduced // 4 // 2)
    assert spec.rows == "int8"


@pytest.mark.parametrize("rows", [1, 10, 68])
def test_too_few_rows_to_train_are_an_error(rows: int) -> None:
    with pytest.raises(SifBatchError, match=f"needs at least 69 usable images, there are {rows}") as raised:
        choose_spec(IVF, "ivf-pq", ENCODER, 48, rows)
    assert "--family" in raised.value.remedy
    assert choose_spec(IVF, "ivf-pq", ENCODER, 48, 69).cells == 1


@checked
@given(st.sampled_from(FAMILIES), st.integers(69, 10**7), st.sampled_from([48, 512, 1280]), st.integers(1, 6000))
def test_a_shape_keeps_to_the_bytes_or_says_how_many_it_needs(
    family: str, rows: int, dimension: int, limit: int
) -> None:
    settings = IndexSettings.model_validate({"family": family, "max_bytes_per_row": limit})
    rows = max(rows, 274)  # of which 256 can be trained on
    try:
        spec = choose_spec(settings, family, ENCODER, dimension, rows)
    except SifBatchError as error:
        needs = int(error.remedy.split()[1].rstrip(","))
        assert needs > limit and str(limit) in str(error)
        enough = settings.model_copy(update={"max_bytes_per_row": needs})
        assert choose_spec(enough, family, ENCODER, dimension, rows).bytes_per_row <= needs
        return
    assert spec.bytes_per_row <= limit
    assert 0 <= spec.row_dimension < dimension and spec.reduced <= dimension
    if family == "ivf-pq":
        assert spec.reduced % spec.pieces == 0 and spec.code_bytes == -(-spec.pieces * spec.bits // 8)
        assert sorted(spec.coded.tolist()) == list(range(spec.reduced))


def test_kept_rows_are_cut_before_they_are_left_out_and_codes_shrink_last() -> None:
    def shape(limit: int) -> tuple[str, int, int, int]:
        settings = IndexSettings(family="ivf-pq", max_bytes_per_row=limit)
        spec = choose_spec(settings, "ivf-pq", ENCODER, 512, 100_000)
        return spec.rows, spec.row_dimension, spec.code_bytes, spec.bits

    assert shape(548) == ("int8", 0, 32, 4)
    assert shape(547) == ("int8", 508, 32, 4)
    assert shape(100) == ("int8", 64, 32, 4)
    assert shape(60) == ("none", 0, 32, 4)
    assert shape(31) == ("none", 0, 28, 8)
    assert shape(8) == ("none", 0, 8, 8)


def test_components_are_dealt_back_and_forth_and_other_families_keep_their_order() -> None:
    spec = choose_spec(IndexSettings(family="ivf-pq"), "ivf-pq", ENCODER, 16, 100_000)
    assert spec.coded.reshape(4, 4).tolist() == [[0, 7, 8, 15], [1, 6, 9, 14], [2, 5, 10, 13], [3, 4, 11, 12]]
    other = choose_spec(IndexSettings(family="ivf-rabitq"), "ivf-rabitq", ENCODER, 16, 100_000)
    assert other.coded.tolist() == list(range(16))
    older = QuantizerSpec.model_validate({k: v for k, v in spec.model_dump().items() if k != "pieces"})
    assert older.coded.tolist() == list(range(16))
    assert spec.model_dump()["pieces"] == 4 and "pieces" not in {**older.model_dump(), **other.model_dump()}


def test_the_fewest_bytes_that_are_told_are_the_fewest() -> None:
    with pytest.raises(SifBatchError, match="36 are the fewest"):
        choose_spec(IndexSettings(family="flat", max_bytes_per_row=35), "flat", ENCODER, 512, 1000)
    assert choose_spec(IndexSettings(family="flat", max_bytes_per_row=36), "flat", ENCODER, 512, 1000).row_bytes == 36


def test_a_recall_that_8_bits_cannot_promise_keeps_float16_rows() -> None:
    assert choose_spec(IndexSettings(recall=0.99), "ivf-pq", ENCODER, 512, 100_000).rows == "int8"
    assert choose_spec(IndexSettings(recall=0.999), "ivf-pq", ENCODER, 512, 100_000).rows == "float16"


@pytest.mark.parametrize(
    ("family", "bits", "code_bytes"),
    [("ivf-pq", 4, 32), ("ivf-pq", 8, 64), ("ivf-flat", 8, 256), ("ivf-flat", 32, 2048), ("ivf-rabitq", None, 40)],
)
def test_bits_decide_the_code(family: str, bits: int | None, code_bytes: int) -> None:
    settings = IndexSettings.model_validate({"family": family, "bits": bits})
    assert choose_spec(settings, family, ENCODER, 512, 100_000).code_bytes == code_bytes


@pytest.mark.parametrize(("family", "bits"), [("ivf-pq", 32), ("ivf-flat", 4), ("hnsw", 8), ("ivf-rabitq", 8)])
def test_bits_that_a_family_does_not_have_are_an_error(family: str, bits: int) -> None:
    settings = IndexSettings.model_validate({"family": family, "bits": bits})
    with pytest.raises(SifBatchError, match=f"--bits {bits} does not go with --family {family}"):
        choose_spec(settings, family, ENCODER, 512, 100_000)


def test_fewer_rows_than_codebook_entries_are_an_error() -> None:
    for changes in ({"bits": 8}, {"max_bytes_per_row": 8}):
        settings = IndexSettings.model_validate({"family": "ivf-pq"} | changes)
        with pytest.raises(SifBatchError, match="a codebook of 256 entries needs at least 274 usable images, .* 273"):
            choose_spec(settings, "ivf-pq", ENCODER, 512, 273)
        assert choose_spec(settings, "ivf-pq", ENCODER, 512, 274).bits == 8


def test_the_shape_is_told_in_one_line() -> None:
    for family in FAMILIES:
        line = choose_spec(AUTO, family, ENCODER, 512, 100_000).explain()
        assert line.startswith(family) and "bytes a row" in line and "\n" not in line
