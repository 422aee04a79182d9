"""Files of tensors whose headers don't describe them."""

from __future__ import annotations

from typing import Any

from bad_documents import JSON
from forged import Change, put, tensors

FLOATS = b"\x00\x00\x80\x3f" * 6


def one(**fields: object) -> dict[str, Any]:
    """A header with one tensor."""
    return {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **fields}}


HEADERS: dict[str, Change] = {
    **{
        f"shape {shape!r}"[:60]: tensors(one(shape=shape), FLOATS)
        for shape in (
            [2**63],
            [2**40, 2**40],
            [-2, -3],
            [6.0],
            ["6"],
            None,
            [2**62, 4],
            [2, 3, 0],
            [True, 6],
            [1] * 9999,
        )
    },
    **{
        f"offsets {offsets!r}": tensors(one(data_offsets=offsets), FLOATS)
        for offsets in (
            [24, 0],
            [4, 28],
            [0, 2**63],
            [-24, 0],
            [0, 25],
            [0],
            [],
            None,
            [0, 24, 48],
            [2**64, 2**64 + 24],
        )
    },
    **{
        f"dtype {dtype!r}": tensors(one(dtype=dtype), FLOATS)
        for dtype in ("F99", "", None, 7, "__class__", "F4", "F6_E2M3", "F8_E8M0", "F64", "f32", "C64\x00")
    },
    "an overlap": tensors(
        {**one(), "v": {"dtype": "F32", "shape": [6], "data_offsets": [12, 36]}}, FLOATS + FLOATS[:12]
    ),
    "a hole": tensors({**one(), "v": {"dtype": "F32", "shape": [1], "data_offsets": [28, 32]}}, FLOATS + FLOATS[:8]),
    "bytes that are nobody's": tensors(one(), FLOATS + b"abcd"),
    "bytes that are missing": tensors(one(), FLOATS[:-1]),
    **{
        f"length {length}": tensors(one(), FLOATS, length)
        for length in (0, 1, 7, 2**63, 2**64 - 1, 10**8, 10**8 + 1, 200)
    },
    "a header of a hundred megabytes, in a file of none": tensors(b"{}", b"", 100_000_000),
    "a header of six megabytes": tensors(b"{" + b" " * 6_000_000 + b'"x":1}'),
    **{
        f"metadata {data!r}"[:60]: tensors({"__metadata__": data, **one()}, FLOATS)
        for data in (1, [], {"x": 1}, {"x": {}}, "x")
    },
    **{f"{name} as a header": tensors(text) for name, text in JSON.items() if name not in ("nearly too deep",)},
    "a name twice": tensors(
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        b"ab",
    ),
    **{
        f"only {data!r}": put("model.safetensors", data)
        for data in (b"", b"\x00", b"\x00" * 8, b"\xff" * 8, b"\xff" * 4096)
    },
}
"""No files of tensors."""
