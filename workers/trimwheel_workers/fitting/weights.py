"""Train the encoder: one joint loss over all exits, packed batches.

Products are in the type that is the faster one on this processor; weights and sums in fp32.

Batches are made of texts of similar length drawn at random, so that attention runs in few dense
blocks. A checkpoint (safetensors, replaced atomically) is written after each epoch; a run that was
interrupted goes on from it and ends at the same weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimwheel_workers.fitting.recipe import Recipe
from trimwheel_workers.model.config import Signature
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.measured import Dtype
from trimwheel_workers.model.packing import pack

Example = tuple[list[int], int]
Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

CHECKPOINT = "checkpoint.safetensors"
SORTED_BATCHES = 24
"""Batches that are sorted by length together: more means less padding-like waste, less random."""


def train_weights(
    encoder: Encoder,
    examples: Sequence[Example],
    recipe: Recipe,
    seed: int,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
    dtype: Dtype = "float32",
) -> None:
    """Fit all weights but the second router, with products in ``dtype``.

    ``state`` is a folder for the checkpoint.
    """
    optimizer = _optimizer(encoder, recipe)
    per_epoch = math.ceil(len(examples) / recipe.batch)
    total = per_epoch * recipe.epochs
    checkpoint = None if state is None else state / CHECKPOINT
    step = _resume(checkpoint, encoder, optimizer)
    routing = _RoutingProbe(encoder)
    encoder.train()
    for epoch in range(step // per_epoch, recipe.epochs):
        rng = random.Random(f"{seed}/{epoch}")
        for batch in _batches(examples, recipe.batch, rng):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step / total, recipe.warmup)
            lone = rng.random() < recipe.lone_expert_share
            signature = Signature(1, 0.0) if lone else encoder.config.dense_signature
            logits, labels = _logits(encoder, batch, signature, dtype)
            loss = _loss(logits, labels, recipe, routing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            step += 1
            if progress is not None:
                progress(step, total)
        if checkpoint is not None:
            _store(checkpoint, encoder, optimizer, step)
    routing.remove()


def _logits(
    encoder: Encoder, batch: Sequence[Example], signature: Signature, dtype: Dtype
) -> tuple[list[Tensor], Tensor]:
    """Logits [N, C] of every exit and full depth, and labels [N], in stored order."""
    packed = pack([tokens for tokens, _ in batch])
    labels = torch.tensor([batch[row][1] for row in packed.order])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        return encoder(packed, signature), labels


def _loss(
    logits: Sequence[Tensor], labels: Tensor, recipe: Recipe, routing: _RoutingProbe
) -> Tensor:
    """Weighted cross-entropy of every exit plus the router's terms."""
    losses = [
        F.cross_entropy(x.float(), labels, label_smoothing=recipe.label_smoothing) for x in logits
    ]
    weighted = sum(w * x for w, x in zip(recipe.exit_weights, losses, strict=True))
    imbalance, entropy = routing.losses()
    routed = recipe.balance * imbalance + recipe.sharpness * entropy
    return weighted / sum(recipe.exit_weights) + routed


class _RoutingProbe:
    """Watches the mixture layer's input to compute the router's losses."""

    def __init__(self, encoder: Encoder) -> None:
        self._mixture = encoder.mixture
        self._top_k = encoder.config.default_top_k
        self._seen: Tensor | None = None
        self._hook = self._mixture.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, object]) -> None:
        self._seen = inputs[0]

    def losses(self) -> tuple[Tensor, Tensor]:
        """Load imbalance (Switch Transformer; 1 when even) and mean entropy of the choice
        (nats)."""
        assert self._seen is not None, "the mixture layer ran"
        probabilities = torch.softmax(self._mixture.logits(self._seen, 0.0), dim=-1)
        chosen = probabilities.topk(self._top_k, dim=-1).indices
        experts = probabilities.shape[1]
        share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        entropy = torch.special.entr(probabilities).sum(1).mean()
        return experts * (share * probabilities.mean(0)).sum(), entropy

    def remove(self) -> None:
        """Take the hook off."""
        self._hook.remove()


def _optimizer(encoder: Encoder, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; the second router is not trained here, and norms and biases do not decay."""
    named = [(n, p) for n, p in encoder.named_parameters() if ".routers.1." not in n]
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _schedule(done: float, warmup: float) -> float:
    """Linear up, then linear down to zero."""
    return done / warmup if done < warmup else (1.0 - done) / (1.0 - warmup)


def _batches(examples: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    order = list(range(len(examples)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), size * SORTED_BATCHES):
        chunk = sorted(
            order[start : start + size * SORTED_BATCHES], key=lambda i: len(examples[i][0])
        )
        batches.extend(chunk[i : i + size] for i in range(0, len(chunk), size))
    rng.shuffle(batches)
    for batch in batches:
        yield [examples[i] for i in batch]


def _store(path: Path, encoder: Encoder, optimizer: torch.optim.AdamW, step: int) -> None:
    """Weights, Adam's two moments and the step, written aside and renamed."""
    tensors = {f"model.{name}": value.contiguous() for name, value in encoder.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name in ("step", "exp_avg", "exp_avg_sq"):
            tensors[f"adam.{index}.{name}"] = state[name].contiguous()
    tensors["step"] = torch.tensor([step])
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    save_file(tensors, aside)
    aside.replace(path)


def _resume(path: Path | None, encoder: Encoder, optimizer: torch.optim.AdamW) -> int:
    """Load a checkpoint if there is one; returns the steps already done."""
    if path is None or not path.exists():
        return 0
    tensors = load_file(path)
    step = int(tensors.pop("step"))
    encoder.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    adam: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            adam.setdefault(int(index), {})[name] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": adam, "param_groups": whole["param_groups"]})
    return step
