"""What a document of a checkpoint can't hold, and what only weighs much."""

from __future__ import annotations

JSON = {
    "deep lists": b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep dicts": b'{"x":' * 50_000 + b"1" + b"}" * 50_000,
    "nearly too deep": b'{"x":' + b"[" * 900 + b"]" * 900 + b"}",
    "a million digits": b'{"x":' + b"9" * 1_000_000 + b"}",
    "a million digits behind the point": b'{"x":1e' + b"9" * 1_000_000 + b"}",
    "a key twice": b'{"x":1,"x":2}',
    "a key twice below": b'{"x":{"y":1,"\\u0079":2}}',
    **{
        token: b'{"x":%b}' % token.encode()
        for token in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "01", "'a'")
    },
    "no UTF-8": b'{"x":"\xff\xfe"}',
    "an encoded surrogate": b'{"x":"\xed\xa0\x80"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"x":1}'.encode("utf-16-le"),
    "a control character": b'{"x":"\x00"}',
    "half": b'{"x":',
    "two": b"{}{}",
    "a list": b"[1]",
    "a number": b"1",
    "nothing": b"",
    "spaces": b" " * 1_000_000,
}
"""Not what a checkpoint's JSON can be."""

HEAVY = {
    "a million lists": b'{"x":[' + b",".join([b"[]"] * 1_000_000) + b"]}",
    "a million dicts": b'{"x":[' + b",".join([b"{}"] * 1_000_000) + b"]}",
    "lists in lists": b'{"x":[' + b",".join([b"[" * 200 + b"]" * 200] * 3000) + b"]}",
    "many keys": b"{" + b",".join(b'"k%d":0' % i for i in range(300_000)) + b"}",
    "a long string": b'{"x":"' + b"x" * 8_000_000 + b'"}',
    "a lone surrogate": b'{"\\ud800":"\\udfff"}',
    "numbers at the edges": b'{"x":[9223372036854775808,-9223372036854775809,18446744073709551616,5e-324,-0.0,1e308]}',
}
"""What it can be, of some size."""

TENSOR = {"$": "tensor", "file": "model.safetensors", "name": "w"}
SPARSE = {"indices": TENSOR, "values": TENSOR, "size": [2, 2], "coalesced": False}
NODES: dict[str, object] = {
    **{f"tag {tag!r}": {"$": tag} for tag in ("os.system", "__class__", "load", "", None, 1, True, [], {}, "tensor")},
    **{
        f"file {file!r}": {**TENSOR, "file": file}
        for file in ("../x", "/etc/passwd", "", None, [], "state.json", "\x00")
    },
    **{f"name {name!r}": {**TENSOR, "name": name} for name in ("x", "__class__", None, {}, ["w"])},
    **{
        f"dtype {name!r}": {**TENSOR, "dtype": name, "shape": [4]}
        for name in (
            "__class__",
            "torch.load",
            "load",
            "torch.hub.load",
            "_dynamo",
            "torch.onnx",
            "torch._inductor",
            None,
        )
    },
    **{
        f"viewed as {name}": {**TENSOR, "dtype": f"torch.{name}", "shape": [1]}
        for name in ("qint8", "quint4x2", "bits16", "int3", "complex128", "float64")
    },
    **{
        f"shape {shape!r}"[:60]: {**TENSOR, "dtype": "torch.float32", "shape": shape}
        for shape in (
            [2**40],
            [2**63],
            [-1, -1],
            [2**62, 2**62],
            [10**4000],
            "24",
            [1.5],
            [None],
            {},
            [1] * 100_000,
            None,
        )
    },
    **{
        f"order {order!r}"[:60]: {**TENSOR, "order": order}
        for order in (
            [1],
            [5, 0],
            [0, 0],
            [-1, 0],
            [1.0, 0.5],
            ["a", "b"],
            "10",
            {},
            None,
            3,
            [2**70, 0],
            [0] * 100_000,
        )
    },
    **{f"hex {text!r}"[:40]: {"$": "int", "hex": text} for text in ("", "0x", None, 5, "--1")},
    **{f"bits {text!r}": {"$": "float", "bits": text} for text in ("", "00" * 9, "zz", None, 1)},
    **{f"base64 {text!r}": {"$": "bytes", "base64": text} for text in ("A", "\x00", None, "\ud800", 3)},
    **{
        f"name of a dtype {name!r}": {"$": "dtype", "name": name}
        for name in ("load", "torch.load", "_dynamo", None, 3, [])
    },
    **{
        f"name of a device {name!r}": {"$": "device", "name": name}
        for name in ("moon", "cpu:-1", "cuda:999999999999", None)
    },
    **{
        f"numpy's {dtype!r} of {value!r}"[:60]: {"$": "numpy", "dtype": dtype, "value": value}
        for dtype, value in (
            *(("V1", 2**30), ("V8", 2**40), ("S1", 2**33), ("U1", 5), ("O", 1), ("<f8", "1"), ("<f8", [1.0] * 9)),
            *(("<i8", 2**70), ("M8[s]", 1), ("i4,f8", 1), ("(9999,9999)i4", 1), (None, 1), ({"names": []}, 1), ("", 1)),
            *(("(" * 5000, 1), ("<f8", {"$": "bytes", "base64": ""}), ("<i\u0661", 1)),
        )
    },
    **{
        f"sparse by {name} {value!r}"[:60]: {"$": "sparse", **SPARSE, name: value}
        for name, value in (
            *(("size", size) for size in ([2], [2**62, 2**62], [-1], [], None, "2", [1.5], [2**70], [1] * 100_000)),
            *(("coalesced", value) for value in (1, "yes", {})),
            *((part, {**TENSOR, "name": "no"}) for part in ("indices", "values")),
            *(("indices", value) for value in (None, 1, [[0]], {"$": "int", "hex": "0x1"})),
        )
    },
    "numpy of a word": {"$": "ndarray", "tensor": "w"},
    **{f"items {items!r}"[:40]: {"$": "tuple", "items": items} for items in (None, 2**40, {"$": "set"}, [{"$": "no"}])},
    **{f"members {items!r}": {"$": "set", "items": items} for items in ([[]], [{}], [{"$": "set", "items": []}])},
    **{f"pairs {items!r}": {"$": "dict", "items": items} for items in ([1], [[1]], [[1, 2, 3]], [[[], 1]], None)},
    **{f"sizes {items!r}": {"$": "size", "items": items} for items in (["a"], [None], [[]])},
    **{f"counts {items!r}": {"$": "counter", "items": items} for items in ([1], [[{}, 1]])},
    "parts": {"$": "complex", "parts": [1, 2, 3]},
    "versions": {"$": "state_dict", "content": 1, "metadata": {}},
    "versions without a content": {"$": "state_dict", "metadata": {}},
}
"""No nodes of a document."""
