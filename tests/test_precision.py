"""Precisions: bfloat16 trains, and a device without float64 is never asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from test_runs import CPU, make
from varred.config import Execution
from varred.measure import wide
from varred.train import Trainer, evaluate, train


class OnMPS(Tensor):
    """A stand-in for a tensor on MPS: it knows its device and refuses float64 until it is moved to the CPU."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("mps")
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is Tensor.cpu:
            return result.as_subclass(Tensor)
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def test_values_are_widened_after_leaving_mps() -> None:
    values = torch.rand(5)
    with pytest.raises(TypeError, match="MPS"):
        values.as_subclass(OnMPS).double()
    assert torch.equal(wide(values.as_subclass(OnMPS)), values.double())


def test_an_evaluation_on_mps_is_that_of_the_cpu() -> None:
    logits, targets = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    plain = evaluate(lambda part: part, nn.Identity(), logits, targets)
    assert evaluate(lambda part: part.as_subclass(OnMPS), nn.Identity(), logits, targets) == plain


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.float32), ("float64", torch.float64)],
)
def test_losses_stay_in_the_runs_own_precision_on_the_device(precision: str, dtype: torch.dtype) -> None:
    assert Trainer(make(precision=precision), CPU).epoch(0).dtype == dtype


def test_float64_on_mps_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Execution, "resolve", lambda _: torch.device("mps"))
    with pytest.raises(ValueError, match="precision 'float64' is not available on device mps") as caught:
        Trainer(make(precision="float64"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["SGD", "SVRG", "STORM"])
def test_bfloat16_trains_and_differs_from_float32(rule: str) -> None:
    model = {"name": "lenet"}
    half, single = (train(make(rule, model=model, epochs=1, precision=p), CPU) for p in ("bfloat16", "float32"))
    assert half.diverged is None
    assert torch.tensor(half.fingerprint).isfinite().all()
    assert half.fingerprint != single.fingerprint
    assert half.fingerprint == pytest.approx(single.fingerprint, rel=0.05)
    assert half.curves.train_loss[-1] == pytest.approx(single.curves.train_loss[-1], rel=0.05)


def test_a_compiled_run_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compile_ = [], torch.compile

    def cheap(model: nn.Module) -> Any:
        compiled.append(model)
        return compile_(model, backend="eager")  # traced by dynamo, without a compiler behind it

    monkeypatch.setattr(torch, "compile", cheap)
    config = make("SVRG", epochs=2)
    run = train(config, Execution(device="cpu", threads=1, compile=True))
    assert len(compiled) == 1
    assert run.provenance.compiled
    assert run.curves.model_dump_json() == train(config, CPU).curves.model_dump_json()
