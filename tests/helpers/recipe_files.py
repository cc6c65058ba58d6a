"""The recipes in configs/."""

from __future__ import annotations

from pathlib import Path

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
