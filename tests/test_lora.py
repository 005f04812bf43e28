"""LoRA-C3Lier: the reference counts, merges against a slow computation, files of both formats."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from defaug_utils.diffusion.lora import (
    LoraCount,
    LoraError,
    LoraPlan,
    adapted_layers,
    attach_lora,
    count_planned,
    lora_parameters,
    merge_lora,
    unmerge_lora,
)
from defaug_utils.diffusion.lora_files import load_lora, save_lora
from tests.tiny_models import make_parts

SMALL = LoraPlan(linear_rank=3, linear_alpha=2, conv_rank=2, conv_alpha=1)
STABLE_DIFFUSION_UNET = {  # the U-Net's config.json of Stable Diffusion 1.5, where it differs from diffusers
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
STABLE_DIFFUSION_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module]:
    parts = make_parts(4)
    return parts["unet"].eval(), parts["text_encoder"].eval()


@pytest.fixture
def adapted(networks) -> tuple[nn.Module, nn.Module]:
    """Networks with an adapter that does something."""
    attach_lora(*networks, SMALL)
    fill(*networks)
    return networks


def fill(*networks: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for network in networks:
        for parameter in lora_parameters(network).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


@torch.no_grad()
def run_unet(unet: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    sample, text = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 5, 8, generator=generator)
    return unet(sample, 500, text).sample


@torch.no_grad()
def run_text(text_encoder: nn.Module) -> torch.Tensor:
    return text_encoder(torch.arange(10)[None]).last_hidden_state


def copy_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        key.replace(".base_layer", ""): value.clone()
        for key, value in network.state_dict().items()
        if "lora_" not in key
    }


def is_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key].reshape(-1).view(torch.uint8), second[key].reshape(-1).view(torch.uint8))
        for key in first
    )


def test_the_reference_counts_on_stable_diffusion():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION_UNET)
        text_encoder = CLIPTextModel(CLIPTextConfig(**STABLE_DIFFUSION_TEXT))
        linear_only = count_planned(unet, text_encoder, LoraPlan(conv_rank=0)).unet
        counts = attach_lora(unet, text_encoder)
    assert (linear_only.linear, linear_only.conv_1x1, linear_only.conv_3x3) == (182, 46, 0)
    assert counts.unet == LoraCount(linear=182, conv_1x1=46, conv_3x3=50, parameters=18_394_112)
    assert sum(counts.unet[:3]) == 278
    assert counts.text_encoder == LoraCount(linear=72, conv_1x1=0, conv_3x3=0, parameters=5_308_416)


@pytest.mark.parametrize("plan", [SMALL, LoraPlan(conv_rank=0)])
def test_planned_layers_are_counted_as_attached_ones(networks, plan: LoraPlan):
    planned = count_planned(*networks, plan)
    assert planned == attach_lora(*networks, plan)
    assert planned == count_planned(*networks, plan)


def test_a_fresh_adapter_leaves_the_outputs_and_trains_nothing_else(networks):
    unet, text_encoder = networks
    before = run_unet(unet), run_text(text_encoder)
    counts = attach_lora(unet, text_encoder, SMALL)
    assert torch.equal(run_unet(unet), before[0])
    assert torch.equal(run_text(text_encoder), before[1])
    for network, count in zip(networks, counts, strict=True):
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        assert {id(parameter) for parameter in trained} == {id(p) for p in lora_parameters(network).values()}
        assert sum(parameter.numel() for parameter in trained) == count.parameters
    assert counts.unet.conv_3x3 > 0 and counts.unet.conv_1x1 > 0


def test_merging_adds_every_layers_update(adapted):
    unet, text_encoder = adapted
    base = {path: layer.base_layer.weight.detach().clone() for path, layer in adapted_layers(unet).items()}
    merge_lora(unet, text_encoder, 0.6)
    kinds = set()
    for path, layer in adapted_layers(unet).items():
        down, up = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
        is_wide = down.ndim == 4 and down.shape[-1] == 3
        scale = 0.6 * (1 / 2 if is_wide else 2 / 3)
        update = torch.zeros_like(base[path])
        for rank in range(len(down)):  # one outer product after the other
            update += up[:, rank].reshape(-1, *[1] * (down.ndim - 1)) * down[rank][None]
        torch.testing.assert_close(layer.base_layer.weight, base[path] + scale * update)
        kinds.add((down.ndim, down.shape[-1] if down.ndim == 4 else 0))
    assert kinds == {(2, 0), (4, 1), (4, 3)}


def test_a_wide_layer_answers_as_two_convolutions_beside_the_base(adapted):
    layer = next(
        m for m in adapted_layers(adapted[0]).values() if m.lora_A["default"].weight.shape[2:] == (3, 3)
    )
    base, down, up = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    given = torch.randn(1, base.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    narrow = functional.conv2d(given, down, stride=base.stride, padding=base.padding)
    torch.testing.assert_close(layer(given), base(given) + 0.5 * functional.conv2d(narrow, up))


def test_merged_and_unmerged_adapter_of_share_one_answer_alike(adapted):
    beside = run_unet(adapted[0]), run_text(adapted[1])
    merge_lora(*adapted, 1.0)
    torch.testing.assert_close(run_unet(adapted[0]), beside[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run_text(adapted[1]), beside[1], rtol=1e-4, atol=1e-5)


def test_share_zero_is_the_base_model_bit_for_bit():
    parts = make_parts(4)
    unet, text_encoder = parts["unet"].eval(), parts["text_encoder"].eval()
    for network in (unet, text_encoder):  # a negative zero must keep its sign, too
        next(p for p in network.parameters() if p.ndim > 1).data.view(-1)[0] = -0.0
    weights, answer = [copy_weights(network) for network in (unet, text_encoder)], run_unet(unet)
    attach_lora(unet, text_encoder, SMALL)
    fill(unet, text_encoder)
    merge_lora(unet, text_encoder, 0.0)
    assert torch.equal(run_unet(unet), answer)
    assert all(map(is_same, weights, map(copy_weights, (unet, text_encoder))))


def test_unmerging_restores_every_bit(adapted):
    weights, answer = [copy_weights(network) for network in adapted], run_unet(adapted[0])
    merge_lora(*adapted, 0.3)
    assert not is_same(weights[0], copy_weights(adapted[0]))
    merge_lora(*adapted, 0.9)
    unmerge_lora(*adapted)
    assert all(map(is_same, weights, map(copy_weights, adapted)))
    assert torch.equal(run_unet(adapted[0]), answer)


def test_a_second_merge_replaces_the_first(adapted):
    merge_lora(*adapted, 0.9)
    merge_lora(*adapted, 0.4)
    twice = copy_weights(adapted[0])
    unmerge_lora(*adapted)
    merge_lora(*adapted, 0.4)
    assert is_same(twice, copy_weights(adapted[0]))


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf")])
def test_impossible_shares_are_refused(adapted, share: float):
    with pytest.raises(LoraError, match="must be 0 or more"):
        merge_lora(*adapted, share)


def test_a_share_above_one_warns(adapted):
    with pytest.warns(UserWarning, match="above 1"):
        merge_lora(*adapted, 1.2)


def test_merging_without_an_adapter_is_told(networks):
    with pytest.raises(LoraError, match="no adapter to merge"):
        merge_lora(*networks, 0.5)


def test_a_second_adapter_is_refused(adapted):
    with pytest.raises(LoraError, match="already has an adapter"):
        attach_lora(*adapted, SMALL)


@pytest.mark.parametrize("plan", [{"linear_rank": 0}, {"conv_rank": -1}, {"linear_alpha": 0.0}])
def test_plans_that_adapt_nothing_are_refused(plan: dict):
    with pytest.raises(LoraError, match="expected linear_rank"):
        LoraPlan(**plan)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_file_gives_the_same_adapter_back(adapted, tmp_path: Path, layout: str):
    save_lora(tmp_path / "adapter.safetensors", *adapted, layout=layout)
    parts = make_parts(4)
    counts = load_lora(tmp_path / "adapter.safetensors", parts["unet"], parts["text_encoder"])
    assert sum(counts.unet[:3]) == len(adapted_layers(adapted[0]))
    assert torch.equal(run_unet(parts["unet"].eval()), run_unet(adapted[0]))
    assert torch.equal(run_text(parts["text_encoder"].eval()), run_text(adapted[1]))


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_equal_adapters_are_equal_bytes(adapted, tmp_path: Path, layout: str):
    """The library orders the header's texts by chance, so a single pair could agree by luck."""
    words = {letter: letter for letter in "heading"} | {"name": "grün"}
    for number in range(4):
        save_lora(tmp_path / f"{number}.safetensors", *adapted, metadata=words, layout=layout)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as opened:
        assert opened.metadata().items() >= words.items()


def test_one_format_becomes_the_other_and_back(adapted, tmp_path: Path):
    names = ["first.safetensors", "second.safetensors", "third.safetensors"]
    save_lora(tmp_path / names[0], *adapted, layout="kohya")
    for source, target, layout in [(names[0], names[1], "diffusers"), (names[1], names[2], "kohya")]:
        parts = make_parts(4)
        load_lora(tmp_path / source, parts["unet"], parts["text_encoder"])
        save_lora(tmp_path / target, parts["unet"], parts["text_encoder"], layout=layout)
    first, third = load_file(tmp_path / names[0]), load_file(tmp_path / names[2])
    assert is_same(first, third)


def test_kohyas_keys_are_kohyas(adapted, tmp_path: Path):
    save_lora(tmp_path / "adapter.safetensors", *adapted)
    keys = set(load_file(tmp_path / "adapter.safetensors"))
    attention = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert f"lora_unet_{attention}.lora_down.weight" in keys
    assert "lora_unet_down_blocks_0_resnets_0_conv1.alpha" in keys
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in keys
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight" in keys


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_own_loader_reads_the_file(adapted, tmp_path: Path, layout: str):
    save_lora(tmp_path / "adapter.safetensors", *adapted, layout=layout)
    parts = make_parts(4)
    pipeline = StableDiffusionPipeline(**parts)
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    torch.testing.assert_close(run_unet(pipeline.unet.eval()), run_unet(adapted[0]))
    torch.testing.assert_close(run_text(pipeline.text_encoder.eval()), run_text(adapted[1]))


def test_a_file_that_diffusers_wrote_is_read(adapted, tmp_path: Path):
    from peft.utils import get_peft_model_state_dict

    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(adapted[0]),
        unet_lora_adapter_metadata=adapted[0].peft_config["default"].to_dict() | {"target_modules": []},
    )
    parts = make_parts(4)
    load_lora(tmp_path / "pytorch_lora_weights.safetensors", parts["unet"], parts["text_encoder"])
    assert adapted_layers(parts["unet"]).keys() == adapted_layers(adapted[0]).keys()
    assert not adapted_layers(parts["text_encoder"])
    assert torch.equal(run_unet(parts["unet"].eval()), run_unet(adapted[0]))


def test_an_adapter_of_another_base_is_told(adapted, tmp_path: Path):
    path = tmp_path / "adapter.safetensors"
    save_lora(path, *adapted)
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("to_q.lora_down.weight"))
    save_file({**tensors, key: torch.zeros(3, 99)}, path)
    parts = make_parts(4)
    with pytest.raises(LoraError, match=r"to_q\.down is \(3, 99\), expected"):
        load_lora(path, parts["unet"], parts["text_encoder"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: {**t, "lora_unet_nowhere.lora_down.weight": torch.zeros(1, 1)}, "nowhere.* is unknown"),
        (lambda t: {k: v for k, v in t.items() if "lora_up" not in k}, "has no up matrix"),
        (lambda t: {}, "contains no adapter"),
    ],
)
def test_files_that_do_not_fit_are_told(adapted, tmp_path: Path, change, told: str):
    path = tmp_path / "adapter.safetensors"
    save_lora(path, *adapted)
    save_file(change(load_file(path)), path)
    parts = make_parts(4)
    with pytest.raises(LoraError, match=told):
        load_lora(path, parts["unet"], parts["text_encoder"])
    assert not adapted_layers(parts["unet"])


def test_broken_missing_and_pickled_files_are_told(networks, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="notebook 03"):
        load_lora(tmp_path / "none.safetensors", *networks)
    (tmp_path / "half.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(LoraError, match="not a complete safetensors"):
        load_lora(tmp_path / "half.safetensors", *networks)
    (tmp_path / "adapter.pt").write_bytes(b"")
    with pytest.raises(LoraError, match=r"only \.safetensors"):
        load_lora(tmp_path / "adapter.pt", *networks)


def test_saving_asks_for_an_adapter_and_a_known_layout(adapted, tmp_path: Path):
    parts = make_parts(4)
    with pytest.raises(LoraError, match="no adapter to save"):
        save_lora(tmp_path / "a.safetensors", parts["unet"], parts["text_encoder"])
    with pytest.raises(LoraError, match="not one of kohya, diffusers"):
        save_lora(tmp_path / "a.safetensors", *adapted, layout="other")


def test_the_header_carries_the_makers_words(adapted, tmp_path: Path):
    save_lora(tmp_path / "a.safetensors", *adapted, metadata={"prompt": "skt background"}, layout="diffusers")
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        header = opened.metadata()
    assert header["prompt"] == "skt background"
    alphas = json.loads(header["lora_adapter_metadata"])["unet.alpha_pattern"]
    assert set(alphas.values()) == {SMALL.linear_alpha, SMALL.conv_alpha}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_values_that_are_no_numbers_is_refused(adapted, tmp_path, value):
    path = tmp_path / "a.safetensors"
    save_lora(path, *adapted)
    tensors = load_file(path)
    first = sorted(tensors)[-1]
    tensors[first].view(-1)[0] = value
    save_file(tensors, path)
    parts = make_parts(4)
    with pytest.raises(LoraError, match=rf"a\.safetensors: 1 problem.*\n.*{first} contains non-finite"):
        load_lora(path, parts["unet"], parts["text_encoder"])
    save_file({**tensors, first: torch.ones(2, dtype=torch.int64)}, path)
    with pytest.raises(LoraError, match="is int64, expected floating point"):
        load_lora(path, parts["unet"], parts["text_encoder"])
    save_file({"x": torch.ones(1)}, path, {"lora_adapter_metadata": "[1"})
    with pytest.raises(LoraError, match=r"a\.safetensors: its lora_adapter_metadata can't be read"):
        load_lora(path, parts["unet"], parts["text_encoder"])
