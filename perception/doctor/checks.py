"""Findings about one source: images, boxes, segmentation masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from perception.data.formats.boxes import ROTATED_BOXES
from perception.data.formats.coco import BRUSHED_CROWDS
from perception.doctor import class_checks, depth_checks
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import DataPlan
from perception.doctor.findings import Finding, format_percent, sanitize_text
from perception.doctor.statistics import SMALL_BOX_SIDE, BoxStatistics, DepthStatistics, SegmentationStatistics
from perception.files.palettes import MISMATCHED_PALETTES
from perception.ops.image import compute_letterbox

_UNANNOTATED_RATIO = 0.2
"""Minimum share of images without annotations for a warning."""


def check_source(state: SourceState, plan: DataPlan) -> list[Finding]:
    """Return all findings about one source."""
    if state.source is None:
        return state.findings
    found = [*state.findings, *state.issues.to_findings(state.where, state.num_examined)]
    found += [
        *_check_reader_problems(state),
        *_check_unannotated(state),
        *_check_images(state),
        *_check_input_fit(state, plan),
    ]
    for task, statistics in state.statistics.items():
        if isinstance(statistics, BoxStatistics):
            found += _check_boxes(state, plan, task, statistics)
        elif isinstance(statistics, SegmentationStatistics):
            found += _check_masks(state, plan, task, statistics)
            found += [*class_checks.check_labeled_classes(state, plan, task), *_check_label_ids(state, task)]
        elif isinstance(statistics, DepthStatistics):
            found += depth_checks.check_depth(state, plan, task, statistics)
    return found


def _check_reader_problems(state: SourceState) -> Iterator[Finding]:
    """Findings about what the readers skipped or repaired while opening."""
    assert state.source is not None
    boxes = sum(int(s.boxes_per_class.sum()) for s in state.statistics.values() if isinstance(s, BoxStatistics))
    for kind, count in state.source.problems.items():
        share = count / max(1, count + boxes)
        what = f"{sanitize_text(kind, 120).capitalize()}: {count:,}."
        if "missing" in kind:
            mend = "Restore the files, or remove their records from the annotations."
            yield Finding("error", "missing_image", state.where, what, mend, count, tuple(state.log_messages[:5]))
        elif "box" in kind and share > 0.3 and count >= 10 and len(state.selected_indices) == state.num_images:
            what += (
                f" That is {format_percent(share, 1)} of the boxes: they are "
                "probably not in the box format that this reader expects."
            )
            mend = (
                "Check for corners instead of width and height (or the reverse), and for pixels of another image size."
            )
            yield Finding("error", "misread_boxes", state.where, what, mend, count)
        elif kind == ROTATED_BOXES:
            what = f"{what} It is larger than the object."
            yield Finding("note", "rotated_boxes", state.where, what, "", count)
        elif kind == BRUSHED_CROWDS:
            what += f" That is {format_percent(share, 1)} of the annotations. They are not trained and not counted."
            mend = "If CVAT's brush painted single objects here, give this reader crowds: object."
            yield Finding("warning", "brushed_objects", state.where, what, mend, count)
        elif kind == MISMATCHED_PALETTES:
            what = f"{what} The reader uses the index, not the color. Does an index mean the same class in every file?"
            mend = "If the colors encode the classes, give segmentation_masks the list colors: {name: [R, G, B]}."
            yield Finding("warning", "inconsistent_palettes", state.where, what, mend, count)
        elif "stand for nothing" in kind:
            yield Finding("note", "unused_categories", state.where, what, "", count)
        else:
            yield Finding("warning", "reader_problems", state.where, what, _suggest_fix(kind), count)


def _check_unannotated(state: SourceState) -> Iterator[Finding]:
    """Images that the label files list without annotations, if there are many of them."""
    assert state.source is not None
    for reader in state.source.readers:
        count = getattr(reader, "num_unannotated", 0)
        total = len(reader.images)
        if count > 2 and count >= _UNANNOTATED_RATIO * total:
            what = (
                f"{count:,} of {total:,} images have no annotation "
                f"({format_percent(count, total)}). They are trained as background. "
            )
            what += "Are they background, or not labeled yet?"
            mend = "If not labeled, give this reader unlabeled: skip. If they show no objects, unlabeled: empty."
            yield Finding("warning", "unannotated_images", state.where, what, mend, count)


def _suggest_fix(problem: str) -> str:
    if "left out" in problem:
        return "Label them, or treat them as images without objects: unlabeled: empty."
    if "skipped" in problem or "clipped" in problem:
        return "Check some of them: the labels may not belong to these images."
    if "without" in problem:
        return "They are not used. Add the missing files, or correct the folders and the suffix."
    return "Check whether this is intended."


def _check_images(state: SourceState) -> Iterator[Finding]:
    if state.aborted:
        rest = len(state.selected_indices) - state.num_examined
        what = f"Too many images failed. {rest:,} images were not examined."
        mend = "Fix the reading errors first, then run the doctor again."
        yield Finding("error", "aborted", state.where, what, mend, rest)
    if state.num_unlisted:
        what = f"{state.num_unlisted:,} image files in this source's folders belong to no source of the recipe."
        yield Finding("note", "unlisted_images", state.where, what, "", state.num_unlisted)
    turned = state.traits.get("rotated by EXIF", 0)
    if turned:
        what = f"{turned:,} of {state.num_examined:,} images have an EXIF rotation. They are read upright."
        mend = "Check the previews: boxes and maps must match the upright image."
        yield Finding("warning", "rotated_images", state.where, what, mend, turned)
    for trait, count in (state.traits - Counter({"rotated by EXIF": turned})).items():
        how = {"gray": "gray; they are read as RGB", "16 bit": "16-bit; they are rescaled to 8 bits"}
        said = how.get(
            trait, f"{sanitize_text(trait, 60)}: the extension is wrong; the content decides how they are read"
        )
        what = f"{count:,} of {state.num_examined:,} images are {said}."
        yield Finding("note", "unusual_images", state.where, what, "", count)


def _check_input_fit(state: SourceState, plan: DataPlan) -> Iterator[Finding]:
    """How well the images fit the network's input."""
    total = sum(state.image_sizes.values())
    if not total or not plan.has_valid_size:
        return
    frames = [(compute_letterbox(size, plan.data.size), count) for size, count in state.image_sizes.items()]
    used = sum(f.placement[2] * f.placement[3] * n for f, n in frames) / (total * plan.data.size[0] * plan.data.size[1])
    larger = sum(max(f.scale) * n for f, n in frames) / total
    height, width = state.image_sizes.most_common(1)[0][0]
    room = f"data.size {list(plan.data.size)} (height, width)"
    tiny = sum(count for size, count in state.image_sizes.items() if min(size) < 32)
    if tiny:
        what = f"{tiny:,} images are less than 32 pixels wide or high."
        yield Finding("warning", "tiny_images", state.where, what, "Check whether these files are images.", tiny)
    if used < 0.6:
        what = (
            f"Only {format_percent(used, 1)} of the network's input is image, the rest is padding: {width} x {height} "
        )
        what += f"differs in aspect ratio from {room}."
        mend = "Choose a data.size with the images' aspect ratio. Its order is height, width."
        yield Finding("warning", "wasted_input", state.where, what, mend)
    if larger > 2:
        what = f"The images ({width} x {height}) are upscaled {larger:.1f} times to {room}."
        mend = "A smaller data.size loses no detail and is faster."
        yield Finding("warning", "upscaled_images", state.where, what, mend)


def _check_boxes(state: SourceState, plan: DataPlan, task: str, statistics: BoxStatistics) -> Iterator[Finding]:
    count = int(statistics.boxes_per_class.sum())
    if not count:
        what = f"None of the {statistics.num_images:,} images labeled for '{task}' has a box."
        mend = "Check the annotation file and rename."
        yield Finding("warning", "no_boxes", state.where, what, mend, statistics.num_images)
    elif statistics.max_coordinate <= 1.5:
        what = (
            f"All {count:,} boxes of '{task}' lie within {statistics.max_coordinate:.2g} "
            "pixels of the top left corner: they are "
        )
        what += "fractions of the image's size, not pixels."
        mend = "Multiply them by the images' width and height."
        yield Finding("error", "normalized_boxes", state.where, what, mend, count)
    else:
        yield from _check_box_shapes(state, task, statistics, count)
        yield from _check_small_boxes(state, plan, task, statistics, count)


def _check_box_shapes(state: SourceState, task: str, statistics: BoxStatistics, count: int) -> Iterator[Finding]:
    asked = any(True for _ in _check_unannotated(state))
    for kind, number, total, least, what, mend in (
        (
            "mostly_empty",
            statistics.num_empty,
            statistics.num_images,
            0.8,
            "images have no box",
            "Check whether boxes are missing.",
        ),
        (
            "full_image_boxes",
            statistics.num_full_image,
            count,
            0.1,
            "boxes cover the whole image",
            "Check whether they mark objects.",
        ),
        (
            "elongated_boxes",
            statistics.num_elongated,
            count,
            0.05,
            "boxes have an aspect ratio above 20",
            "Check whether x and y are swapped.",
        ),
    ):
        if number > least * total and number > 2 and not (asked and kind == "mostly_empty"):
            text = f"{number:,} of {total:,} {what} ({format_percent(number, total)}, '{task}')."
            yield Finding("warning", kind, state.where, text, mend, number)


def _check_small_boxes(
    state: SourceState, plan: DataPlan, task: str, statistics: BoxStatistics, count: int
) -> Iterator[Finding]:
    small = int(statistics.small_per_class.sum())
    if small <= 0.3 * count or not plan.has_valid_size:
        return
    often = [k for k in np.argsort(-statistics.small_per_class)[:4] if statistics.small_per_class[k]]
    shares = [
        f"{sanitize_text(plan.classes[task][k], 40)} "
        f"{format_percent(int(statistics.small_per_class[k]), int(statistics.boxes_per_class[k]))}"
        for k in often
    ]
    what = (
        f"{small:,} of {count:,} boxes of '{task}' ({format_percent(small, count)}) "
        f"are smaller than {SMALL_BOX_SIDE:g} pixels (square root of "
    )
    what += f"the area) at the network's input of {plan.data.size[1]} x {plan.data.size[0]}: {', '.join(shares)}."
    mend = "Increase data.size, add a finer stride to the task, or remove these classes."
    yield Finding("warning", "small_boxes", state.where, what, mend, small)


def _check_masks(
    state: SourceState, plan: DataPlan, task: str, statistics: SegmentationStatistics
) -> Iterator[Finding]:
    present = np.flatnonzero(statistics.pixels_per_class)
    void = statistics.num_ignored_pixels / max(1, statistics.num_ignored_pixels + statistics.num_labeled_pixels)
    if (
        len(present) == 1
        and statistics.pixels_per_class[present[0]] == statistics.num_labeled_pixels
        and len(plan.classes[task]) > 1
        and statistics.num_images > 1
    ):
        what = (
            f"All segmentation masks of '{task}' contain only one class, "
            f"'{sanitize_text(plan.classes[task][present[0]], 60)}'"
        )
        what += f", and ignored pixels ({format_percent(void, 1)})." if statistics.num_ignored_pixels else "."
        mend = "If another value encodes a class, give the reader values: {0: ..., 255: ...}."
        yield Finding("warning", "one_class_masks", state.where, what, mend, statistics.num_images)
    elif void > 0.5 and statistics.num_empty < statistics.num_images:
        what = f"{format_percent(void, 1)} of the pixels of '{task}' are ignored."
        mend = "Check the class list, rename and ignore. The value 255 is always ignored."
        yield Finding("warning", "mostly_ignored", state.where, what, mend)
    if statistics.num_transitions > 200 and statistics.num_thin_transitions > 0.2 * statistics.num_transitions:
        share = format_percent(statistics.num_thin_transitions, statistics.num_transitions)
        what = f"{share} of the class borders in the masks of '{task}' contain one or two pixels of a third class. "
        what += "Resizing with interpolation, or JPEG compression, causes this."
        mend = "Regenerate the masks from the originals. Resize with nearest neighbor and save as PNG."
        yield Finding("warning", "interpolated_masks", state.where, what, mend)


def _check_label_ids(state: SourceState, task: str) -> Iterator[Finding]:
    """Cityscapes label-id files read with the train-id class list. Some maps then load without an error."""
    assert state.source is not None
    for reader in state.source.readers:
        config, names = getattr(reader, "config", None), getattr(reader, "names", None)
        suffix = str(getattr(config, "suffix", ""))
        training = isinstance(names, dict) and [names.get(k) for k in range(3)] == ["road", "sidewalk", "building"]
        if task in reader.tasks and "labelids" in suffix.lower() and training:
            what = (
                f"The suffix {sanitize_text(suffix, 60)!r} names Cityscapes' label ids (0 to 33), but the class list "
            )
            what += "starts with road, as the train ids do. In the label ids, road is 7, not 0."
            mend = "Use format: cityscapes, or files *_labelTrainIds.png."
            yield Finding("error", "label_ids", state.where, what, mend)
