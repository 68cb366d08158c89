"""``ginr-fast view CHECKPOINT``."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ginr_fast.analysis.instances import FitOptions
from ginr_fast.commands import common
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.ops.checks import check_count
from ginr_fast.training.tasks.base import DataOptions


@dataclass(frozen=True)
class ViewArguments:
    """Look at what a trained model knows, in a browser.

    Images: drag to move, turn the wheel to zoom in far past the resolution of training, click to
    see which tokens a point looks at. Scenes: the mouse orbits. Shapes: their surface. Of all of
    them a slider goes from one instance to another, and the panel says how fast they are drawn.

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        host: the address to listen at; 0.0.0.0 lets other machines look, too.
        port: 0 for any that is free.
        device: cpu, cuda or cuda:N; the GPU if there is one if not given.
        rows: of a picture when nothing moves, at most; can be changed in the browser.
        generated: (INRCT) samples instead of held-out instances. Latent diffusion has no others.
        sampling: (samples) how they are drawn.
        fit: (mNIF, Learned Init) what instances are fitted to.
        support_views: (view synthesis) views that a scene is encoded from, those that it is
            evaluated with; the recipe's number if not given.
        source: the data that held-out instances are of.
    """

    checkpoint: Positional[Path]
    host: str = "127.0.0.1"
    port: int = 8080
    device: str | None = None
    rows: int = 720
    generated: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    fit: Annotated[FitOptions, arg(name="")] = field(default_factory=FitOptions)
    support_views: int | None = None
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")
        check_count("rows", self.rows)


def main(arguments: Sequence[str]) -> None:
    """Run the command, until an interrupt."""
    given = common.parse(ViewArguments, arguments, "view")
    import viser  # noqa: F401  # said first, if it is missing

    from ginr_fast.viewer.opening import Shown, open_subject
    from ginr_fast.viewer.server import Viewer, check_free

    check_free(given.host, given.port)
    shown = Shown(given.generated, given.sampling, given.fit, given.support_views, given.source)
    subject = open_subject(given.checkpoint, shown, device_of(given.device))
    with Viewer(subject, given.host, given.port, given.rows) as viewer:
        instances = subject.instances
        print(f"{subject.title}, {instances.count} {instances.what}: {viewer.url}", flush=True)
        print("Ctrl-C ends.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\nending", flush=True)


def device_of(name: str | None) -> Any:
    """The device of a name; the best one if None.

    Raises:
        ValueError: no such device here.
    """
    import torch

    if name is None:
        return common.best_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {name!r} cannot be used here ({reason})") from None
    return device
