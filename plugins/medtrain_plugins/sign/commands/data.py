"""`medtrain data prepare karsl` and `medtrain data synth karsl`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medtrain_plugins.sign.data.container import Clip

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--out", required=True, type=FOLDER, help="Folder to write.")
@click.option("--signs", default="1-20", show_default=True, help="Numbers of the signs, such as 1-20 or 1-4,7.")
@click.option("--clips", type=click.IntRange(min=2), default=12, show_default=True, help="Of each sign by each signer.")
@click.option("--signers", type=click.IntRange(min=1), default=3, show_default=True, help="Number of signers.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal files.")
@click.option(
    "--signal",
    type=click.Choice(["signs", "none"]),
    default="signs",
    show_default=True,
    help="What tells signs apart: the path of hands and fingers, or nothing.",
)
@click.option(
    "--missing",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of frames in which a signing hand is not detected.",
)
@click.option("--raw", is_flag=True, help="Image coordinates instead of centred and scaled landmarks.")
def synth(
    out: Path,
    signs: str,
    clips: int,
    signers: int,
    seed: int,
    signal: Literal["signs", "none"],
    missing: float,
    raw: bool,
) -> None:
    """Write synthetic keypoints of signs.

    Hands move along smooth paths, each sign along its own; signers differ in size, reach and tempo; hands are lost in
    some frames. A third of the clips is the test group.
    """
    from medtrain_plugins.sign.data.synth import synthesize

    counts = synthesize(
        out, _signs(signs), clips, seed, signers=signers, signal=signal, missing=missing, adjusted=not raw
    )
    click.echo(
        f"{counts['clips']} clips ({counts['frames']} frames) of {counts['signs']} signs by {counts['signers']} "
        f"signers: {out}"
    )


@click.command()
@click.option("--source", required=True, type=FOLDER, help="Keypoints (npz, mmap, container) or recordings.")
@click.option("--out", required=True, type=FOLDER, help="Folder to write.")
@click.option("--signs", default="", help="Only these, such as 1-502 or 1-4,7.")
@click.option("--signers", default="", help="Only these, such as 1,2.")
@click.option("--splits", type=click.Choice(["train", "test"]), multiple=True, help="Only this part; may be repeated.")
@click.option("--labels", type=FOLDER, help="JSON table of the signs' names; default: the one beside the source.")
@click.option("--adjusted", is_flag=True, help="Centre and scale raw landmarks, group by group.")
@click.option("--drop-bad", is_flag=True, help="Leave out clips without frames or with values that are not finite.")
@click.option("--float16", is_flag=True, help="Half the size, at 3 significant digits.")
@click.option("--models", type=FOLDER, help="For recordings: folder with MediaPipe's three .task files.")
@click.option("--hands", type=click.IntRange(1, 2), default=2, show_default=True, help="For recordings: at most.")
@click.option("--workers", type=click.IntRange(min=1), help="For recordings: processes. Default: one per CPU.")
def prepare(source: Path, out: Path, signs: str, signers: str, **settings: Any) -> None:
    """Write keypoints as one memory-mapped array and a table of clips, which a run reads fastest.

    SOURCE holds keypoints in one of the published layouts, or recordings (folders of frames, or videos), from which
    MediaPipe takes them with the extra `medtrain[karsl-extract]` and --models.
    """
    from functools import partial

    from medtrain_plugins.sign.data.formats import open_clips
    from medtrain_plugins.sign.data.labels import find_labels
    from medtrain_plugins.sign.data.prepare import Wanted, clips_of, store

    wanted = Wanted(_signs(signs), [int(part) for part in signers.replace(",", " ").split()], settings["splits"])
    labels = settings["labels"] or find_labels(source)
    clips: Iterator[Clip]
    if settings["models"] is None:
        opened = open_clips(source)
        clips, about = clips_of(opened, wanted), opened.about
    else:
        from medtrain_plugins.sign.data.extract import (
            MediaPipeDetector,
            extract,
            extractor,
            find_recordings,
            model_files,
        )

        model_files(settings["models"])
        recordings = find_recordings(source, wanted)
        detector = partial(MediaPipeDetector, settings["models"], settings["hands"])
        clips = extract(recordings, detector, settings["workers"])
        about = {"extractor": extractor(settings["hands"]), "recordings": len(recordings)}
    dtype: Literal["float32", "float16"] = "float16" if settings["float16"] else "float32"
    checks = {name: settings[name] for name in ("adjusted", "drop_bad")}
    index = store(clips, about, out, labels=labels, dtype=dtype, **checks)
    click.echo(
        f"{len(index)} clips ({index['length'].sum()} frames) of {index['sign'].nunique()} signs by "
        f"{index['signer'].nunique()} signers, {' and '.join(sorted(set(index['normalisation'])))}: {out}"
    )


def _signs(text: str) -> list[int]:
    from medtrain.errors import UsageError

    from medtrain_plugins.sign.options import parse_signs

    try:
        return parse_signs(text) if text else []
    except ValueError as error:
        raise UsageError(f"--signs {text}: {error}") from None
