from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import encoder.linear
from encoder.linear import Linear, linear
from tests.support.operations import Operations

needs_onednn = pytest.mark.skipif(
    not encoder.linear._HAS_ONEDNN, reason="this build of torch has no oneDNN"
)


def factors(rows: int, columns: int, width: int) -> list[torch.Tensor]:
    """Rows, weight and bias."""
    generator = torch.Generator().manual_seed(rows)
    shapes = [(rows, columns), (width, columns), (width,)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def goes_through_onednn(*arguments: torch.Tensor) -> bool:
    with Operations() as operations:
        linear(*arguments)
    return operations.names == ["mkldnn._linear_pointwise.default"]


def test_a_product_by_hand() -> None:
    layer = Linear(2, 2).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert layer.bias is not None
    layer.bias.copy_(torch.tensor([0.5, -0.5]))
    assert layer(torch.tensor([[1.0, 1.0], [2.0, -1.0]])).tolist() == [[3.5, 6.5], [0.5, 1.5]]


@given(rows=st.integers(1, 70), columns=st.integers(1, 80), width=st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_products_equal_those_in_float64(rows: int, columns: int, width: int) -> None:
    x, weight, bias = factors(rows, columns, width)
    exact = F.linear(x.double(), weight.double())
    torch.testing.assert_close(linear(x, weight), exact.float(), rtol=1e-5, atol=1e-5)
    exact += bias.double()
    torch.testing.assert_close(linear(x, weight, bias), exact.float(), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(("columns", "width"), [(588, 128), (128, 384), (33, 40), (512, 256)])
def test_a_rows_bits_depend_on_no_other_row(columns: int, width: int) -> None:
    x, weight, bias = factors(300, columns, width)
    whole = linear(x, weight, bias)
    for rows in (2, 3, 4, 7, 16, 31, 33, 100, 257):
        assert torch.equal(linear(x[:rows], weight, bias), whole[:rows]), rows
        assert torch.equal(linear(x[-rows:], weight, bias), whole[-rows:]), rows


@needs_onednn
def test_onednn_takes_what_is_float32_and_keeps_no_gradients() -> None:
    x, weight, bias = factors(8, 16, 16)
    assert goes_through_onednn(x, weight, bias)
    assert not goes_through_onednn(x.double(), weight.double(), bias.double())
    for place in range(3):
        arguments = factors(8, 16, 16)
        arguments[place].requires_grad_()
        assert not goes_through_onednn(*arguments)
        with torch.no_grad():
            assert goes_through_onednn(*arguments)


def test_gradients_are_those_of_torch() -> None:
    arguments = [part.requires_grad_() for part in factors(5, 6, 7)]
    found = torch.autograd.grad(linear(*arguments).sum(), arguments)
    expected = torch.autograd.grad(F.linear(*arguments).sum(), arguments)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_torch_without_onednn_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = factors(5, 6, 7)
    monkeypatch.setattr(encoder.linear, "_HAS_ONEDNN", False)
    assert torch.equal(linear(*arguments), F.linear(*arguments))
