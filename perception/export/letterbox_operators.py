"""The letterbox and its inverse as ONNX operators, in ONNX's text form; `embedded_preprocessing` joins them."""

from __future__ import annotations

MODEL_HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>\n'

LETTERBOX = """
place (uint8[batch, height, width, 3] images)
  => (float[batch, 3, high, wide] letterboxed, int64[2] source, int64[2] place) {{
  levels = Cast <to=1> (images)
  planes = Transpose <perm=[0, 3, 1, 2]> (levels)
  source = Shape <start=2, end=4> (planes)
  size = Constant <value_ints = [{height}, {width}]> ()
  across = Constant <value_ints = [{width}, {height}]> ()
  order = Constant <value_ints = [1, 0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  other = Gather <axis=0> (source, order)
  crossed = Mul (source, across)
  {fitting}
  near = Max (fitting, one)
  place = Min (near, size)
  five = Constant <value_ints = [5]> ()
  seven = Constant <value_ints = [7]> ()
  scaled = Mul (source, five)
  low = Mul (place, seven)
  high_bound = Mul (low, two)
  over_low = GreaterOrEqual (scaled, low)
  over_high = GreaterOrEqual (scaled, high_bound)
  low_each = Cast <to=7> (over_low)
  high_each = Cast <to=7> (over_high)
  is_low = ReduceMax <keepdims=1> (low_each)
  is_high = ReduceMax <keepdims=1> (high_each)
  {shrinkage}
  many = ReduceMax <keepdims=1> (shrinkage)
  rest = Sub (many, two)
  times = Mul (is_high, rest)
  first = Add (one, is_low)
  k = Add (first, times)
  enlarged = Mul (place, k)
  batch = Shape <start=0, end=1> (planes)
  three = Constant <value_ints = [3]> ()
  sizes = Concat <axis=0> (batch, three, enlarged)
  {sizes}
  resized = Resize <mode="linear", coordinate_transformation_mode="half_pixel"> (planes, , , four_sizes)
  zero_at = Constant <value_ints = [0]> ()
  high = Gather <axis=0> (place, zero_at)
  wide = Gather <axis=0> (place, one)
  cells = Concat <axis=0> (batch, three, high, k, wide, k)
  tiles = Reshape (resized, cells)
  axes = Constant <value_ints = [3, 5]> ()
  means = ReduceMean <keepdims=0> (tiles, axes)
  room = Sub (size, place)
  zeros = Constant <value_ints = [0, 0, 0, 0, 0, 0]> ()
  pads = Concat <axis=0> (zeros, room)
  gray = Constant <value_float = {pad}.0> ()
  letterboxed = Pad <mode="constant"> (means, pads, gray)
}}
"""
"""Whole numbers alone decide where an image goes: no rounding of fractions, the same on every machine."""

ROUNDED_RATIO = """
  {name}_two = Constant <value_ints = [2]> ()
  {name}_twice = Mul ({above}, {name}_two)
  {name}_above = Add ({name}_twice, {below})
  {name}_below = Mul ({below}, {name}_two)
  {name}_up = Div ({name}_above, {name}_below)
  {name}_back = Mul ({name}_up, {name}_below)
  {name}_tie = Equal ({name}_back, {name}_above)
  {name}_is_tie = Cast <to=7> ({name}_tie)
  {name}_half = Div ({name}_up, {name}_two)
  {name}_even = Mul ({name}_half, {name}_two)
  {name}_odd = Sub ({name}_up, {name}_even)
  {name}_less = Mul ({name}_is_tie, {name}_odd)
  {name} = Sub ({name}_up, {name}_less)
"""
"""``above / below`` of positive whole numbers, rounded to the nearest, halves to even."""

FIXED_RANK_SIZES = """
  length = Constant <value_ints = [4]> ()
  four_sizes = Reshape (sizes, length)
"""
"""So that ONNX Runtime before 1.24, which follows no sizes through Concat, knows how many there are."""

SCALE_FACTORS = """
scales (int64[2] source, int64[2] place) => (float[4] scale, float[4] border, float[1] mean_scale) {{
  source_float = Cast <to=1> (source)
  place_float = Cast <to=1> (place)
  ratio = Div (place_float, source_float)
  order = Constant <value_ints = [1, 0, 1, 0]> ()
  scale = Gather <axis=0> (ratio, order)
  border = Gather <axis=0> (source_float, order)
  mean_scale = ReduceMean <keepdims=1> (ratio)
}}
"""

RESTORE_BOXES = """
boxes (float[batch, limit, 4] boxes, float[batch, limit] scores, int64[batch, limit] labels, float[4] scale,
       float[4] border)
  => (float[batch, limit, 4] found_boxes, float[batch, limit] found_scores, int64[batch, limit] found_labels) {{
  moved = Div (boxes, scale)
  zero = Constant <value_float = 0.0> ()
  low = Max (moved, zero)
  clipped = Min (low, border)
  axis = Constant <value_ints = [2]> ()
  start = Constant <value_ints = [0]> ()
  middle = Constant <value_ints = [2]> ()
  stop = Constant <value_ints = [4]> ()
  corner = Slice (clipped, start, middle, axis)
  opposite = Slice (clipped, middle, stop, axis)
  sides = Sub (opposite, corner)
  shortest = ReduceMin <keepdims=0> (sides, axis)
  solid = Greater (shortest, zero)
  kept = Cast <to=1> (solid)
  kept_columns = Unsqueeze (kept, axis)
  found_boxes = Mul (clipped, kept_columns)
  found_scores = Mul (scores, kept)
  kept_number = Cast <to=7> (solid)
  found_labels = Mul (labels, kept_number)
}}
"""

RESTORE_CLASS_IDS = """
classes (float[batch, H, W] values, int64[2] source, int64[2] place) => ({dtype}[batch, height, width] found) {{
  {rows}
  {columns}
  tall = Gather <axis=1> (values, rows)
  whole = Gather <axis=2> (tall, columns)
  found = Cast <to={number}> (whole)
}}
"""

NEAREST_INDICES = """
  {name}_at = Constant <value_int = {at}> ()
  {name}_zero = Constant <value_int = 0> ()
  {name}_one = Constant <value_int = 1> ()
  {name}_two = Constant <value_int = 2> ()
  {name}_source = Gather <axis=0> (source, {name}_at)
  {name}_place = Gather <axis=0> (place, {name}_at)
  {name}_range = Range ({name}_zero, {name}_source, {name}_one)
  {name}_twice = Mul ({name}_range, {name}_two)
  {name}_middle = Add ({name}_twice, {name}_one)
  {name}_scaled = Mul ({name}_middle, {name}_place)
  {name}_whole = Mul ({name}_source, {name}_two)
  {name} = Div ({name}_scaled, {name}_whole)
"""

RESTORE_VALUES = """
quantity (float[batch, H, W] values, int64[2] source, int64[2] place, float[1] mean_scale)
  => (float[batch, height, width] found) {{
  axis = Constant <value_ints = [1]> ()
  axes = Constant <value_ints = [1, 2]> ()
  start = Constant <value_ints = [0, 0]> ()
  cut = Slice (values, start, place, axes)
  planes = Unsqueeze (cut, axis)
  head = Shape <start=0, end=2> (planes)
  sizes = Concat <axis=0> (head, source)
  {sizes}
  resized = Resize <mode="linear", coordinate_transformation_mode="half_pixel"> (planes, , , four_sizes)
  flat = Squeeze (resized, axis)
  found = {scaling}
}}
"""
