"""The recipe of the studies' tests."""

from __future__ import annotations

RECIPE = """
data:
  size: [64, 64]
  workers: 0
  augment: {flip: 0.5}
  train:
    - name: scenes
      weight: 3
      labels: [{format: image_labels, images: leftImg8bit/train, csv: annotations/scenes_train.csv}]
    - name: maps
      labels: [{format: cityscapes, root: ., split: train, ignore: rest}]
  validation:
    - name: all
      labels:
        - {format: image_labels, images: leftImg8bit/val, csv: annotations/scenes_val.csv}
        - {format: cityscapes, root: ., split: val, ignore: rest}
tasks:
  depth: {limits: [1, 80]}
  classification: {classes: [clear, overcast, rain, fog, dusk, night]}
model: {backbone: {name: test_efficientnet, weights: none}}
train: {steps: 6, batch_size: 4, warmup_steps: 1, threads: 1, tensorboard: false, log_every: 2}
"""
