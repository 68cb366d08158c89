"""The panel beside the picture: which instance, how it is drawn, how fast that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import viser

from ginr_fast.viewer.subjects import Choice, Subject

_ROWS = (256, 512, 720, 1080, 2160)
Changed = Callable[[], None]


class Panel:
    """A client's panel.

    Args:
        client: whose it is.
        subject: what is viewed.
        finest: rows of a picture at rest, at first; None where pictures have no rows.
        changed: called when another picture is wanted.
        save: called when the picture shall be saved.
        reset: called when the camera shall be where it was at first.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        subject: Subject[Any],
        finest: int | None,
        changed: Changed,
        save: Changed,
        reset: Changed,
    ) -> None:
        self.client, gui = client, client.gui
        count, what = subject.instances.count, subject.instances.what
        last = count - 1
        numbers = f" 0 to {last}" if last else ""
        gui.add_markdown(f"**{subject.title}**: {what}{numbers}")
        with gui.add_folder("Instance"):
            self._first = gui.add_number("Number", 0, min=0, max=last, step=1, visible=last > 0)
            self._second = gui.add_number(
                "Towards", min(1, last), min=0, max=last, step=1, visible=last > 0
            )
            self._share = gui.add_slider(
                "Interpolation",
                0.0,
                1.0,
                0.01,
                0.0,
                hint="0: the instance; 1: the one towards",
                visible=last > 0,
            )
            if not last:
                gui.add_markdown("It is the only one.")
        self.view_folder = gui.add_folder("View")
        self._finest = None
        with self.view_folder:
            if finest is not None:
                options = [f"{rows} rows" for rows in sorted({finest, *_ROWS})]
                self._finest = gui.add_dropdown(
                    "Finest",
                    options,
                    initial_value=f"{finest} rows",
                    hint="Of the picture when nothing moves; the window's if it has fewer",
                )
                self._finest.on_update(lambda _: changed())
            gui.add_button("Reset view").on_click(lambda _: reset())
            gui.add_button("Save picture (PNG)").on_click(lambda _: save())
        with gui.add_folder("Speed"):
            self.moving: Any = gui.add_text(
                "Moving", "", disabled=True, hint="Pictures a second, and their size"
            )
            self.still: Any = gui.add_text(
                "At rest", "", disabled=True, hint="Size, and how long it took to draw"
            )
        for handle in (self._first, self._second, self._share):
            handle.on_update(lambda _: changed())
        self._tokens: tuple[Any, ...] = ()
        self._hint = ""

    @property
    def choice(self) -> Choice:
        """The instance that is wanted."""
        return Choice(int(self._first.value), int(self._second.value), float(self._share.value))

    @property
    def finest(self) -> int:
        """Rows of a picture at rest, at most."""
        assert self._finest is not None
        return int(self._finest.value.split()[0])

    def explain_clicks(self, text: str) -> None:
        """Make room for what a click shows.

        Args:
            text: what to click, until then.
        """
        self._hint = text
        gui = self.client.gui
        blank = np.full((1, 1, 3), 255, np.uint8)
        with gui.add_folder("Tokens"):
            words = gui.add_markdown(text)
            pictures = [
                gui.add_image(blank, label=label, visible=False)
                for label in (
                    "Attention to each token, a square a head",
                    "Attention shared with the point, over the picture",
                )
            ]
        self._tokens = (words, *pictures)

    def show_tokens(self, text: str, tokens: np.ndarray, shared: np.ndarray) -> None:
        """Show what a point looks at, ``(H, W, 3)`` uint8 twice, and words (Markdown)."""
        words, *pictures = self._tokens
        words.content = text
        for handle, picture in zip(pictures, (tokens, shared), strict=True):
            handle.image = picture
            handle.visible = True

    def hide_tokens(self) -> None:
        """Show what to click again."""
        words, *pictures = self._tokens
        words.content = self._hint
        for handle in pictures:
            handle.visible = False
