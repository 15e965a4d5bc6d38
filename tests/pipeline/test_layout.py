import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import layout

generations = st.integers(0, 999_999)
indices = st.integers(0, 99_999_999)


def test_names_are_those_of_the_design() -> None:
    assert layout.shard(0, 12) == "g000000-00000012"
    assert layout.generation(3) == "_patchflow/manifest/g000003.json"
    assert layout.marker("g000000-00000012") == "_patchflow/commits/g000000-00000012.json"
    assert layout.errors("g000000-00000012") == "errors/g000000-00000012.parquet"
    assert layout.embeddings("g000000-00000012", {}) == "embeddings/g000000-00000012.parquet"
    assert layout.segments("g000000-00000012", {}, "frame") == "frames/g000000-00000012.parquet"
    assert layout.objects("g000000-00000012", {"k": "a/b"}, "token") == [
        "embeddings/k=a%2Fb/g000000-00000012.parquet",
        "errors/g000000-00000012.parquet",
        "tokens/k=a%2Fb/g000000-00000012.parquet",
    ]
    assert layout.encoder("ab12") == "_patchflow/encoder/ab12.safetensors"


@given(generations, indices)
def test_a_shard_id_round_trips(generation: int, index: int) -> None:
    assert layout.parse_shard(layout.shard(generation, index)) == (generation, index)


@given(generations)
def test_a_generation_name_round_trips(number: int) -> None:
    assert layout.generation_number(layout.generation(number).rsplit("/", 1)[1]) == number


@given(generations, generations, indices, indices)
def test_ids_sort_as_their_numbers(g: int, h: int, i: int, j: int) -> None:
    assert (layout.shard(g, i) < layout.shard(h, j)) == ((g, i) < (h, j))


@pytest.mark.parametrize(
    "name", ["", "g0-0", "g000000-00000012.json", "xg000000-00000012", "g000000-0000001a", "latest"]
)
def test_other_names_are_no_shards(name: str) -> None:
    assert layout.parse_shard(name) is None


@pytest.mark.parametrize("name", ["g000000", "g0.json", "g000000.json.tmp", "run.json"])
def test_other_names_are_no_generations(name: str) -> None:
    assert layout.generation_number(name) is None


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("cat", "label=cat"),
        ("a/b", "label=a%2Fb"),
        ("../..", "label=..%2F.."),
        ("x=y", "label=x%3Dy"),
        ("two words", "label=two%20words"),
        ("100%", "label=100%25"),
        ("été", "label=%C3%A9t%C3%A9"),
        ("", "label="),
        (None, "label=__HIVE_DEFAULT_PARTITION__"),
        (7, "label=7"),
        (True, "label=True"),
    ],
)
def test_partition_values_become_folders(value: object, folder: str) -> None:
    expected = f"embeddings/{folder}/g000000-00000000.parquet"
    assert layout.embeddings("g000000-00000000", {"label": value}) == expected


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8), st.text() | st.none() | st.integers(), max_size=3
    )
)
def test_each_partition_column_is_one_path_segment(partition: dict[str, object]) -> None:
    root, *folders, name = layout.embeddings("g000000-00000000", partition).split("/")
    assert (root, name) == ("embeddings", "g000000-00000000.parquet")
    assert len(folders) == len(partition)
    assert all(folder.count("=") == 1 and folder.isascii() for folder in folders)
    assert not {"", ".", ".."} & set(folders)
