"""A method's denoiser for other programs: torch.export and ONNX, each checked against the network it came from.

Both take any number of slices of the bundle's grid at once. What the inputs mean is the method's `forward`.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.base.errors import RunFailed
from shared.base.files import write_bytes
from shared.base.randomness import generator
from shared.methods import Network
from shared.model.model import Model

AGREES = {"denoiser.pt2": 1e-5, "denoiser.onnx": 1e-4}  # largest difference from eager, by the largest output
CHECKED_WITH = (1, 3)  # slices; traced with 2


def export_denoiser(model: Model, folder: Path) -> dict[str, Any]:
    """Writes denoiser.pt2 and denoiser.onnx and says what they take; nothing for a network without a denoiser."""
    net = model.net.cpu()
    example = net.example(2, model.grid.height, model.grid.width) if isinstance(net, Network) else None
    if example is None:
        return {}
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        program = torch.export.export(net, example, dynamic_shapes=tuple({0: batch} for _ in example))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        written = io.BytesIO()
        torch.export.save(program, written)
        write_bytes(folder / "denoiser.pt2", written.getvalue(), durable=False)  # of a folder that is made whole
        onnx = torch.onnx.export(program, example, dynamo=True, verbose=False)
        assert onnx is not None
        onnx.save(folder / "denoiser.onnx", external_data=False)
        _check(net, program.module(), folder / "denoiser.onnx", example)
    inputs = [
        {"shape": ["batch", *value.shape[1:]], "dtype": str(value.dtype).removeprefix("torch.")} for value in example
    ]
    return {"inputs": inputs, "differs_from_eager_by_at_most": AGREES, "checked_with_batches_of": list(CHECKED_WITH)}


def _check(net: torch.nn.Module, program: torch.nn.Module, onnx: Path, example: tuple[Tensor, ...]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for batch in CHECKED_WITH:
        inputs = tuple(_random(value, batch) for value in example)
        with torch.no_grad():
            wanted = net(*inputs)
            feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            found = {
                "denoiser.pt2": program(*inputs),
                "denoiser.onnx": torch.from_numpy(session.run(None, feed)[0]),
            }
        for name, value in found.items():
            difference = ((value - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)).item()
            if not difference <= AGREES[name]:  # also catches nan
                raise RunFailed(
                    f"{name}: differs from the network by {difference:.2g} of its largest output; "
                    f"the limit is {AGREES[name]:g}"
                )


def _random(like: Tensor, batch: int) -> Tensor:
    shape, noise = (batch, *like.shape[1:]), generator("cpu", "denoiser", batch)
    if like.dtype == torch.bool:
        return torch.ones(shape, dtype=torch.bool)
    if like.is_floating_point():
        return torch.randn(shape, generator=noise, dtype=like.dtype)
    return torch.randint(0, 100, shape, generator=noise, dtype=like.dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own insides, by both ways that there are."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
