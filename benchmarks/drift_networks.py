"""Large networks of random weights for `drift.py`, and how those of half precision are computed with in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.blip_towers import randomised
from rwk.adapters.clip_towers import seeded
from rwk.adapters.grounding_dino import GroundingDino, caption
from rwk.adapters.hpsv3 import HpsV3, HpsV3Network
from rwk.adapters.judge import Judge
from rwk.adapters.mask2former import Mask2Former
from rwk.adapters.ocr import GotOcr
from rwk.adapters.orm import LlavaOneTile, Orm
from rwk.adapters.unified_reward import UnifiedReward
from rwk.adapters.vlm import SPECIAL, Vlm, tiny_processor
from rwk.adapters.vqascore import FlanT5, FlanT5Xl, tiny_tokenizer
from rwk.rewards.base import Reward
from rwk.rewards.manifest import Item
from rwk.rewards.precision import Precision

BUILDERS = {Judge: "judge", FlanT5: "flan_t5", Orm: "orm", HpsV3: "hpsv3"}
"""Function that makes the reward, by class."""
LAYERS = 4
"""Of the 28 layers of a Qwen2-7B, and of the 24 and 24 of the larger T5; all other sizes are as published."""
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
VERDICTS = [f"{UnifiedReward.label} {tenths / 10}\n" for tenths in range(10, 51)]


def builder_of(kind: type[Any]) -> str:
    return next((name for base, name in BUILDERS.items() if issubclass(kind, base)), "")


def writes(kind: type[Any]) -> bool:
    """Whether a score is read out of what the network writes; see `writers`."""
    return issubclass(kind, UnifiedReward | GotOcr)


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """Weights made inside are of that type and depend on the seed alone."""
    torch.set_default_dtype(dtype)
    try:
        with seeded():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def judge(kind: Any) -> Reward:
    """A judge on Qwen2-VL of the size of the published 2B, but for words that its tokenizer does not know."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    words = ("yes", "no", "Yes", "No", " excellent", " good", " fair", " poor", " bad")
    processor = tiny_processor(words)
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 256 * 28 * 28}
    ids = {name: processor.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2VLConfig(
        text_config={
            **{"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
            **{"num_attention_heads": 12, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "bos_token_id": None},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={"hidden_size": 1536},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with made_in(torch.bfloat16):
        network = Qwen2VLForConditionalGeneration(config)
    made: Reward = kind.of(Vlm(network, processor, name=kind.spec.name))
    return made


def flan_t5(kind: Any) -> Reward:
    """CLIP-FlanT5, with fewer layers of the T5 of 11 billion weights; its head is drawn smaller, for finite odds."""
    fewer = kind if kind is FlanT5Xl else type("Fewer", (kind,), {"configs": classmethod(fewer_layers)})
    with made_in(torch.bfloat16):
        network = fewer.build()
        head: Any = network.t5.get_submodule("lm_head")
        head.weight.data.mul_(2 * kind.widths[0] ** -0.5)
    made: Reward = kind.of(network, tokenizer=tiny_tokenizer())
    return made


def fewer_layers(kind: type[FlanT5]) -> tuple[Any, Any]:
    t5, vision = FlanT5.configs()
    t5.num_layers = t5.num_decoder_layers = LAYERS
    return t5, vision


def orm(kind: Any) -> Reward:
    """T2I-R1's judge with fewer layers of its language model."""
    from transformers import Qwen2ForCausalLM, SiglipVisionModel

    language, vision = kind.configs()
    language.num_hidden_layers, language.layer_types = LAYERS, language.layer_types[:LAYERS]
    with made_in(torch.bfloat16):
        network = LlavaOneTile(
            Qwen2ForCausalLM(language), SiglipVisionModel(vision), language.hidden_size, vision.hidden_size
        )
    made: Reward = kind.of(network, tokenizer=tiny_processor(["yes", "no"]).tokenizer)
    return made


def hpsv3(kind: Any) -> Reward:
    """HPSv3 with fewer layers of its language model, whose words are those of the small tokenizer."""
    from transformers import Qwen2VLModel

    tokenizer = kind.tiny().tokenizer
    config = kind.config(len(tokenizer))
    config.text_config.num_hidden_layers = LAYERS
    config.text_config.layer_types = config.text_config.layer_types[:LAYERS]
    config.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config.vision_start_token_id = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    config.vision_end_token_id = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    config.video_token_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    with made_in(torch.bfloat16):
        backbone = Qwen2VLModel(config)
    with seeded():
        network = HpsV3Network(backbone, config.text_config.hidden_size)
    made: Reward = kind.of(network, tokenizer, area=kind.area)
    return made


def native_of(reward: Any) -> nn.Module | None:
    """The part of a reward's network whose weights are in half precision; None where they are in float32."""
    network = reward.vlm.network if isinstance(reward, Judge) else getattr(reward, "network", None)
    network = network.backbone if isinstance(network, HpsV3Network) else network
    half = network is not None and next(network.parameters()).dtype != torch.float32
    return network if half else None


def retype(part: nn.Module, dtype: torch.dtype) -> None:
    """Weights in that type; frequencies of rotations, which are no weights, stay in float32."""
    for weight in part.parameters():
        weight.data = weight.data.to(dtype)


@contextmanager
def widened(network: nn.Module | None) -> Iterator[None]:
    """Within, a network of half precision computes in float32; of its blocks one at a time is wide, to save memory."""
    if network is None:
        yield
        return
    lists = [name for name, part in network.named_modules() if isinstance(part, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    blocks = [block for name in outer for block in network.get_submodule(name).children()]
    retype(network, torch.bfloat16)
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    for weight in network.parameters():
        if id(weight) not in inside:
            weight.data = weight.data.float()
    hooks = []
    for block in blocks:
        hooks.append(block.register_forward_pre_hook(lambda part, given: retype(part, torch.float32)))
        hooks.append(block.register_forward_hook(lambda part, given, made: retype(part, torch.bfloat16)))
    yield
    for hook in hooks:
        hook.remove()


@contextmanager
def typed(network: nn.Module | None, precision: Precision) -> Iterator[None]:
    """Within, a network whose weights are in half precision has them in this one."""
    if network is not None:
        retype(network, getattr(torch, precision))
    yield


def writers(items: list[Item]) -> dict[str, Any]:
    """For GOT-OCR and UnifiedReward, whose network writes: by how much, in nats, bfloat16 moves the log-probability of
    any of the words that it may write first, their deviation over these words, and how often it writes another.
    """
    return {"ocr.got": got_ocr(items), "unifiedreward": unified_reward(items)}


@torch.no_grad()
def first_words(network: Any, inputs: list[dict[str, Tensor]], said: list[int]) -> dict[str, str]:
    """What bfloat16 does to the first word after each of the inputs, of those with these ids."""
    head: Any = network.lm_head
    with seeded():
        head.weight = nn.Parameter(0.02 * torch.randn(head.weight.shape).to(head.weight))  # not that of the words read

    def chances() -> Tensor:
        made = []
        for row in inputs:
            pixels = row["pixel_values"].to(head.weight.dtype)
            made.append(network(**{**row, "pixel_values": pixels}).logits[0, -1, said].float().log_softmax(0))
        return torch.stack(made)

    with widened(network):
        exact = chances()
    with typed(network, "bfloat16"):
        half = chances()
    return {
        "spread": f"{exact.std(1).mean():.1e}",
        "bfloat16": f"{(half - exact).abs().max():.1e}",
        "others": f"{(half.argmax(1) != exact.argmax(1)).sum()} of {len(inputs)}",
    }


def got_ocr(items: list[Item]) -> dict[str, str]:
    """GOT-OCR 2.0 at its published size, which writes one of the small letters."""
    from transformers import GotOcr2Config, GotOcr2ForConditionalGeneration

    tokenizer = tiny_processor((), added=("<img>", "</img>", "<imgpad>")).tokenizer
    config = GotOcr2Config(image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"))
    config.vision_config.initializer_range = 0.02
    with made_in(torch.bfloat16):
        network: Any = GotOcr2ForConditionalGeneration(config)
    reward = GotOcr.of(network, tokenizer, longest=1, preprocess=GotOcr.preprocess)
    pictures = [reward.preprocess.exact([Image.open(item.image)]) for item in items]
    rows = [{"input_ids": reward.ids, "pixel_values": pixels} for pixels in pictures]
    return first_words(network, rows, tokenizer.convert_tokens_to_ids(LETTERS))


def unified_reward(items: list[Item]) -> dict[str, str]:
    """UnifiedReward on Qwen2.5-VL-7B with fewer layers of its language model, which writes one of the verdicts."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    processor = tiny_processor((), added=VERDICTS)
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 256 * 28 * 28}
    ids = {name: processor.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": LAYERS},
            **{"num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "bos_token_id": None},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584, "window_size": 112},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with made_in(torch.bfloat16):
        network: Any = Qwen2_5_VLForConditionalGeneration(config)
    vlm = Vlm(network, processor, name=UnifiedReward.spec.name)
    texts = [vlm.conversation([UnifiedReward.question.replace("{prompt}", item.prompt or "")]) for item in items]
    rows = [vlm.batch([Image.open(item.image)], [text]) for item, text in zip(items, texts, strict=True)]
    return first_words(network, rows, processor.tokenizer.convert_tokens_to_ids(VERDICTS))


def detectors(items: list[Item]) -> dict[str, Any]:
    """For Grounding DINO and Mask2Former at their published size, on random weights, bfloat16 against float32:

    the most that the score of a query moves, queries being told apart by their place, and the share of the queries that
    one of the two precisions takes and the other does not (Grounding DINO takes its 900 by rank).
    """
    return {"grounding_dino": grounding_dino(items), "mask2former": mask2former(items)}


@torch.no_grad()
def grounding_dino(items: list[Item]) -> dict[str, str]:
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    tokenizer = GroundingDino.tiny().tokenizer
    with seeded():
        network = randomised(GroundingDinoForObjectDetection(GroundingDinoConfig()))
    reward = GroundingDino.of(network, tokenizer, short=800, longest=1333)
    most, other = 0.0, 0.0
    for item in items:
        read = tokenizer(caption(["red cube", "green ball"]), return_tensors="pt")
        pixels = reward.pixels(Image.open(item.image))
        exact = reward.network(pixel_values=pixels, **read)
        with torch.autocast("cpu", torch.bfloat16):
            half = reward.network(pixel_values=pixels, **read)
        best = [made.logits[0].float().sigmoid().amax() for made in (exact, half)]
        most = max(most, abs(best[0] - best[1]).item())
        taken = [places(made.init_reference_points[0]) for made in (exact, half)]
        other = max(other, 1 - len(taken[0] & taken[1]) / len(taken[0]))
    return {"surest box moves by": f"{most:.1e}", "queries not shared": f"{other:.1e}"}


def places(points: Tensor) -> set[tuple[int, ...]]:
    """Where queries [Q, 4] begin, to half a thousandth of a picture."""
    return {tuple(row) for row in points.float().mul(2000).round().int().tolist()}


@torch.no_grad()
def mask2former(items: list[Item]) -> dict[str, str]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    with seeded():
        network = randomised(Mask2FormerForUniversalSegmentation(Mask2FormerConfig(num_labels=80))).eval()
    detector = Mask2Former(network)
    most, other = 0.0, 0.0
    for item in items:
        pixels = detector.pixels(Image.open(item.image))
        exact = network(pixel_values=pixels)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(pixel_values=pixels)
        likely = [made.class_queries_logits[0].float().softmax(1)[:, :-1] for made in (exact, half)]
        most = max(most, (likely[0] - likely[1]).abs().max().item())
        inside = [made.masks_queries_logits[0] > 0 for made in (exact, half)]
        other = max(other, (inside[0] != inside[1]).float().mean().item())
    return {"score of a query moves by": f"{most:.1e}", "pixels of masks that flip": f"{other:.1e}"}
