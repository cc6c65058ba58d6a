"""Spoiled trees of every format: samples, or an error that names the file; nothing else, in bounded time and memory."""

from __future__ import annotations

import contextlib
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_corruption import corrupt_tree, limit_resources
from data_trees import CLASSES, all_trees, check_annotation, open_tree

from perception.data import DATASETS
from perception.types import ConfigError, DataError

TREES = all_trees()
SECONDS, MEMORY = 20, 2 << 30
EVERY = 30
"""Cases of a format in the default run."""


def read_everything(root: Path, config: dict) -> int:
    """Open a tree and read all that it has. Returns how many samples came whole."""
    try:
        source = open_tree(root, config)
    except (DataError, ConfigError) as error:
        check_message(error, root)
        return 0
    pickle.loads(pickle.dumps(source))
    whole = 0
    for index in range(len(source)):
        assert isinstance(source.image_id(index), str)
        source.image_id(index).encode()
        try:
            sample = source.load_sample(index)
        except DataError as error:
            check_message(error, root)
            with contextlib.suppress(DataError):
                source.read_annotations(index)
            continue
        assert sample.image.dtype == np.uint8
        assert sample.image.ndim == 3
        for task, annotation in sample.annotations.items():
            check_annotation(annotation, sample.image.shape[:2], CLASSES[task])
        whole += 1
    return whole


def check_message(error: Exception, root: Path) -> None:
    """It can be written to a log, is short, and names a file or folder of the data."""
    text = str(error)
    text.encode()
    assert len(text) < 4000, f"a message of {len(text)} characters: {text[:300]}"
    assert str(root) in text, text


def attempt(valid: Path, config: dict, seed: int, at: Path) -> str:
    """Spoil a copy of a tree and read it. Returns what was done."""
    root = at / str(seed)
    shutil.copytree(valid, root, symlinks=True)
    try:
        done = corrupt_tree(root, random.Random(seed))
        with limit_resources(SECONDS, MEMORY):
            try:
                read_everything(root, config)
            except BaseException as error:
                error.add_note(f"seed {seed}: {done!a}")
                raise
    finally:
        shutil.rmtree(root)
    return done


@pytest.mark.fault("D13")
@pytest.mark.parametrize("format", TREES)
def test_spoiled_trees_give_samples_or_errors_that_name_them(format, tmp_path):
    config = TREES[format](tmp_path / "valid")
    assert read_everything(tmp_path / "valid", config) > 0
    for seed in range(EVERY):
        attempt(tmp_path / "valid", config, seed, tmp_path)


@pytest.mark.fault("D13")
@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
@pytest.mark.parametrize("format", TREES)
def test_thousands_of_spoiled_trees(format, block, tmp_path):
    config = TREES[format](tmp_path / "valid")
    for seed in range(1000 * block + 1000, 1000 * block + 1250):
        attempt(tmp_path / "valid", config, seed, tmp_path)


def test_every_format_is_spoiled():
    assert set(TREES) >= set(DATASETS)
