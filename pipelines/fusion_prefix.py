"""Vectors of images as the first tokens of a language model, which learns to write the report that follows them.

Each image of a study becomes a few tokens by one linear map; the model reads them and then the report, whose loss alone
counts (after Tsimpoukelli et al. 2021, "Multimodal few-shot learning with frozen language models", but end to end). A
part of fusion_handoff.py.
Letters: b studies of a batch, v images, k tokens of each, d features, h width of the model, t tokens of text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from featcache.fusion import Studies, StudyDataset, collate

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]  # texts to (b, t) tokens and mask
Array = np.ndarray[Any, Any]

PREFIX = 2  # tokens of an image
MOST_TOKENS = 128  # of a report
BATCH = 8
LEARNING_RATE = 2e-3  # of a small model from random weights; a twentieth of it for a real one
END, PAD = 256, 257  # behind the 256 bytes
SMALL = {
    "vocab_size": 258,
    "n_positions": 512,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": END,
    "loss_type": "ForCausalLM",
}
NEEDED = "The language model was left out: it needs transformers, pip install 'featcache[llm]'."


@dataclass(frozen=True)
class Taught:
    """What came of it.

    Attributes:
        curve: the loss per token of each step.
        held: of studies it has not learnt from, by whose images; empty where there were none.
        name: the model.
    """

    curve: pd.DataFrame
    held: dict[str, float]
    name: str

    def told(self) -> list[str]:
        """Lines for a page."""
        if self.curve.empty:
            return [NEEDED]
        n = max(1, len(self.curve) // 10)
        first, last = (float(part.mean()) for part in (self.curve["loss"][:n], self.curve["loss"][-n:]))
        steps = f"{len(self.curve)} steps of {BATCH} reports"
        said = f"{self.name}, {steps}: loss per token {first:.3f} at first, {last:.3f} at last"
        others = ", ".join(f"{value:.3f} with {whose}" for whose, value in self.held.items())
        return [said + (f"; on test studies {others}." if others else ".")]


class Projector(nn.Module):
    """(b, v, d) vectors to (b, v k, h) tokens."""

    def __init__(self, d: int, h: int, scale: float) -> None:
        super().__init__()
        self.scale, self.h = scale, h
        self.map = nn.Linear(d, PREFIX * h)

    def forward(self, vectors: Tensor) -> Tensor:
        b, v, _ = vectors.shape
        return self.map(vectors / self.scale).reshape(b, v * PREFIX, self.h)  # type: ignore[no-any-return]


def taught(studies: Studies, train: Array, held: Array, texts: Sequence[str], name: str | None, steps: int) -> Taught:
    """Trains projector and language model, end to end.

    Args:
        studies: the file.
        train, held: rows of it, of other groups.
        texts: the names of the texts, which are written one behind the other.
        name: of a model on the hub; None for a small one with random weights.
        steps: how many batches.
    """
    try:
        model, encode = language_model(name)
    except ImportError:
        return Taught(pd.DataFrame({"step": [], "loss": []}), {}, "")
    torch.manual_seed(0)
    vectors = studies.vectors()[train]
    scale = float(np.sqrt((vectors**2).mean())) or 1.0
    projector = Projector(studies.n_features, model.get_input_embeddings().embedding_dim, scale)
    rate = LEARNING_RATE if name is None else LEARNING_RATE / 20
    learning = [*projector.parameters(), *model.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=rate)
    losses = []
    for batch in batches(StudyDataset(studies, train.tolist()), steps):
        loss = loss_of(projector, model, encode, batch, texts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        losses.append(loss.item())
    curve = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
    said = on_held(projector, model, encode, StudyDataset(studies, held.tolist()), texts) if len(held) > 1 else {}
    return Taught(curve, said, name or "a small causal language model with random weights")


def language_model(name: str | None) -> tuple[Any, Encode]:
    """The model, and how text becomes its tokens: bytes for the small one, with an end and padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

    if name is None:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**SMALL, eos_token_id=END, pad_token_id=PAD)), as_bytes
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
        how = {"padding": True, "truncation": True, "max_length": MOST_TOKENS, "return_tensors": "pt"}
        found = tokenizer([text + tokenizer.eos_token for text in texts], **how)
        return found["input_ids"], found["attention_mask"].bool()

    return AutoModelForCausalLM.from_pretrained(name), encode


def as_bytes(texts: list[str]) -> tuple[Tensor, Tensor]:
    """(b, t) bytes of the texts and (b, t) which are there."""
    encoded = [[*text.encode("utf-8", "surrogateescape")[: MOST_TOKENS - 1], END] for text in texts]
    t = max(map(len, encoded))
    tokens = torch.tensor([[*part, *[PAD] * (t - len(part))] for part in encoded])
    return tokens, tokens != PAD


def batches(dataset: StudyDataset, steps: int) -> Any:
    """So many batches, each study as often as any other."""
    order, rng = [], np.random.default_rng(0)
    for _ in range(steps):
        if len(order) < min(BATCH, len(dataset)):
            order += rng.permutation(len(dataset)).tolist()
        yield collate([dataset[i] for i in order[:BATCH]])
        order = order[BATCH:]


def loss_of(
    projector: Projector, model: Any, encode: Encode, batch: dict[str, Any], texts: Sequence[str], images: Any = None
) -> Tensor:
    """Cross entropy per token of the reports; `images` are the rows of the batch whose images stand before each."""
    written = ["\n".join(parts) for parts in zip(*(batch["texts"][name] for name in texts), strict=True)]
    tokens, there = encode(written)
    chosen = slice(None) if images is None else images
    prefix = projector(batch["vectors"][chosen])  # (b, v k, h)
    seen = batch["image_mask"][chosen].repeat_interleave(PREFIX, dim=1)  # (b, v k)
    start = torch.full(
        (len(tokens), 1), start_of(model)
    )  # the first word is said here, where all images have been read
    embed = model.get_input_embeddings()
    embedded = torch.cat([prefix, embed(start), embed(tokens)], dim=1)
    ignored = torch.full((len(tokens), prefix.shape[1] + 1), -100)
    labels = torch.cat([ignored, tokens.masked_fill(~there, -100)], dim=1)
    mask = torch.cat([seen, torch.ones_like(start, dtype=torch.bool), there], dim=1).long()
    return model(inputs_embeds=embedded, attention_mask=mask, labels=labels).loss  # type: ignore[no-any-return]


def start_of(model: Any) -> int:
    """The token with which a text begins."""
    config = model.config
    return int(config.eos_token_id if config.bos_token_id is None else config.bos_token_id)


def on_held(
    projector: Projector, model: Any, encode: Encode, dataset: StudyDataset, texts: Sequence[str]
) -> dict[str, float]:
    """The loss of held studies with their own images, and with those of the next of them."""
    model.eval()
    batch = collate([dataset[i] for i in range(min(len(dataset), 64))])
    others = torch.arange(len(batch["study_id"])).roll(1)
    with torch.no_grad():
        own, strange = (float(loss_of(projector, model, encode, batch, texts, rows)) for rows in (None, others))
    return {"their own images": own, "those of others": strange}
