"""Makes the golden stores of the format's current version: `python -m tests.golden tests/data/stores/v1`.

They are made once per version of the format and never again: later releases must read the very bytes that this one
wrote. Beside each store lies what it holds, as JSON, written from the arrays that went in.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from featcache.store import EMBEDDED, FAILED, REUSED, Part, PartFolder, publish

IDENTITY = {"made": "golden", "backbone": {"name": "none"}, "stored_dtype": "float32"}
ENVIRONMENTS = [{"featcache": "0.1.0", "device": "cpu"}, {"featcache": "0.1.0", "device": "cuda:0"}]


def make(folder: Path, name: str, n: int, d: int, dtype: str, columns: dict[str, list[str]], failed: list[int]) -> None:
    """One store of n planned images in parts of 100, some of which failed, and its JSON."""
    rng = np.random.default_rng(n * d)
    vectors = rng.standard_normal((n, d)).astype(dtype)
    vectors[failed] = np.nan
    ids = [f"folder/{i:04d}.png" for i in range(n)]
    ids[0] = os.fsdecode(b"caf\xe9 \xc3\xa4.png")
    contents = [f"{i * 7919:064x}" for i in range(n)]
    origin = np.array([(EMBEDDED, REUSED)[i % 2] for i in range(n)], dtype=np.uint8)
    origin[failed] = FAILED
    path = folder / f"{name}.h5"
    parts = PartFolder(path, {"identity": IDENTITY})
    with parts.locked():
        for start in range(0, n, 100):
            rows = slice(start, min(start + 100, n))
            why = {i - start: ("damaged", f"image {i}") for i in failed if rows.start <= i < rows.stop}
            features = {"pooled": vectors[rows]}
            parts.write(Part(start, features, contents[rows], origin[rows], why))
        publish(path, parts.heads(), ids, columns, IDENTITY, ENVIRONMENTS)
        parts.clear()
    kept = [i for i in range(n) if i not in failed]
    held = {
        "image_ids": [ids[i] for i in kept],
        "content_sha256": [contents[i] for i in kept],
        "columns": {column: [values[i] for i in kept] for column, values in columns.items()},
        "failures": {ids[i]: ["damaged", f"image {i}"] for i in failed},
        "identity": IDENTITY,
        "environments": ENVIRONMENTS,
        "dtype": dtype,
        "features": [[float(value) for value in vectors[i]] for i in kept],
    }
    (folder / f"{name}.json").write_text(json.dumps(held, indent=0, ensure_ascii=True) + "\n")


def main(folder: Path) -> None:
    """All of them; refuses to touch what is there."""
    folder.mkdir(parents=True)
    labels = [("normal", "sick", "")[i % 3] for i in range(230)]
    splits = [("train", "val", "test")[i % 3] for i in range(230)]
    make(folder, "plain", 230, 5, "float32", {"label": labels, "split": splits}, [])
    make(
        folder,
        "failures-and-names",
        120,
        3,
        "float32",
        {"label": ["Röntgen"] * 120, "who/knows".replace("/", " "): ["x"] * 120},
        [7, 119],
    )
    make(folder, "float16", 70, 4, "float16", {}, [])
    make(folder, "one-row", 1, 1, "float32", {"label": ["only"]}, [])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
