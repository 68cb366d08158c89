"""What every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels then run in its interpreter; the choice is made where they are imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped, visibly, where there is no GPU; slow ones start first, so
    that no process is left with them in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are split by thread: bit-identical runs need the same number. And models as small as
    those of tests are slower on several, far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the data that recipes make for themselves: once for a test file."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GINR_FAST_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def vector_latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 40 latent vectors, and the mNIF of images that they are of."""
    from small_latents import latents_file

    return latents_file(tmp_path_factory.mktemp("vectors") / "latents.safetensors")


@pytest.fixture(scope="session")
def token_latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 40 instances' latent tokens, of three classes, and the LA-GINR they are of."""
    from small_latents import latents_file

    return latents_file(tmp_path_factory.mktemp("tokens") / "latents.safetensors", tokens=True)
