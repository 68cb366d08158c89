"""``ginr-fast analyse CHECKPOINT tokens|attention|patches``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ginr_fast.commands import common
from ginr_fast.ops.checks import check_count
from ginr_fast.training.tasks.base import DataOptions

if TYPE_CHECKING:
    from ginr_fast.analysis.encoded import EncodedInstance
    from ginr_fast.training.tasks import Task


@dataclass(frozen=True)
class TokenArguments:
    """What the latent tokens of a trained LA-GINR, TransINR or IPC do, on held-out instances.

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        what: tokens: zero one token at a time and show what changes, with figures of how local that
            is (LA-GINR, Figure 5). attention: (LA-GINR) the attention of pixels over the tokens,
            and of all pixels to each token. patches: (images) the part of an image that a token's
            attention in the last Transformer block is on (TransINR, Figure 7).
        source: the data.
        instances: numbers of held-out images or scenes; some evenly chosen ones if not given.
        count: so many.
        tokens: numbers of the tokens shown; some at random, always the same, if not given.
        shown: so many.
        measured: (tokens) so many tokens, at random, are what figures are a mean over.
        window: (tokens) pixels along a side of the window that changes should lie in; a quarter of
            the picture's if not given.
        factor: (tokens) what differences are multiplied by in the picture; so that hardly any is
            beyond white if not given.
        points: (attention) rows and columns of pixels; six over the picture if not given.
        out: the folder to write to; analysis in the run's folder if not given.
    """

    checkpoint: Positional[Path]
    what: Positional[Literal["tokens", "attention", "patches"]]
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    instances: tuple[int, ...] = ()
    count: int = 4
    tokens: tuple[int, ...] = ()
    shown: int = 8
    measured: int = 64
    window: int | None = None
    factor: float | None = None
    points: tuple[tuple[int, int], ...] = ()
    out: Path | None = None

    def __post_init__(self) -> None:
        for name in ("count", "shown", "measured", "window"):
            check_count(name, getattr(self, name), optional=True)
        if self.factor is not None and not self.factor > 0:
            raise ValueError(f"factor: expected a positive number, got {self.factor}")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(TokenArguments, arguments, "analyse")
    from ginr_fast.analysis.encoded import encoded, held_out_count
    from ginr_fast.analysis.instances import run_folder
    from ginr_fast.analysis.locality import check_tokens, evenly_chosen, some_tokens
    from ginr_fast.files import replace_text
    from ginr_fast.training.checkpoints import load_saved
    from ginr_fast.training.tasks import restored

    task = restored(load_saved(given.checkpoint), given.source, common.best_device())
    numbers = given.instances or evenly_chosen(held_out_count(task), given.count)
    found = encoded(task, numbers)
    chosen = list(given.tokens) or some_tokens(found[0].count, given.shown)
    check_tokens(chosen, found[0].count)
    out = given.out or run_folder(given.checkpoint) / "analysis"
    analyse = {"tokens": _tokens, "attention": _attention, "patches": _patches}[given.what]
    content = {
        "model": str(given.checkpoint),
        "instances": list(numbers),
        "tokens shown": chosen,
        **analyse(task, found, chosen, given, out),
    }
    replace_text(out / f"{given.what}.json", json.dumps(content, indent=1) + "\n")
    print(f"figures: {out / f'{given.what}.json'}")


def _tokens(
    task: Task,
    found: Sequence[EncodedInstance],
    chosen: Sequence[int],
    given: TokenArguments,
    out: Path,
) -> dict[str, Any]:
    import torch
    from rich.console import Console
    from rich.table import Table

    from ginr_fast.analysis.encoded import token_names
    from ginr_fast.analysis.locality import locality, some_tokens, zeroed_differences
    from ginr_fast.analysis.token_pictures import amplification, difference_sheet
    from ginr_fast.pictures import save_png

    table = Table("picture", "tokens", "silent", "area %", "inside %", "if even %")
    measured, shown, whole = [], [], []
    for one in found:
        many = some_tokens(one.count, given.measured)
        measured.append(zeroed_differences(one.decode, one.tokens, many).cpu())
        shown.append(zeroed_differences(one.decode, one.tokens, chosen).cpu())
        with torch.no_grad():
            whole.append(one.decode(one.tokens)[0].permute(2, 0, 1).clamp(0, 1).cpu())
    figures = {
        one.name: locality(part, given.window) for one, part in zip(found, measured, strict=True)
    }
    mean = {
        name: sum(getattr(one, name) for one in figures.values()) / len(figures)
        for name in ("area", "concentration", "even")
    }
    for name, of in figures.items():
        table.add_row(name, str(of.tokens), str(of.silent), *_percent(of._asdict()))
    table.add_row("mean", "", "", *_percent(mean), style="bold")
    Console().print(table)
    window = next(iter(figures.values())).window
    print(
        "area: part of the picture over which the change by one zeroed token is spread; inside: "
        f"part of the squared change within {window}x{window} pixels around its centre"
    )
    factor = given.factor or amplification(shown)
    names = [token_names(task.model.decoder, chosen)] * len(found)  # type: ignore[arg-type]
    picture = difference_sheet(
        [one.image.cpu() for one in found],
        whole,
        shown,
        [one.name for one in found],
        names,
        factor,
    )
    path = save_png(picture, out / "tokens.png")
    print(f"what each token changes, differences x {factor:g}: {path}")
    return {
        "factor": factor,
        **{f"mean {name}": value for name, value in mean.items()},
        "figures": {name: of._asdict() for name, of in figures.items()},
    }


def _percent(figures: dict[str, Any]) -> list[str]:
    return [f"{100 * figures[name]:.1f}" for name in ("area", "concentration", "even")]


def _attention(
    task: Task,
    found: Sequence[EncodedInstance],
    chosen: Sequence[int],
    given: TokenArguments,
    out: Path,
) -> dict[str, Any]:
    import torch
    from rich.console import Console
    from rich.table import Table

    from ginr_fast.analysis.attention import effective_tokens, token_attention
    from ginr_fast.analysis.encoded import attends, token_names
    from ginr_fast.analysis.token_pictures import draw_point_attention, map_sheet
    from ginr_fast.pictures import save_png

    decoder: Any = task.model.decoder
    if not attends(decoder):
        raise ValueError(
            "checkpoint: expected an LA-GINR, whose pixels attend to tokens, "
            f"got a {type(decoder).__name__}"
        )
    table = Table("picture", "head", "tokens a pixel looks at")
    figures: dict[str, Any] = {}
    names = token_names(decoder, chosen)
    for one in found:
        height, width = one.image.shape[1:]
        points = _points(given.points, height, width)
        assert one.coords is not None  # LA-GINR decodes one point a pixel
        every = one.coords if isinstance(one.coords, torch.Tensor) else one.coords.tensor()
        rows, columns = zip(*points, strict=True)
        at = token_attention(decoder, every[list(rows), list(columns)], one.tokens)[0]
        maps = token_attention(decoder, one.coords, one.tokens, chosen)[0]
        spread = effective_tokens(decoder, one.coords, one.tokens)[0].tolist()
        for head, number in enumerate(spread):
            table.add_row(one.name, str(head), f"{number:.1f} of {one.count}")
        figures[one.name] = {"points": points, "effective tokens": spread}
        draw_point_attention(one.image, points, at, out / f"attention-{one.number}-points.png")
        maps = maps.permute(0, 3, 1, 2).cpu()
        save_png(map_sheet(one.image.cpu(), maps, names), out / f"attention-{one.number}-maps.png")
    Console().print(table)
    print(f"attention of points over tokens, and of all pixels to tokens: {out}/attention-*.png")
    return {"figures": figures}


def _points(given: Sequence[tuple[int, int]], height: int, width: int) -> list[tuple[int, int]]:
    """The pixels given, checked; or two rows of three."""
    for row, column in given:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f"points: expected rows to {height - 1} and columns to {width - 1}, "
                f"got {row} and {column}"
            )
    lattice = [(row * height // 4, column * width // 6) for row in (1, 3) for column in (1, 3, 5)]
    return list(given) or lattice


def _patches(
    task: Task,
    found: Sequence[EncodedInstance],
    chosen: Sequence[int],
    given: TokenArguments,
    out: Path,
) -> dict[str, Any]:
    import torch
    from rich.console import Console
    from rich.table import Table

    from ginr_fast.analysis.attention import patch_attention, patch_masks
    from ginr_fast.analysis.encoded import token_names
    from ginr_fast.analysis.token_pictures import mask_sheet
    from ginr_fast.pictures import save_png
    from ginr_fast.systems.image_inr import ImageInr

    model = task.model
    if not isinstance(model, ImageInr):
        raise ValueError(f"checkpoint: expected a model of images, got a {type(model).__name__}")
    images = torch.stack([one.image for one in found])
    attention = patch_attention(model, images)
    share = attention.sum((2, 3))
    area = share.square() / attention.square().sum((2, 3)) / attention[0, 0].numel()
    masks = patch_masks(model.tokenizer, attention[:, chosen])
    table = Table("picture", "attention to patches (%)", "area of them (%)")
    for one, to_patches, size in zip(found, share.mean(1), area.mean(1), strict=True):
        table.add_row(one.name, f"{100 * float(to_patches):.1f}", f"{100 * float(size):.1f}")
    Console().print(table)
    names = [token_names(model.decoder, chosen)] * len(found)
    picture = mask_sheet(list(images.cpu()), list(masks.cpu()), names)
    path = save_png(picture, out / "patches.png")
    print(f"what tokens look at: {path}")
    return {
        "attention to patches": dict(
            zip([o.name for o in found], share.mean(1).tolist(), strict=True)
        ),
        "area": dict(zip([o.name for o in found], area.mean(1).tolist(), strict=True)),
    }
