"""A reward in the hands of other libraries: each test runs the real one, where it is installed."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters.bridges import Ranked, diffusers_ranking, pil_images, torchmetric, trl_reward, verl_score
from rwk.adapters.pixels import Contrast
from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.errors import RunFailed


class Red(Reward):
    """Red of the first pixel, in 0..1; NaN where the prompt is "none". Keeps its prompts."""

    spec = RewardSpec("red", "share", 0, 1, "n/a", "tests")

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []
        self.batches: list[int] = []

    @classmethod
    def tiny(cls) -> Red:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        self.prompts += prompts
        self.batches.append(len(images))
        reds: list[Any] = [image.getpixel((0, 0)) for image in images]
        none = [prompt == "none" for prompt in prompts]
        values = [math.nan if empty else red[0] / 255 for red, empty in zip(reds, none, strict=True)]
        return Scores(torch.tensor(values), ["nothing to score" * empty for empty in none])


def red(*shades: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in shades]


def test_pixels_become_images() -> None:
    """Pixels in 0..1 and in uint8 become the PIL images that they stand for; other tensors are refused."""
    shades = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2)
    for pixels in (shades, shades.float() / 255, (shades.double() / 255).requires_grad_()):
        assert [image.getpixel((0, 0)) for image in pil_images(pixels)] == [(0, 0, 0), (51, 51, 51), (255, 255, 255)]
    for wrong in (torch.rand(3, 2, 2), torch.rand(1, 4, 2, 2)):
        with pytest.raises(ValueError, match=r"must be a tensor \[B, 3, H, W\], got one of"):
            pil_images(wrong)
    for outside in (torch.full([1, 3, 2, 2], 1.5), torch.full([1, 3, 2, 2], math.nan), torch.ones(1, 3, 2, 2).long()):
        with pytest.raises(ValueError, match="must be uint8, or lie in 0..1"):
            pil_images(outside)


def test_trl_function() -> None:
    """Texts and conversations are prompts, a missing score is None, and a missing column is named."""
    parts = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "cat"}]
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    plain = [{"role": "user", "content": "none"}, {"role": "assistant", "content": "x"}]
    reward = Red()
    function = trl_reward(reward, "made")
    values = function(
        prompts=["a dog", talk, plain], completions=[""] * 3, completion_ids=[[]] * 3, made=red(0, 255, 9)
    )
    assert values == [0, 1, None]
    assert reward.prompts == ["a dog", "a cat", "none"]
    with pytest.raises(ValueError, match="red needs images in the column 'made', got other; name one"):
        function(prompts=["a"], completions=[""], completion_ids=[[]], other=[1])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_trl_trains_with_it(tmp_path: Path) -> None:
    """TRL's GRPO logs the mean of our scores of the images that it generated, and leaves out those without one."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "dim", "none", *map(str, range(12))])}
    table = Tokenizer(WordLevel(words, unk_token="<pad>"))
    table.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(words), **sizes, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    seen: list[float] = []

    def images(completions: list[list[int]]) -> list[Image.Image]:
        shades = [sum(ids) % 256 for ids in completions]
        seen.extend(shade / 255 for shade in shades)
        return red(*shades)

    reward = Red()
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(config),
        reward_funcs=trl_reward(reward, images),
        args=GRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=6,
            max_steps=2, beta=0.0, logging_steps=1, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
            gradient_checkpointing=False, save_strategy="no", dataloader_pin_memory=False, shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["dim", "none"]}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>", eos_token="<eos>"),
    )  # fmt: skip
    trainer._send_telemetry = trainer.create_model_card = lambda *_, **__: None
    trainer.train()
    logged = [row["rewards/red/mean"] for row in trainer.state.log_history if "rewards/red/mean" in row]
    assert reward.prompts == ["dim"] * 4 + ["none"] * 4
    assert logged[0] == pytest.approx(sum(seen[:4]) / 4)
    assert logged[1] is None


def test_verl_function() -> None:
    """Images come as pixels or from the response, prompts from where verl has them, and a failure is no 0."""
    reward = Red()
    score = verl_score(reward, lambda text: red(int(text))[0])
    pixels = torch.full([3, 4, 4], 102, dtype=torch.uint8)
    assert score("set", solution_image=pixels, ground_truth="a cat", extra_info={"num_turns": 1})["score"] == (
        pytest.approx(0.4)
    )
    assert score("set", "255", "other", {"prompt": "a dog"}, reward_router_address="x") == {"score": 1.0, "note": ""}
    assert reward.prompts == ["a cat", "a dog"]
    with pytest.raises(RunFailed, match="red gave no score to an image of set: nothing to score"):
        score("set", "255", "none")
    with pytest.raises(ValueError, match="red needs an image, got the text 'hello'; give images="):
        verl_score(reward)("set", "hello", "a")
    reward.batches.clear()
    waiting = verl_score(reward, lambda text: red(int(text))[0], max_batch=8, max_wait=1.0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda shade: waiting("set", str(shade), "a")["score"], range(8)))
    assert found == pytest.approx([shade / 255 for shade in range(8)])
    assert reward.batches == [8]


@pytest.mark.filterwarnings("ignore")  # of what verl imports
def test_verl_calls_it() -> None:
    """verl's reward manager passes a decoded response on and takes the score (verl 0.9.1 with transformers 5.10)."""
    pytest.importorskip("verl", exc_type=ImportError)
    import numpy as np
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    data = DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([[1, 2]]),
            "responses": torch.tensor([[51, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        },
        non_tensors={
            "data_source": np.array(["set"], dtype=object),
            "reward_model": np.array([{"ground_truth": "a cat"}], dtype=object),
            "extra_info": np.array([{}], dtype=object),
        },
    )
    reward = Red()

    async def run() -> dict[str, Any]:
        tokenizer = SimpleNamespace(decode=lambda ids, **_: str(int(ids[0])))
        manager = NaiveRewardManager(None, tokenizer, verl_score(reward, lambda text: red(int(text))[0]))
        manager.loop = asyncio.get_running_loop()
        answer: dict[str, Any] = await manager.run_single(data)
        return answer

    answer = asyncio.run(run())
    assert answer["reward_score"] == pytest.approx(0.2)
    assert answer["reward_extra_info"]["note"] == ""
    assert reward.prompts == ["a cat"]


def test_torchmetrics_metric() -> None:
    """The metric is the mean over all updates of what has a score; it resets, is pickled, and merges by sums."""
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetric(Red(), batch_size=2)
    assert isinstance(metric, torchmetrics.Metric)
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        assert math.isnan(metric.compute())
    metric.update(red(255, 0, 51), ["a", "b", "none"])
    assert metric(torch.full([1, 3, 2, 2], 0.4), ["c"]) == pytest.approx(0.4)
    assert metric.compute() == pytest.approx((1 + 0 + 0.4) / 3)
    assert (int(metric.scored), int(metric.unscored)) == (3, 1)
    other = pickle.loads(pickle.dumps(metric))
    other.reset()
    other.update(red(255), ["a"])
    other.merge_state(metric)
    assert other.compute() == pytest.approx((1 + 0 + 0.4 + 1) / 4)
    together = torchmetrics.MetricCollection({"red": metric, "contrast": torchmetric(Contrast())})
    together.reset()
    together.update(red(51, 102), ["a", "b"])
    assert together.compute()["red"] == pytest.approx(0.3)


def test_ranking() -> None:
    """Images are ranked within their prompt, best first, with their notes; those without a score come last."""
    rank = diffusers_ranking(Red())
    first, second = rank(SimpleNamespace(images=red(10, 255, 0, 102, 51, 204)), ["a", "b"])
    assert [image.getpixel((0, 0))[0] for image in first.images] == [255, 10, 0]
    assert first.scores == pytest.approx([1, 10 / 255, 0])
    assert second.scores == pytest.approx([0.8, 0.4, 0.2])
    assert rank(red(9), "none")[0].notes == ["nothing to score"]
    none_first = rank(red(9, 51), ["none", "a"])
    assert [each.notes for each in none_first] == [["nothing to score"], [""]]
    assert diffusers_ranking(Contrast())(red(5, 9))[0].notes == ["", ""]
    assert rank([], "a") == [Ranked([], [], [])]
    with pytest.raises(ValueError, match="red needs as many images for every prompt, got 3 images and 2 prompts"):
        rank(red(1, 2, 3), ["a", "b"])


def test_ranking_of_images_without_a_score() -> None:
    """A NaN in the middle goes to the end, and the others keep their order."""

    class Odd(Red):
        def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
            scores = super()._score(images, prompts)
            values = torch.where(scores.values == 0, math.nan, scores.values)
            return Scores(values, ["dark" * bool(value.isnan()) for value in values])

    (ranked,) = diffusers_ranking(Odd())(red(51, 0, 255, 102), "a")
    assert [image.getpixel((0, 0))[0] for image in ranked.images] == [255, 102, 51, 0]
    assert ranked.notes == ["", "", "", "dark"]


def test_a_diffusers_pipeline(tmp_path: Path) -> None:
    """What a Stable Diffusion pipeline (tiny, random) makes for two prompts is ranked, each image by its own prompt."""
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", "a", "b", "a</w>", "b</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    wide = {"block_out_channels": (32, 64), "norm_num_groups": 8}
    text = CLIPTextConfig(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, cross_attention_dim=32,
            attention_head_dim=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **wide,
        ),
        vae=diffusers.AutoencoderKL(
            latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            **wide,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=77),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a", "b a"]
    draw = {"num_images_per_prompt": 3, "num_inference_steps": 1, "guidance_scale": 1.0}
    for kind in ("pil", "pt"):
        reward = Red()
        output = pipeline(prompts, generator=torch.Generator().manual_seed(0), output_type=kind, **draw)
        ranked = diffusers_ranking(reward)(output, prompts)
        assert reward.prompts == ["a"] * 3 + ["b a"] * 3
        made = [image.tobytes() for image in pil_images(output.images)]
        for index, each in enumerate(ranked):
            assert each.scores == sorted(each.scores, reverse=True)
            assert len(set(each.scores)) > 1
            own = {image.tobytes() for image in each.images}
            assert own == set(made[3 * index : 3 * index + 3])
