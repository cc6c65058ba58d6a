"""Cross-task attention: what it computes, that it starts as nothing, what it costs, and that it can be drawn."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sharing_networks import CONFIGS, build_network, make_batch, noise_images, randomize_gates
from torch.utils.flop_counter import FlopCounterMode

from perception.export.export import export
from perception.model import ModelConfig, MultiTaskModel
from perception.nn.fusion import AttentionFusion, AttentionFusionConfig
from perception.ops.draw_attention import draw_attention
from perception.tasks import TASKS, sum_loss_terms
from perception.types import ConfigError

NAMES = ("boxes", "pixels", "metres")


def exchange(stride: int = 16, **options) -> AttentionFusion:
    torch.manual_seed(0)
    config = AttentionFusionConfig(strides=(stride,), channels=8, num_summaries=2, **options)
    fusion = AttentionFusion(config, {name: {stride: 12 + 4 * n} for n, name in enumerate(NAMES)})
    for part in fusion.levels[str(stride)].branches.values():
        torch.nn.init.normal_(part.gate)
        torch.nn.init.normal_(part.adapter.gate)
    return fusion.eval()


def streams(height: int = 3, width: int = 5, count: int = 2, stride: int = 16) -> dict[str, dict[int, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: {stride: torch.randn(count, 12 + 4 * n, height, width, generator=generator)}
        for n, name in enumerate(NAMES)
    }


def test_it_is_attention_over_every_streams_location_and_summaries():
    """Against plain loops over images, streams and locations."""
    fusion, given = exchange(), streams()
    level = fusion.levels["16"]
    with torch.no_grad():
        fused = fusion(given)
        given = fusion.adapt(given)
        looks = {name: level.branches[name].embed(x[16]).flatten(2).transpose(1, 2) for name, x in given.items()}
        for picture in range(2):
            keys, values, summaries = {}, {}, {}
            for name, look in looks.items():
                part, x = level.branches[name], look[picture]
                keys[name], values[name] = part.key(x), part.value(x)
                weights = part.gather(x).softmax(0)  # [N, S], over the locations
                summaries[name] = (weights.T @ keys[name], weights.T @ values[name])
            for name, look in looks.items():
                part = level.branches[name]
                for n in range(15):
                    query = part.query(look[picture, n])
                    key = torch.cat([torch.cat([keys[other][n : n + 1], summaries[other][0]]) for other in NAMES])
                    value = torch.cat([torch.cat([values[other][n : n + 1], summaries[other][1]]) for other in NAMES])
                    answer = part.output((key @ query / 8**0.5).softmax(0) @ value) * part.gate
                    expected = given[name][16][picture, :, n // 5, n % 5] + answer
                    torch.testing.assert_close(fused[name][16][picture, :, n // 5, n % 5], expected)


def test_what_is_drawn_is_what_was_taken():
    fusion, given = exchange(), streams()
    with torch.no_grad():
        found = fusion.compute_attention(given)[16]
        assert found.tasks == NAMES
        assert found.local_weights.shape == (2, 3, 3, 3, 5)
        assert found.summary_weights.shape == (2, 3, 3, 2, 3, 5)
        assert found.gather_weights.shape == (2, 3, 2, 3, 5)
        torch.testing.assert_close(found.mean_weights().sum(2), torch.ones(2, 3))
        torch.testing.assert_close(found.gather_weights.sum((-2, -1)), torch.ones(2, 3, 2))
        torch.testing.assert_close(
            found.local_weights.sum(2) + found.summary_weights.sum((2, 3)), torch.ones(2, 3, 3, 5)
        )
        maps = found.weights_at("pixels", 2, 1)
        assert maps.shape == (2, 3, 3, 5)
        torch.testing.assert_close(maps.sum((1, 2, 3)), torch.ones(2))
        # The map weighs the values: mapping them by it is what the stream took there.
        level, before = fusion.levels["16"], fusion.adapt(given)
        values = torch.stack(
            [part.value(part.embed(before[name][16]).movedim(1, -1)) for name, part in level.branches.items()], 1
        )
        taken = torch.einsum("buhw,buhwd->bd", maps, values)
        part = level.branches["pixels"]
        change = fusion(given)["pixels"][16][:, :, 2, 1] - before["pixels"][16][:, :, 2, 1]
        torch.testing.assert_close(part.output(taken) * part.gate, change)


def test_absent_streams_are_not_attended_to():
    fusion, given = exchange(), streams()
    some = {name: given[name] for name in ("pixels", "metres")}
    other = streams()
    other["boxes"][16] += 1
    with torch.no_grad():
        assert fusion.compute_attention(some)[16].mean_weights().shape == (2, 2, 2)
        before, after = fusion(given), fusion(other)
        assert not torch.equal(before["pixels"][16], after["pixels"][16])
        alone = fusion.compute_attention({"metres": given["metres"]})[16]
        torch.testing.assert_close(alone.mean_weights(), torch.ones(2, 1, 1))
        fusion.keep_tasks(["pixels", "metres"])
        kept = fusion(some)
    assert set(fusion.levels["16"].branches) == {"pixels", "metres"}
    assert kept["pixels"][16].shape == given["pixels"][16].shape


def test_levels_that_no_stream_has_are_passed_over():
    fusion = AttentionFusion(AttentionFusionConfig(strides=(16, 32)), {"one": {8: 4, 32: 6}, "other": {8: 4}})
    given = {"one": {8: torch.ones(1, 4, 8, 8), 32: torch.ones(1, 6, 2, 2)}, "other": {8: torch.ones(1, 4, 8, 8)}}
    fused = fusion.eval()(given)
    assert {name: list(pyramid) for name, pyramid in fused.items()} == {"one": [8, 32], "other": [8]}
    assert fused["other"][8] is given["other"][8]
    assert list(fusion.compute_attention(given)) == [32]
    assert fusion({"other": given["other"]})["other"].keys() == {8}


def test_hiding_is_by_image_by_the_seed_and_only_in_training():
    fusion, given = exchange(task_dropout=0.5), streams(count=8)

    def shares(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return fusion.compute_attention(given)[16].mean_weights()

    assert (shares(0) > 0).all()
    fusion.train()
    first, again, other = shares(0), shares(0), shares(1)
    assert torch.equal(first, again)
    hidden = first == 0
    assert not torch.equal(hidden, other == 0)
    assert not hidden.diagonal(dim1=1, dim2=2).any(), "nothing is hidden from itself"
    columns = hidden | torch.eye(3, dtype=torch.bool)
    assert (columns.all(1) | (hidden.any(1) == 0)).all(), "what is hidden is hidden from all others"
    assert 0.2 < hidden.any(1).float().mean() < 0.8
    assert len({tuple(row.flatten().tolist()) for row in hidden}) > 1


def test_at_the_start_it_changes_nothing_and_can_learn():
    """The network with fusion gives, weight for weight, what the one without gives, and its gates have a gradient."""
    plain, fused = build_network(), build_network(fusion="attention")
    own = plain.state_dict()
    assert all(torch.equal(value, fused.state_dict()[key]) for key, value in own.items())
    with torch.inference_mode():
        wanted, found = plain.predict(noise_images()), fused.predict(noise_images())
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())
    fused.train()
    torch.stack(list(fused.compute_losses(make_batch()).values())).sum().backward()
    gates = {name: p.grad for name, p in fused.named_parameters() if name.endswith("gate")}
    assert len(gates) == 2 * 7, "classification reads no level of stride 16"
    assert all(gradient.any() for gradient in gates.values())


def own_gradients(model: MultiTaskModel, task: str) -> dict[str, bool]:
    """Stream -> whether the loss of the task has a gradient in that stream's own blocks."""
    model.zero_grad()
    sum_loss_terms(model.compute_loss_terms(make_batch()).terms[task]).backward()
    moved = [
        name.split(".")[4]
        for name, p in model.fusion.named_parameters(prefix="fusion")
        if ".adapter." in name and moves(p)
    ]
    return {stream: stream in moved for stream in model.tasks}


def moves(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def learn(model: MultiTaskModel, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(model.compute_losses(make_batch()).values())).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("auxiliary", [0.0, 0.4])
def test_each_task_makes_its_stream_its_own_from_the_first_step_on(auxiliary):
    """Hard sharing gives all tasks one tensor; what they exchange must not be one."""
    configs = CONFIGS | {
        name: dataclasses.replace(CONFIGS[name], auxiliary_weight=auxiliary) for name in ("segmentation", "depth")
    }
    model = build_network(fusion="attention", configs=configs).train()
    shared = model.sharing(noise_images(), {name: task.strides for name, task in model.tasks.items()}).pyramids
    assert shared["detection"][16] is shared["depth"][16]
    for task in CONFIGS:
        assert own_gradients(model, task) == {stream: stream == task for stream in CONFIGS}, "at the first step"
    learn(model, 4)
    for task in CONFIGS:
        assert own_gradients(model, task)[task]
        blocks = [p for name, p in model.fusion.named_parameters() if f".{task}.adapter." in name]
        assert all(moves(p) for p in blocks), "once the gate has moved, the whole block"
    with torch.no_grad():
        streams = model.fusion.adapt(
            model.eval().sharing(noise_images(), {"detection": (32,), "depth": (32,)}).pyramids
        )
    one, other = (streams[name][32] for name in ("detection", "depth"))
    assert (one - other).abs().mean() > 1e-3 * one.abs().mean()


def test_what_one_task_learns_teaches_the_other_streams_own_block():
    """Information crosses: the other's block has a gradient, and what a task reads changes with it and its absence."""
    model = randomize_gates(build_network(fusion="attention", task_dropout=0.0))
    assert own_gradients(model.train(), "depth") == dict.fromkeys(CONFIGS, True)
    model.eval()
    with torch.inference_mode():
        read = [
            model.streams(noise_images())["depth"],
            model.streams(noise_images(), ["depth", "classification"])["depth"],
        ]
        for level in model.fusion.levels.values():
            level.branches["segmentation"].adapter.gate.neg_()
        read.append(model.streams(noise_images())["depth"])
    for stride in (16, 32):
        everything, without, changed = (pyramid[stride] for pyramid in read)
        assert (without - everything).abs().mean() > 1e-3 * everything.abs().mean()
        assert (changed - everything).abs().mean() > 1e-3 * everything.abs().mean()


def test_a_network_with_initial_predictions_exports_without_them(tmp_path):
    """For every size and batch, and not one weight of theirs."""
    configs = {
        name: dataclasses.replace(CONFIGS[name], strides=(16, 32), auxiliary_weight=0.4)
        for name in ("segmentation", "depth")
    }
    model = randomize_gates(build_network(fusion="attention", tasks=tuple(configs), configs=configs))
    report = export(model, tmp_path / "model.onnx", size=(64, 96), parity_sizes=((64, 96),), parity_batch_sizes=(1,))
    assert report.tensorrt_problems == ()  # TensorRT's
    path = report.path
    weights = [weight.name for weight in onnx.load(path).graph.initializer]
    assert any("tasks.depth.decoder" in name for name in weights)
    assert not [name for name in weights if "initial_prediction" in name]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count, size in ((1, (32, 32)), (3, (96, 160))):
        images = noise_images(count, size=size)
        with torch.inference_mode():
            wanted = model.predict(images)
        found = session.run(["depth.depth"], {"images": images.numpy()})[0]
        np.testing.assert_allclose(found, wanted["depth.depth"].numpy(), rtol=1e-3, atol=1e-4)
    plain = {name: dataclasses.replace(config, auxiliary_weight=0.0) for name, config in configs.items()}
    never = build_network(fusion="attention", tasks=tuple(plain), configs=plain)
    never.load_state_dict(model.keep_tasks(list(configs)).state_dict())  # has all weights and no other
    with torch.inference_mode():
        assert torch.equal(never.predict(images)["depth.depth"], wanted["depth.depth"])


def test_it_learns_what_only_another_stream_knows():
    """A stream whose target is in the other one gets it across, at the location it belongs to."""
    torch.manual_seed(0)
    fusion = AttentionFusion(
        AttentionFusionConfig(strides=(16,), channels=8, task_dropout=0.0), {"one": {16: 4}, "other": {16: 4}}
    )
    optimizer = torch.optim.Adam(fusion.parameters(), 0.02)
    for _ in range(150):
        one, other = torch.zeros(8, 4, 4, 4), torch.randn(8, 4, 4, 4)
        fused = fusion({"one": {16: one}, "other": {16: other}})
        loss = (fused["one"][16][:, 0] - other[:, 0].relu()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * 0.5
    with torch.no_grad():
        shares = fusion.compute_attention({"one": {16: one}, "other": {16: other}})[16].mean_weights().mean(0)
    assert shares[0, 1] > shares[0, 0]


def test_half_precision_trains():
    model = randomize_gates(build_network(fusion="attention")).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.compute_losses(make_batch())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.fusion.parameters())


def test_the_cost_grows_with_the_area_and_not_with_its_square():
    fusion = exchange()

    def operations(side: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            fusion(streams(side, side, count=1))
        return counter.get_total_flops()

    assert operations(32) == 4 * operations(16) == 16 * operations(8)


def test_it_costs_at_most_a_twelfth_of_the_default_network():
    """Of the forward pass with four tasks: 512 x 512, one thread, processor time in turns, the fastest of each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = dict.fromkeys(("detection", "segmentation", "classification"), tuple("abcdef"))
    configs = {task: kind.Config(**({"classes": names[task]} if task in names else {})) for task, kind in TASKS.items()}
    try:
        model = MultiTaskModel(ModelConfig(fusion=AttentionFusionConfig()), configs, weights=False).eval()
        picture = noise_images(1, size=(512, 512))
        with torch.inference_mode():
            shared = model.sharing(picture, {name: task.strides for name, task in model.tasks.items()}).pyramids
            turns = [(seconds(lambda: model(picture)), seconds(lambda: model.fusion(shared))) for _ in range(7)]
    finally:
        torch.set_num_threads(threads)
    everything, fusion = (min(times) for times in zip(*turns, strict=True))
    assert fusion <= everything / 12


def seconds(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def test_a_network_without_fusion_has_no_attention_and_one_with_it_shows_it_for_any_tasks():
    assert build_network().compute_attention(noise_images()) == {}
    model = build_network(fusion="attention")
    found = model.compute_attention(noise_images(), ["depth", "classification"])
    assert {stride: attention.tasks for stride, attention in found.items()} == {
        16: ("depth",),
        32: ("depth", "classification"),
    }
    assert found[32].local_weights.shape[-2:] == (2, 3)


@pytest.mark.parametrize("key", ["width", "summaries"])
def test_sizes_are_positive(key):
    from perception.config import validate_config

    with pytest.raises(ConfigError, match=f"fusion.{key}"):
        validate_config(ModelConfig, {"fusion": {"name": "attention", key: 0}})
    assert validate_config(ModelConfig, {"fusion": {"name": "none"}}).fusion.name == "none"


def test_attention_is_drawn_on_the_image_where_it_is():
    image = np.full((64, 96, 3), 90, np.uint8)
    shares = np.array([[0.75, 0.25], [0.0, 1.0]])
    maps = np.zeros((2, 2, 2, 3))
    maps[0, 1, 1, 2], maps[0, 0, 0, 0] = 0.5, 0.25
    maps[1, 1, 0, 0] = 1e-3  # the brightest of its own row
    grid = draw_attention(image, ("boxes", "metres"), shares, maps, (80, 48)).astype(int)
    rows, columns = (grid.shape[0] - 4) // 2, (grid.shape[1] - 4) // 2
    line = rows - 32
    assert columns == 48
    tiles = [[grid[i * (rows + 4) + line :][:32, j * 52 :][:, :48] for j in range(2)] for i in range(2)]
    light = [[tile.sum(2) for tile in row] for row in tiles]
    assert light[0][1][-3, -3] > light[0][0][3, 3] > light[1][0][3, 3], "in one scale along a row"
    assert light[1][1][3, 3] == light[0][1][-1, -1]
    assert (tiles[1][0][24, 40] == 255).all(), "the marked location"
    assert all(grid[i * (rows + 4) :][:line, j * 52 :][:, :48].any() for i in range(2) for j in range(2)), "captions"


def test_the_tool_draws_a_run(tmp_path, monkeypatch):
    import runpy
    from pathlib import Path

    model = randomize_gates(build_network(fusion="attention"))
    recipe = SimpleNamespace(data=SimpleNamespace(size=(64, 96)))
    monkeypatch.setattr("perception.runs.open_run", lambda run: (recipe if run else None, model))
    cv2.imwrite(str(tmp_path / "street.png"), noise_images(1)[0].permute(1, 2, 0).numpy())
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "draw_attention.py"))["main"]
    tool("run", str(tmp_path / "street.png"), str(tmp_path / "out.png"), "0.9", "1.0")
    drawn = cv2.imread(str(tmp_path / "out.png"))
    assert drawn.shape[1] == 4 * 48 + 3 * 4
    assert drawn.std() > 5
    model.fusion.levels.clear()
    with pytest.raises(ConfigError, match="no fusion"):
        tool("run", str(tmp_path / "street.png"), str(tmp_path / "out.png"))
