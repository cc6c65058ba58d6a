"""The network: any backbone, any subset of tasks, one pass."""

from __future__ import annotations

import time

import pytest
import torch

from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import Backbone, BackboneConfig
from perception.tasks import TASKS
from perception.types import CheckpointError, ConfigError

CONFIGS = {
    name: kind.Config(classes=tuple("abcde")) if "classes" in kind.Config.__dataclass_fields__ else kind.Config()
    for name, kind in TASKS.items()
}


def network(name: str = "test_efficientnet", tasks=tuple(TASKS)) -> MultiTaskModel:
    torch.manual_seed(0)
    config = ModelConfig(backbone=BackboneConfig(name=name, weights="none"))
    return MultiTaskModel(config, {task: CONFIGS[task] for task in tasks}).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 255, (2, 3, 96, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_resnet", "test_convnext", "resnet18", "mobilenetv4_conv_small"]
)
def test_any_convolutional_timm_backbone(name, images):
    with torch.inference_mode():
        outputs = network(name).predict(images)
    assert outputs["segmentation.mask"].shape == outputs["depth.depth"].shape == (2, 96, 160)
    assert outputs["detection.boxes"].shape[0] == 2


@pytest.mark.parametrize("task", TASKS)
def test_one_task_gives_what_all_tasks_give_and_runs_less(task, images):
    model = network()
    ran: list[str] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.inference_mode():
        together = model.predict(images)
        everything = set(ran)
        ran.clear()
        alone = model.predict(images, {task})
    for key, value in alone.items():
        assert torch.equal(value, together[key])
    others = [name for name in TASKS if name != task]
    assert not [name for name in ran if any(name.startswith(f"tasks.{other}.") for other in others)]
    assert set(ran) < everything


def test_classification_alone_needs_no_fine_level(images):
    model = network()
    assert set(model.streams(images, {"classification"})["classification"]) == {32}
    assert set(network(tasks=("classification",)).sharing.trunk.neck.top_down.lateral) == {"32"}


def test_unknown_task_names_those_that_there_are(images):
    with pytest.raises(ConfigError, match="detection"):
        network().predict(images, {"detektion"})


def test_an_image_does_not_depend_on_its_batch(images):
    model = network()
    with torch.inference_mode():
        pair, single = model.predict(images), model.predict(images[1:])
    for key, value in single.items():
        torch.testing.assert_close(pair[key][1:].float(), value.float(), rtol=1e-4, atol=1e-3)


def test_packaged_backbone_is_the_imagenet_one():
    backbone = Backbone(BackboneConfig())
    assert backbone.channels == {4: 24, 8: 40, 16: 112, 32: 320}
    assert backbone.mean.flatten().tolist() == [127.5] * 3
    running = backbone.body.state_dict()["bn1.running_mean"]
    assert running.abs().sum() > 0.1, "an untrained BatchNorm has a mean of zero"


def test_weights_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"something": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="lacks"):
        Backbone(BackboneConfig(name="test_resnet", weights=str(path)))
    with pytest.raises(ConfigError, match="no package contains"):
        Backbone(BackboneConfig(name="test_resnet"))
    with pytest.raises(CheckpointError, match="no file"):
        Backbone(BackboneConfig(name="test_resnet", weights=str(tmp_path / "absent.pth")))


def test_local_weights_are_loaded(tmp_path):
    donor = Backbone(BackboneConfig(name="test_resnet", weights="none"))
    torch.save(donor.body.state_dict(), tmp_path / "donor.pth")
    heir = Backbone(BackboneConfig(name="test_resnet", weights=str(tmp_path / "donor.pth")))
    for key, value in donor.body.state_dict().items():
        assert torch.equal(heir.body.state_dict()[key], value)


def test_four_tasks_cost_at_most_1_7_backbones():
    """The forward of all heads against the bare backbone's: 512 x 512, one thread, the fastest of turns in one run.

    Processor time, not wall time, and turns: neighbors on a shared machine must not decide.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = MultiTaskModel(ModelConfig(), CONFIGS).eval()
        picture = torch.randint(0, 255, (1, 3, 512, 512), dtype=torch.uint8)
        with torch.inference_mode():
            turns = [(_seconds(lambda: model.backbone(picture)), _seconds(lambda: model(picture))) for _ in range(9)]
    finally:
        torch.set_num_threads(threads)
    backbone, everything = (min(times) for times in zip(*turns, strict=True))
    assert everything <= 1.7 * backbone


def _seconds(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start
