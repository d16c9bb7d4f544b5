"""The judge that T2I-R1 was trained with (Jiang et al., 2025): a LLaVA-OneVision taught to say yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rwk.adapters.preprocess import HALF, Preprocess
from rwk.adapters.pretrained import load_tokenizer, load_whole, read_shards
from rwk.adapters.published import Origin, fill
from rwk.adapters.questions import QUESTIONS
from rwk.adapters.squared import SquaredReward
from rwk.adapters.timm_head import Head
from rwk.adapters.vlm import tiny_processor
from rwk.rewards.base import RewardSpec
from rwk.rewards.tunable import HeadKind, ScaledHead

BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = QUESTIONS["orm"].turns[0] + "<|im_end|>\n<|im_start|>assistant\n"


class LlavaOneTile(nn.Module):
    """LLaVA-OneVision for an image of one tile: the patches of a SigLIP, a line break, and a Qwen2."""

    def __init__(self, language: nn.Module, vision: nn.Module, width: int, seen: int) -> None:
        super().__init__()
        self.language, self.vision = language, vision
        self.projector = nn.Sequential(nn.Linear(seen, width), nn.GELU(), nn.Linear(width, width))
        self.newline = nn.Parameter(torch.zeros(width))

    def forward(self, pixels: Tensor, before: Tensor, after: Sequence[Tensor]) -> Tensor:
        """[B, V] float32 logits of the first word after the text; takes what `states` takes."""
        logits: Tensor = self.language.get_submodule("lm_head")(self.states(pixels, before, after))
        return logits.float()

    def states(self, pixels: Tensor, before: Tensor, after: Sequence[Tensor]) -> Tensor:
        """[B, D] last states of the last token of the text.

        Args:
            pixels: [B, 3, size, size], normalised.
            before: ids of the text before the image.
            after: ids of each text after it.
        """
        words: Any = self.language.get_submodule("model.embed_tokens")
        # Before the last normalisation: LLaVA takes what the layers give.
        patches = self.vision(pixels.to(self.newline.dtype), output_hidden_states=True).hidden_states[-1]
        rows = [
            torch.cat([words(before), image, self.newline[None], words(ids)])
            for image, ids in zip(self.projector(patches), after, strict=True)
        ]
        ends = torch.tensor([len(row) - 1 for row in rows], device=pixels.device)
        mask = pad_sequence([torch.ones(len(row), device=row.device) for row in rows], batch_first=True)  # [B, L]
        states: Tensor = self.language.get_submodule("model")(
            inputs_embeds=pad_sequence(rows, batch_first=True), attention_mask=mask.bool(), use_cache=False
        ).last_hidden_state  # [B, L, D]
        return states[torch.arange(len(rows), device=ends.device), ends]


class Orm(SquaredReward):
    """sigmoid((l_yes - l_no) / 0.3), of the logits of the first word of the answer.

    From `CaraJ/ORM-T2I-R1`, in LLaVA's own layout. T2I-R1 samples an answer at temperature 0.3 and takes P(yes) among
    yes and no of that distribution, which is this number, but 0 where the sample is another word: here nothing is
    drawn. The image is made a square with a grey border, and is one tile of 384 pixels; transformers' own processor
    would cut it into several. In bfloat16, as published, or another type.

    `score_pixels` resizes floats, which differ from Pillow's rounded weights by at most 2 of 255 grey levels.
    """

    spec = RewardSpec(
        "orm.t2i_r1", "P(yes) among yes and no, at 0.3", 0, 1, "Apache-2.0", "arXiv:2505.00703", differentiable=True
    )
    origin: ClassVar[Origin] = Origin("CaraJ/ORM-T2I-R1", "model.safetensors.index.json", "Apache-2.0", 16_100)
    preprocess = Preprocess(384, "squash", mean=HALF, std=HALF)
    border = (127, 127, 127)
    tolerance = 2e-3
    drift = {"bfloat16": 3.3e-3}
    precision_note = "measured on 4 of its 28 layers"
    temperature: ClassVar[float] = 0.3
    tokenizer: Any

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "bfloat16",
    ) -> None:
        """
        Args:
            weights: a folder with the published files, tokenizer included; by default they come from the hub.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
            dtype: of the network: "bfloat16", "float16" or "float32".

        Raises:
            ValueError: for files that are not this checkpoint.
            RunFailed: where the checkpoint or the tokenizer cannot be had.
        """
        tensors = read_shards(self.spec.name, self.origin, weights, revision)
        self.tokenizer = load_tokenizer(self.spec.name, self.origin.hub, weights, revision)
        self._take(self._network(tensors, getattr(torch, dtype)), device)

    @classmethod
    def build(cls) -> LlavaOneTile:
        from transformers import Qwen2ForCausalLM, SiglipVisionModel

        language, vision = cls.configs()
        return LlavaOneTile(
            Qwen2ForCausalLM(language), SiglipVisionModel(vision), language.hidden_size, vision.hidden_size
        )

    @classmethod
    def configs(cls) -> tuple[Any, Any]:
        """transformers' configurations of Qwen2-7B and of SigLIP without its last layer."""
        from transformers import Qwen2Config, SiglipVisionConfig

        language = Qwen2Config(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
        vision = SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        )
        vision.vision_use_head = False
        return language, vision

    @classmethod
    def _network(cls, tensors: dict[str, Tensor], dtype: torch.dtype) -> LlavaOneTile:
        """The network filled with the published tensors, every one of them."""
        from transformers import Qwen2ForCausalLM, SiglipVisionModel

        language, vision = cls.configs()
        parts: dict[str, dict[str, Tensor]] = {"language": {}, "vision": {}, "projector": {}, "newline": {}}
        for key, tensor in tensors.items():
            inner = key.removeprefix("model.vision_tower.vision_tower.vision_model.")
            layer = key.removeprefix("model.mm_projector.")
            if inner != key:
                parts["vision"][inner] = tensor
            elif layer != key:
                parts["projector"][layer] = tensor
            elif key == "model.image_newline":
                parts["newline"]["newline"] = tensor
            else:
                parts["language"][key] = tensor
        loaded = load_whole(
            cls.spec.name, Qwen2ForCausalLM, None, config=language, state_dict=parts["language"], dtype=dtype
        )
        with torch.random.fork_rng(devices=[]):
            network = LlavaOneTile(loaded, SiglipVisionModel(vision), language.hidden_size, vision.hidden_size)
        network = network.to(dtype)
        fill(cls.spec.name, network.vision, parts["vision"])
        fill(cls.spec.name, network.projector, parts["projector"])
        fill(cls.spec.name, nn.ParameterDict({"newline": network.newline}), parts["newline"])
        return network

    @classmethod
    def tiny(cls) -> Self:
        from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

        tokenizer = tiny_processor(["yes", "no"]).tokenizer
        language = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        vision = SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        )
        vision.vision_use_head = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = LlavaOneTile(Qwen2ForCausalLM(language), SiglipVisionModel(vision), 32, 32)
            for weight in network.parameters():
                nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
        return cls.of(network, tokenizer=tokenizer, preprocess=Preprocess(28, "squash", mean=HALF, std=HALF))

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.log_odds(pixels, prompts).sigmoid()

    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        """The log-odds of yes; `scalar`, a linear map of the state before the answer."""
        self.scalar = kind == "scalar"
        return Head(len(self.network.get_parameter("newline"))) if self.scalar else ScaledHead(nn.Identity())

    def features(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:
        if not self.scalar:
            return self.log_odds(prepared, prompts)[:, None]
        network: Any = self.network
        states: Tensor = network.states(prepared, self._ids(BEFORE), self._after(prompts))
        return states.float()

    def log_odds(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] (l_yes - l_no) / 0.3, with gradient, of pixels [B, 3, size, size] as `preprocess` makes them."""
        logits = self.network(pixels, self._ids(BEFORE), self._after(prompts))  # [B, V]
        yes, no = (logits[:, self.tokenizer.convert_tokens_to_ids(word)] for word in QUESTIONS["orm"].answers)
        log_odds: Tensor = (yes - no) / self.temperature
        return log_odds

    def _after(self, prompts: Sequence[str]) -> list[Tensor]:
        return [self._ids(AFTER.replace("{prompt}", prompt)) for prompt in prompts]

    def _ids(self, text: str) -> Tensor:
        """[L] ids of a text."""
        return torch.tensor(self.tokenizer(text).input_ids, device=self.device)
