"""Reading, training and predicting from a store work where `fcntl` and `resource` do not exist."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from featcache.fusion.writer import export_studies
from featcache.specs import FusionSpec
from featcache.store import Store
from tests.conftest import make_store, two_clouds

_PROGRAM = """
import sys

sys.modules["fcntl"] = sys.modules["resource"] = None  # `import fcntl` fails, as on Windows

import featcache
from featcache.fusion import open_studies

with open_studies("studies.h5") as studies:
    assert len(studies) > 0
with featcache.Store.open("s.h5") as store:
    assert len(store) == 80
    target = featcache.TargetSpec(positive="sick")
    run = featcache.train_head(store, featcache.HeadSpec(epochs=3), "run", target=target)
    assert featcache.Run.open("run").metrics("val") == run.metrics("val")
    predictions = featcache.load_run("run").of_store(store)
    assert predictions.probabilities.shape == (80, 2)
"""


def test_a_store_is_read_and_learnt_from_without_posix(tmp_path: Path) -> None:
    x, labels = two_clouds(80, 6)
    columns = {"label": labels, "group": [f"p{i // 2}" for i in range(80)]}
    with Store.open(make_store(tmp_path / "s.h5", np.asarray(x), columns)) as store:
        export_studies(store, tmp_path / "studies.h5", FusionSpec(by="group"))
    done = subprocess.run([sys.executable, "-c", _PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
