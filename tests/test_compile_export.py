"""Where decoders run beside eager PyTorch: compiled whole, exported, in a CUDA graph."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed_decoders import DECODERS
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from ginr_fast.ops import triton_backend


@pytest.mark.parametrize("name", DECODERS)
def test_training_steps_of_any_size_are_one_graph(name: str) -> None:
    torch.compiler.reset()
    case = DECODERS[name]
    graphs = CompileCounterWithBackend("aot_eager")
    decoders = case.module(), case.module()

    def loss_of(decoder: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        values = decoder(*inputs)
        return (values - 0.25).square().mean(), values

    compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend=graphs)
    learned = [[*decoder.parameters()] for decoder in decoders]
    optimizers = [torch.optim.SGD(found, lr=0.1) if found else None for found in learned]
    made = []
    for batch, count in ((4, 50), (5, 60), (6, 700)):
        found: list[list[Tensor]] = []
        for step, decoder, optimizer in zip((compiled, loss_of), decoders, optimizers, strict=True):
            *points, latents = case.inputs(batch, count)
            latents.requires_grad_()
            loss, values = step(decoder, (*points, latents))
            decoder.zero_grad()
            loss.backward()
            if optimizer is not None:
                optimizer.step()
            assert latents.grad is not None
            found.append([values, latents.grad, *decoder.parameters()])
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        made.append(graphs.frame_count)
    assert made[0] == made[1] == made[2]  # all that is compiled is compiled for the first size


LOADED = """
import sys
import torch, ginr_fast
given = torch.load(sys.argv[1])
for name, (program, calls) in given.items():
    module = torch.export.load(program).module()
    for inputs, expected in calls:
        torch.testing.assert_close(module(*inputs), expected, msg=lambda m: f"{name}: {m}")
print(len(given), "programs")
"""


def test_exported_programs_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    for name, case in DECODERS.items():
        module, inputs = case.module(), case.inputs(2, 9)
        batch, count = Dim("batch"), Dim("count")
        shapes = tuple({0: batch, 1: count} for _ in inputs[:-1])
        program = torch.export.export(
            module, inputs, dynamic_shapes=(*shapes, {0: batch}), strict=False
        )
        operators = {str(node.target) for node in program.graph.nodes}
        assert any(operator.startswith("ginr_fast.") for operator in operators), operators
        path = tmp_path / f"{name}.pt2"
        torch.export.save(program, path)
        calls = [case.inputs(*sizes) for sizes in ((1, 1), (7, 130), (2, 3000))]
        with torch.no_grad():
            given[name] = str(path), [(call, module(*call)) for call in calls]
    torch.save(given, tmp_path / "given.pt")
    command = [sys.executable, "-c", LOADED, str(tmp_path / "given.pt")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == f"{len(DECODERS)} programs"


def test_the_device_is_asked_when_a_graph_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes the answer for a constant: it could not trace the question."""
    torch.compiler.reset()
    asked = []

    def capability(index: int) -> tuple[int, int]:
        asked.append(os.getpid())
        return (7, 5)

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)

    def answered(x: Tensor) -> Tensor:
        return x if triton_backend._device_refusal(0) is None else -x

    compiled = torch.compile(answered, fullgraph=True, backend="eager")
    assert [compiled(torch.ones(())).item() for _ in range(3)] == [-1.0] * 3
    assert len(asked) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", DECODERS)
def test_inside_a_cuda_graph(name: str) -> None:
    case = DECODERS[name]
    module, inputs = case.module("cuda"), case.inputs(2, 3000, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            module(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = module(*inputs)
    inputs[-1].copy_(case.inputs(2, 3001, "cuda")[-1])
    graph.replay()
    torch.cuda.synchronize()
    with torch.no_grad():
        assert torch.equal(out, module(*inputs))
