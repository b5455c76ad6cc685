"""Image and report together: what a project does with a fusion file, of which it knows the reader and nothing else.

Data      A fusion file, as fusion_prepare.py or `featcache export-studies` makes it: vectors of images, texts, label,
          groups and split of studies, and the logits of a head on the images that has not seen them.
Method    Of studies with images and text: TF-IDF and logistic regression on the words; logistic regression on the mean
          vector of the images; both together, late (the mean of their log odds) and early (one regression on words and
          vectors). Five folds of whole groups, and `test` by models of all other rows; AUROC and accuracy with 95 %
          intervals of 1,000 resamples of groups. Then vectors become prefix tokens of a causal language model that
          learns, end to end, to write the report (fusion_prefix.py); its loss on test studies with their own images
          and with those of others tells whether the images say anything to it.
Command   python pipelines/fusion_handoff.py FUSION.h5 -o runs/handoff [--llm NAME] [--steps N]
          python pipelines/fusion_handoff.py --quick          on phantoms, offline, in less than a minute
Expected  Nothing was published. The labels of the Indiana set were given by people who read the very reports, so words
          alone come close to 1, and fusion has little to add there: on this label, text is no second witness.
Deviates  The language model is a small one with random weights; --llm NAME takes one of the Hugging Face hub.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fusion_prefix
import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featcache.fusion import FeatcacheError, Studies, open_studies

Array = np.ndarray[Any, Any]

TEXTS = ("findings", "impression")
N_FOLDS = 5
N_RESAMPLES = 1000
WORDS = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
PENALTY = {"C": 1.0, "class_weight": "balanced", "max_iter": 2000}
MODELS = {"text": ["words"], "image": ["image"], "early fusion": ["words", "image"]}


def main(given: Sequence[str] | None = None) -> None:
    """The study."""
    asked = parsed(given)
    path = rehearsal(asked.output) if asked.quick else asked.fusion
    asked.output.mkdir(parents=True, exist_ok=True)
    with open_studies(path) as studies:
        rows = np.flatnonzero(usable(studies))
        check(studies, rows)
        table, y, groups = features(studies, rows), labels(studies, rows), studies.group_numbers[rows]
        test = np.array(studies.columns.get("split", [""] * len(studies)))[rows] == "test"
        odds = {name: predicted(model(parts, table), table, y, groups, test) for name, parts in MODELS.items()}
        odds["late fusion"] = (odds["text"] + odds["image"]) / 2
        if studies.classes and len(studies.classes) == 2:
            odds["the Run's own head"] = given_odds(studies)[rows]
        scores = pd.DataFrame(scored(odds, y, groups, test))
        losses = fusion_prefix.taught(studies, rows[~test], rows[test], TEXTS, asked.llm, asked.steps)
    losses.curve.to_csv(asked.output / "losses.csv", index=False)
    page = "\n".join([*caveats(studies), "", *told(scores), "", *losses.told()])
    (asked.output / "handoff.md").write_text(page + "\n", encoding="utf-8")
    sys.stdout.write(page + "\n")


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fusion", nargs="?", type=Path, help="FUSION.h5")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/handoff"))
    parser.add_argument("--llm", metavar="NAME", help="a causal language model of the Hugging Face hub")
    parser.add_argument("--steps", type=int, default=40, help="of its training (default 40)")
    parser.add_argument("--quick", action="store_true", help="a rehearsal on phantoms, offline, in a minute")
    asked = parser.parse_args(given)
    if asked.quick == (asked.fusion is not None):
        parser.error("give a fusion file, or --quick")
    if asked.fusion and not asked.fusion.is_file():
        parser.error(f"there is no file {asked.fusion}: fusion_prepare.py makes one")
    return asked


def rehearsal(folder: Path) -> Path:
    """A fusion file of phantoms, made by the other half in a process of its own."""
    maker = Path(__file__).with_name("fusion_prepare.py")
    subprocess.run([sys.executable, str(maker), "--quick", "-o", str(folder)], check=True)  # noqa: S603
    return folder / "quick" / "fusion.h5"


def caveats(studies: Studies) -> list[str]:
    """What keeps the numbers below from meaning anything about patients."""
    said = [f"{studies.path}: {len(studies):,} studies."]
    if "yes" in studies.columns.get("synthetic", []):
        said.append("The images are synthetic phantoms: the scores say that the steps work, nothing about patients.")
    if str(studies.about["store"].get("weights_source")).startswith("random"):
        said.append("The vectors are those of a network with random weights.")
    if studies.about["store"].get("weights_source") == "run":
        said.append(
            "The network of the vectors has learnt from images: of these, all scores with `image` are too good."
        )
    return said


# --- what is learnt from ----------------------------------------------------------------------------------------------


def usable(studies: Studies) -> Array:
    """(s,) bool: with images, with text, with a label."""
    known = np.array([bool(text) for text in studies.columns["label"]])
    return studies.has_image & studies.has_text & known


def check(studies: Studies, rows: Array) -> None:
    """Ends with a line where there is too little to learn from."""
    y, groups = labels(studies, rows), studies.group_numbers[rows]
    fewest = min(len(np.unique(groups[y == is_positive])) for is_positive in (True, False))
    if fewest < N_FOLDS:
        raise SystemExit(
            f"{studies.path}: {fewest} groups of one class have images, text and a label, too few for {N_FOLDS} folds."
        )
    texts = features(studies, rows)["text"]
    try:
        clone(WORDS).fit(texts)
    except ValueError as error:
        raise SystemExit(f"{studies.path}: its texts have no words to learn from ({error}).") from error


def features(studies: Studies, rows: Array) -> pd.DataFrame:
    """Of each study its words, as `text`, and the mean vector of its images, as numbered columns."""
    texts = [" ".join(parts) for parts in zip(*(studies.text(name) for name in TEXTS), strict=True)]
    mask = studies.image_mask.reshape(len(studies), -1)[rows]
    vectors = studies.vectors()[rows].reshape(*mask.shape, -1)
    mean = (vectors * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return pd.DataFrame(mean).rename(columns=str).assign(text=[texts[row] for row in rows])


def labels(studies: Studies, rows: Array) -> Array:
    """(n,) whether a study is of the positive class, that of the Run if there is one."""
    names = np.array(studies.columns["label"])[rows]
    positive = (studies.about.get("run") or {}).get("positive", sorted(set(names))[-1])
    if len(set(names)) != 2:
        raise SystemExit(f"{studies.path}: this pipeline is for two classes, and there are {len(set(names))}.")
    return np.asarray(names == positive)


def given_odds(studies: Studies) -> Array:
    """(s,) log odds of the positive class by the head on the images; NaN where all heads had seen the study."""
    positive = studies.classes.index(studies.about["run"]["positive"])
    return np.asarray(studies.logits[:, positive] - studies.logits[:, 1 - positive], dtype=np.float64)


# --- models and scores ------------------------------------------------------------------------------------------------


def model(parts: Sequence[str], table: pd.DataFrame) -> Pipeline:
    """Logistic regression on words, on vectors, or on both."""
    of = {"words": (WORDS, "text"), "image": (StandardScaler(), [name for name in table if name != "text"])}
    columns = ColumnTransformer([(part, *of[part]) for part in parts])
    return Pipeline([("features", columns), ("regression", LogisticRegression(**PENALTY))])


def predicted(fitted: Pipeline, table: pd.DataFrame, y: Array, groups: Array, test: Array) -> Array:
    """(n,) log odds: of `test` by a model of all other rows, of these by models of other folds."""
    odds, rows = np.empty(len(y)), np.flatnonzero(~test)
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0).split(rows, y[rows], groups[rows])
    for train, held in [*((rows[a], rows[b]) for a, b in folds), (rows, np.flatnonzero(test))]:
        if len(held):
            odds[held] = fitted.fit(table.iloc[train], y[train]).decision_function(table.iloc[held])
    return odds


def scored(odds: dict[str, Array], y: Array, groups: Array, test: Array) -> list[dict[str, Any]]:
    """A row per model and side."""
    found = []
    for name, values in odds.items():
        for side, here in (("out of fold", ~test), ("test", test)):
            kept = np.flatnonzero(here & np.isfinite(values))
            if len(set(y[kept])) == 2:
                numbers = intervals(y[kept], values[kept], groups[kept])
                found.append({"model": name, "side": side, "n": len(kept), **numbers})
    return found


def intervals(y: Array, odds: Array, groups: Array) -> dict[str, str]:
    """AUROC and accuracy with the 2.5th and 97.5th percentile over resamples of whole groups."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng = np.random.default_rng(0)
    drawn = [numbers(y, odds)]
    for _ in range(N_RESAMPLES):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        if len(set(y[rows])) == 2:
            drawn.append(numbers(y[rows], odds[rows]))
    low, high = np.percentile(drawn[1:], [2.5, 97.5], axis=0)
    return {name: f"{drawn[0][i]:.3f} [{low[i]:.3f}, {high[i]:.3f}]" for i, name in enumerate(("AUROC", "accuracy"))}


def numbers(y: Array, odds: Array) -> tuple[float, float]:
    """AUROC, which is the share of pairs of a positive and another in their order (Mann and Whitney 1947); accuracy."""
    n = int(y.sum())
    in_order = rankdata(odds)[y].sum() - n * (n + 1) / 2
    return float(in_order / (n * (len(y) - n))), float(((odds > 0) == y).mean())


def told(scores: pd.DataFrame) -> list[str]:
    """A table in Markdown."""
    rows = [list(scores), ["---"] * scores.shape[1], *scores.astype(str).to_numpy().tolist()]
    return ["| " + " | ".join(row) + " |" for row in rows]


if __name__ == "__main__":
    try:
        main()
    except (FeatcacheError, OSError) as error:  # about the file, the output or the language model, in one line
        sys.stderr.write(f"{(str(error) or type(error).__name__).splitlines()[0]}\n")
        sys.exit(getattr(error, "exit_code", 74))
