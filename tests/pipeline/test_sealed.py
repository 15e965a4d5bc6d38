import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sealed import seal, unseal

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text().filter(lambda key: key != "checksum"), values, max_size=5)


@given(objects)
def test_what_is_sealed_comes_out_and_is_one_json_object(fields: dict[str, Any]) -> None:
    assert unseal(seal(fields)) == fields
    assert json.loads(seal(fields)).items() >= fields.items()


@given(objects, st.data())
def test_any_other_byte_is_found(fields: dict[str, Any], data: st.DataObject) -> None:
    sealed = bytearray(seal(fields))
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"."):
        unseal(bytes(sealed))


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{}", b'{"a": 1}', b'{"checksum": "0"}'])
def test_what_was_never_sealed_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unseal(data)


def test_the_same_content_in_other_words_is_refused() -> None:
    sealed = seal({"a": 1})
    with pytest.raises(ValueError, match="checksum"):
        unseal(json.dumps(json.loads(sealed)).encode())
