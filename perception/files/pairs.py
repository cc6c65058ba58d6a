"""Pairing of images and maps, by equal names or by two name patterns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from perception.files.folders import list_files_under, list_images, require_folder
from perception.files.maps import MAP_SUFFIXES
from perception.files.strict_json import quote_value
from perception.types import ConfigError, DataError

_LOSSY_SUFFIXES = (".jpg", ".jpeg")

PairKey = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairPatterns:
    """Folders and name patterns of a reader's config.

    The patterns ``image`` and ``map`` replace ``suffix``: files with equal texts for "*" are a pair. "*" does not match
    "/". A pattern without "/" is for the file name, in any folder. If all given patterns end in "*", extensions are
    ignored.

    Attributes:
        images: folder of the images, relative to the data root.
        maps: folder of the maps, relative to the data root.
        suffix: text that the stem of a map has after the stem of its image.
        image: pattern of the images, or None.
        map: pattern of the maps, or None.
        map_key: name of ``map`` in the recipe.
        map_description: a map in words, for messages.
    """

    images: str
    maps: str
    suffix: str
    image: str | None
    map: str | None
    map_key: str
    map_description: str

    def check(self, where: str) -> None:
        """Raise ConfigError if the patterns cannot make pairs. ``where`` names the reader."""
        for key, pattern in (("image", self.image), (self.map_key, self.map)):
            if pattern is not None and ("*" not in pattern or "**" in pattern or pattern.startswith("/")):
                raise ConfigError(
                    f"{where}: {key} is {pattern!r}. Expected a name with '*' for the part that differs per image, "
                    "for example '*_sat.jpg'."
                )
        stars = {pattern.count("*") for pattern in (self.image, self.map) if pattern is not None}
        if len(stars) > 1:
            raise ConfigError(
                f"{where}: image is {self.image!r} and {self.map_key} {self.map!r}. Expected equally many '*' in both."
            )
        if self.map is not None and self.suffix:
            raise ConfigError(
                f"{where}: both {self.map_key} and suffix give the name of a {self.map_description}. Keep one of them."
            )


def pair_files(root: Path, patterns: PairPatterns, problems: Counter[str]) -> dict[Path, Path]:
    """Find the map of each image.

    Images without a map are not labeled. In a folder with both, a map does not count as an image.

    Args:
        root: data root; links must stay in it.
        patterns: folders and name patterns.
        problems: receives the number of images without a map and of maps without an image.

    Returns:
        Image -> its map.

    Raises:
        DataError: there is no pair, or a file is ambiguous.
    """
    images = require_folder(root, patterns.images, "images")
    maps = require_folder(root, patterns.maps, f"{patterns.map_description}s")
    bare = all(pattern is None or pattern.endswith("*") for pattern in (patterns.image, patterns.map))
    of_image, of_map = (
        _make_key_function(patterns.image, "", bare),
        _make_key_function(patterns.map, patterns.suffix, bare),
    )
    found, beside = list_images(images, root=root), list_files_under(maps, MAP_SUFFIXES, root)
    pictures = {path: key for path, name in found.items() if (key := of_image(name)) is not None}
    files = {path: key for path, name in beside.items() if (key := of_map(name)) is not None}
    pictures, files = _separate_files(pictures, files, images, maps, patterns)
    partners, stems = _index_by_key(files, prefer_lossless=True), _index_by_key(pictures)
    pairs = {picture: partners[key] for key, picture in stems.items() if key in partners}
    if not pairs:
        raise DataError(_describe_no_pairs(patterns, len(stems), images, maps, files))
    for kind, number in (
        (f"images without a {patterns.map_description}", len(stems) - len(pairs)),
        (f"{patterns.map_description}s without an image", len(partners) - len(pairs)),
    ):
        if number:
            problems[kind] += number
    return pairs


def _make_key_function(pattern: str | None, suffix: str, without_extension: bool) -> Callable[[str], PairKey | None]:
    """A function: path under a folder -> key that a pair has in common; None if the path does not match."""
    expression = re.compile("([^/]*)".join(map(re.escape, (pattern or "").split("*"))), re.DOTALL)
    whole = "/" in (pattern or "")

    def key(path: str) -> PairKey | None:
        head, _, name = path.rpartition("/")
        above = (head,) if head else ()
        if pattern is None:
            stem = name[: name.rfind(".")]
            return (*above, stem.removesuffix(suffix)) if stem.endswith(suffix) else None
        whole_name = path if whole else name
        found = expression.fullmatch(whole_name[: whole_name.rfind(".")] if without_extension else whole_name)
        return None if found is None else (*(() if whole else above), *found.groups())

    return key


def _separate_files(
    image_paths: dict[Path, PairKey], files: dict[Path, PairKey], images: Path, maps: Path, patterns: PairPatterns
) -> tuple[dict[Path, PairKey], dict[Path, PairKey]]:
    """Images and maps, without files in both."""
    both = image_paths.keys() & files.keys()
    if not both:
        return image_paths, files
    if patterns.map is not None or patterns.suffix or (images != maps and not images.is_relative_to(maps)):
        return _exclude_paths(image_paths, both), files
    if patterns.image is not None or images != maps:
        return image_paths, _exclude_paths(files, both)
    jpegs = {path for path in both if path.suffix.lower() in _LOSSY_SUFFIXES}  # a.jpg with a.png
    if not jpegs or jpegs == files.keys():
        raise DataError(
            f"{images} holds images and {patterns.map_description}s, and their names do not differ. "
            "Give patterns, for "
            f"example image: '*_image.png', {patterns.map_key}: '*_{patterns.map_key}.png', or a suffix."
        )
    return _exclude_paths(image_paths, both - jpegs), _exclude_paths(files, jpegs)


def _exclude_paths(keys: dict[Path, PairKey], paths: Collection[Path]) -> dict[Path, PairKey]:
    return {path: key for path, key in keys.items() if path not in paths}


def _index_by_key(keys: dict[Path, PairKey], prefer_lossless: bool = False) -> dict[PairKey, Path]:
    """Key -> file. Raises DataError for two files with one key; ``prefer_lossless`` skips a JPEG beside a map."""
    lossy = {path for path in keys if prefer_lossless and path.suffix.lower() in _LOSSY_SUFFIXES}
    found: dict[PairKey, Path] = {}
    for path, key in sorted(keys.items(), key=lambda item: item[0] in lossy):
        if key in found and path in lossy and found[key] not in lossy:
            continue
        if key in found:
            raise DataError(f"{path} and {found[key]} differ only in their extension. Keep one of them.")
        found[key] = path
    return dict(sorted(found.items()))


def _describe_no_pairs(patterns: PairPatterns, count: int, images: Path, maps: Path, files: Collection[Path]) -> str:
    ways = (
        f"image {patterns.image!r}, {patterns.map_key} {patterns.map!r}"
        if patterns.image or patterns.map
        else f"suffix {patterns.suffix!r}"
    )
    others = Counter(path.suffix.lower() for path in sorted(maps.rglob("*"))[:5000] if path.is_file())
    unread = [(end, number) for end, number in others.most_common() if end and end not in MAP_SUFFIXES]
    hint = "Correct the folders or the suffix, or give patterns: image: '*_sat.jpg', "
    hint += f"{patterns.map_key}: '*_{patterns.map_key}.png'."
    if unread and not files:
        end, number = unread[0]
        hint = f"{number} files there end in {quote_value(end)}, which is not supported: convert them to PNG or .npy."
    elif files:
        hint = f"The first is {quote_value(next(iter(files)).name, 120)}. {hint}"
    return (
        f"None of the {count} images under {images} has a {patterns.map_description} of the same name under {maps} "
        f"({len(files)} files, {ways}). {hint}"
    )
