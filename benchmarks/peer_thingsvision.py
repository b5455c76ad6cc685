"""thingsvision's own extraction, as its documentation shows it, for `embed.py --peer`: prints images/s as JSON.

Run in an environment of its own:

    uv run --isolated --no-project --with thingsvision python peer_thingsvision.py FOLDER N NAME
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset


def main() -> None:
    images, n, backbone = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    files = sorted(path for path in images.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
    step = max(1, len(files) // n)
    extractor = get_extractor(model_name=backbone, source="timm", device="cpu", pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/in")
        for i, path in enumerate(files[::step][:n]):
            os.symlink(path.resolve(), f"{folder}/in/{i:05d}{path.suffix}")
        data = ImageDataset(
            root=f"{folder}/in",
            out_path=f"{folder}/out",
            backend=extractor.get_backend(),
            transforms=extractor.get_transformations(),
        )
        batches = DataLoader(dataset=data, batch_size=32, backend=extractor.get_backend())
        started = time.perf_counter()
        vectors = extractor.extract_features(batches=batches, module_name="global_pool", flatten_acts=True)
        print(json.dumps({"rate": len(vectors) / (time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
