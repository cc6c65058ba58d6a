"""Settings of a training."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from perception.config import config_dataclass
from perception.engine import optim
from perception.engine.precision import Precision

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

DEFAULT_EVALUATIONS, MIN_EVALUATION_INTERVAL = 12, 10
"""Default number of evaluations in a run, and the fewest steps between two of them."""


@config_dataclass
class TrainConfig:
    """Settings of a training.

    Attributes:
        steps: optimizer steps.
        batch_size: images per step, over all ranks.
        optimizer: "adamw", or one of timm's by name: sgd, lamb, adopt, lion, muon, nadamw, ...
        lr: learning rate.
        weight_decay: weight decay of the optimizer.
        backbone_lr_scale: the backbone trains at ``lr * backbone_lr_scale``, because it is pretrained. Use 1 if it
            is not.
        balance_lr_scale: parameters of the balancer (noise levels of `uncertainty`, scales of `imtl_l` and `imtl`)
            train at ``lr * balance_lr_scale``. A step changes them by about that much, so a short training needs a
            factor above 1 for them to matter.
        warmup_steps: steps of linear warm-up; then half a cosine down to ``lr * lr_floor`` at the last step.
        lr_floor: final learning rate, as a fraction of ``lr``.
        clip_norm: largest gradient norm; 0 means no clipping.
        ema_decay: decay of the moving average that is evaluated, saved and exported; warm-up 1 - (1 + step)^(-2/3).
        sync_batchnorm: in training, BatchNorm normalizes over the images of all ranks instead of each rank's own.
        precision: "auto" means bfloat16 if the device supports it in hardware.
        threads: CPU threads per process; None means torch's default.
        log_every: steps between log events; 0 means only at the end.
        log_gradients_every: steps between measurements of the tasks' gradients (norms, cosines, conflicts); 0: never.
        evaluate_every: steps between evaluations; 0 means only at the end, None about 12 times per run, at least 10
            steps apart. Negative transfer is detected from the 5th evaluation on.
        quick_images: number of held-out images for evaluations during training, spread evenly over each source and
            always the same. They select the best checkpoint. The weights of the last step and the best ones are also
            evaluated on all images. 0 means every evaluation uses all images.
        checkpoint_every: steps between checkpoints; 0 means only at the end.
        keep_checkpoints: number of newest checkpoints to keep, at least 2; the best one is always kept.
        max_skipped_steps: the training fails after this many steps in a row without finite losses and gradients.
        tensorboard: also write TensorBoard files.
    """

    steps: Annotated[int, Field(gt=0, le=10**9)] = 1000
    batch_size: Annotated[int, Field(gt=0, le=1 << 16)] = 8
    optimizer: str = "adamw"
    lr: NonNegativeFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.05
    backbone_lr_scale: NonNegativeFloat = 0.33
    balance_lr_scale: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt = 100
    lr_floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip_norm: NonNegativeFloat = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    sync_batchnorm: bool = True
    precision: Precision = "auto"
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    log_every: NonNegativeInt = 10
    log_gradients_every: NonNegativeInt = 20
    evaluate_every: NonNegativeInt | None = None
    quick_images: NonNegativeInt = 128
    checkpoint_every: NonNegativeInt = 500
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    max_skipped_steps: PositiveInt = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        optim.require_known_optimizer(self.optimizer)

    def learning_rate(self, step: int) -> float:
        """Learning rate of the step with this index (from 0)."""
        return self.lr * optim.lr_factor(step, self.steps, self.warmup_steps, self.lr_floor)

    def is_due(self, step: int, interval: int) -> bool:
        """Whether a periodic action is due after ``step`` steps: every ``interval`` steps, and at the last step."""
        return step == self.steps or (interval > 0 and step % interval == 0)

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations; 0 means only at the end."""
        every = self.evaluate_every
        return max(MIN_EVALUATION_INTERVAL, math.ceil(self.steps / DEFAULT_EVALUATIONS)) if every is None else every
