"""Manifests that no store writes, with the right digests."""

from __future__ import annotations

import os
from pathlib import Path

import xxhash
from bad_documents import HEAVY, JSON
from forged import Change, manifest, says

from eventrunner.checkpoint.manifest import MANIFEST_NAME, STATE_NAME

NAMES = (
    *(
        "../state.json",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "\x00",
        "a\x00b",
        ".hidden",
        "x" * 300,
        MANIFEST_NAME,
    ),
    *(
        "\u202eevil",
        "\ud800",
        "a\nb",
        "\u2028",
        "C:\\x",
        "model.safetensors/",
        "./model.safetensors",
        "\u2215etc",
        "nul\u0000",
    ),
)
SIZES = (-1, 2**60, 2**63, 2**64, 10**4000, 1.0, True, None, "1", [], {})
ENTRY = {"name": "w", "dtype": "float32", "shape": [2, 3]}


def piece(**fields: object) -> dict[str, object]:
    """A tensor with one piece."""
    whole = {"file": "model.safetensors", "offsets": [0, 0], "shape": [2, 3], **fields}
    return {**ENTRY, "pieces": [whole]}


def reaches_out(folder: Path) -> None:
    """List a file outside of the folder, with its right size and digest."""
    path = f"../../outside/{STATE_NAME}"
    data = (folder / path).read_bytes()
    entry = {"size": len(data), "digest": xxhash.xxh3_128_hexdigest(data)}
    says(lambda body: body["files"].update({path: entry}))(folder)


MANIFESTS: dict[str, Change] = {
    "lists a file that is there, outside": reaches_out,
    **{f"{name}": manifest(text) for name, text in {**JSON, **HEAVY}.items()},
    **{
        f"lists {name!r}"[:60]: says(lambda body, name=name: body["files"].update({name: {"size": 0, "digest": ""}}))
        for name in NAMES
    },
    **{
        f"size {size!r}"[:60]: says(lambda body, size=size: body["files"]["state.json"].update(size=size))
        for size in SIZES
    },
    **{
        f"{key} {value!r}"[:60]: says(lambda body, key=key, value=value: body.update({key: value}))
        for key in ("step", "epoch", "format")
        for value in (-1, True, 1.0, None, "1", [], 2**63 if key == "format" else -(2**63))
    },
    **{
        f"created {value!r}"[:60]: says(lambda body, value=value: body.update(created=value))
        for value in (
            "",
            "now",
            "9999-12-31T23:59:59-23:59",
            "2026-01-01",
            "\ud800",
            "0000-00-00T00:00:00+00:00",
            0,
            "1" * 100_000,
            "2026-01-01T00:00:00+00:00\x00",
            "2026-W01-1T00:00:00+00:00",
        )
    },
    **{
        f"{key} {value!r}": says(lambda body, key=key, value=value: body.update({key: value}))
        for key in ("files", "meta", "versions", "tensors")
        for value in (None, 1, "x", [[]], {"x": None})
        if (key, value) != ("meta", {"x": None})
    },
    **{
        f"tensor {entry!r}"[:90]: says(lambda body, entry=entry: body["tensors"].append(entry))
        for entry in (
            piece(file="../x"),
            piece(offsets=[2**63, 0]),
            piece(shape=[2**64, 2**64]),
            piece(offsets=[-1, 0]),
            piece(shape=[3]),
            {**ENTRY, "pieces": [1]},
            {**ENTRY, "pieces": None},
            {**piece(), "shape": [-1]},
            {**piece(), "dtype": 1},
            {**piece(), "name": []},
        )
    },
    "a second digest": says(lambda body: body.update(digest="0" * 32, files=1)),
    "a digest of the wrong text": lambda folder: (folder / MANIFEST_NAME).write_bytes(
        (folder / MANIFEST_NAME).read_bytes()[:-34] + b"0" * 32 + b'"}'
    ),
    "a file of 64 MiB": lambda folder: os.truncate(folder / MANIFEST_NAME, 64 * 2**20 + 1),
    "a file of 16 GiB": lambda folder: os.truncate(folder / MANIFEST_NAME, 2**34),
}
"""No manifests."""
