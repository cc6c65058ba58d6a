"""Short trainings and what they log."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_network import build_network, make_balancer, make_batches, train_config
from torch import nn

from perception.engine.train import train


def fit(run: Path, model: nn.Module | None = None, stream=make_batches, **options):
    names = {
        "evaluate",
        "quick_evaluate",
        "resume",
        "force",
        "recipe_text",
        "balancer",
        "schedule",
        "data_fingerprints",
        "callbacks",
    }
    given = {
        "recipe_text": "name: a\n",
        "balancer": make_balancer(),
        **{k: v for k, v in options.items() if k in names},
    }
    settings = train_config(**{k: v for k, v in options.items() if k not in names})
    return train(model or build_network(), stream, settings, run_folder=run, **given)


def events(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


class Died(Exception):
    pass


def dying(at: int):
    def stream(first: int):
        for step, batch in enumerate(make_batches(first), first):
            if step == at:
                raise Died
            yield batch

    return stream


def flat(value, path=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{path}/{i}").items()}
    return {path: value}


def same(one, other) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
