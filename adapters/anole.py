"""Anole (GAIR, 2024): Chameleon 7B (Meta, 2024), taught to draw again, which writes the 32 by 32 codes of an image.

Chameleon's own checkpoints are not here: Meta published them with the outputs of the image codes suppressed, and
transformers' class suppresses them again. Anole trained these outputs anew and kept all else.

The checkpoint is the authors' own. The distribution is that of their `text2image.py` (github.com/GAIR-NLP/anole): the
prompt ends a turn, after which an image begins; the unconditional model reads neither; guidance is 3, the temperature
0.7, top-p 0.9, over the codes alone.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwk.adapters.chameleon_layout import transformer_of, vq_of
from rwk.adapters.llamagen_vq import Vq, VqConfig
from rwk.adapters.pretrained import load_whole
from rwk.adapters.published import Origin, fill, find, read
from rwk.adapters.transformers_generator import TransformersGenerator, byte_tokenizer
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.sampling import Sampling

BOS, PAD, EOT, BOI = "<s>", "<pad>", "<reserved08706>", "<racm3:break>"
"""Begin of the text, padding, end of a turn, begin of an image."""
LICENCE = "Chameleon Research License"


class Anole(TransformersGenerator):
    """Anole 7B v0.1: the text model of `transformers.ChameleonForConditionalGeneration`, and Chameleon's VQ."""

    spec = GeneratorSpec("anole.7b_v01", 1024, 8192, 512, LICENCE, "arXiv:2407.06135", Sampling(3.0, 0.7, top_p=0.9))
    hub = "GAIR/Anole-7b-v0.1"
    architecture, model_type = "ChameleonForConditionalGeneration", "chameleon"
    unused = ("model.vqmodel.",)  # the encoder alone, which `vq` has too

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        """
        Args:
            weights: a folder as the authors publish it, with or without its folders `models/7b` and `tokenizer`; by
                default it comes from the hub.
            revision: branch, tag or commit of the hub's repository.
            device: where the networks lie.
            dtype: of the transformer, "float32" or "bfloat16", say; "auto" is that of the checkpoint.

        Raises:
            ValueError: for files that are not this checkpoint.
            RunFailed: where a file cannot be had.
        """
        from transformers import ChameleonForConditionalGeneration, PreTrainedTokenizerFast

        folder, paths = Path(weights).expanduser() if weights else None, []
        for origin in self.origins():
            inner = folder / Path(origin.file).parent if folder else None
            where = inner if inner and inner.is_dir() else folder
            by_hand = f"copy the folder of {self.hub} here and name it as {{name}}@PATH"
            paths.append(find(self.spec.name, origin, where, revision, by_hand=by_hand))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(paths[1]), bos_token=BOS, pad_token=PAD)
        self.vq = vq_of(self.spec.name, read(paths[2]))
        config, tensors = transformer_of(self.spec.name, read(paths[0]))
        network = load_whole(
            self.spec.name,
            ChameleonForConditionalGeneration,
            None,
            unused=self.unused,
            config=config,
            state_dict=tensors,
            dtype=tensors["model.embed_tokens.weight"].dtype if dtype == "auto" else dtype,
        )
        self._take(network, tokenizer, device)

    @classmethod
    def origins(cls) -> tuple[Origin, ...]:
        """The published files: transformer, tokenizer of texts, tokenizer of images."""
        files = {"models/7b/consolidated.pth": 14_027, "tokenizer/text_tokenizer.json": 6, "tokenizer/vqgan.ckpt": 281}
        return tuple(Origin(cls.hub, file, LICENCE, size) for file, size in files.items())

    def _take(self, network: Any, tokenizer: Any, device: str) -> Self:
        network.model.vqmodel = nn.Identity()
        self.network = self.module = network.to(device).eval().requires_grad_(True)
        self.vq = self.vq.to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.bos, self.eot, self.boi = self.ids_of((BOS, EOT, BOI))
        images = sorted(number for token, number in tokenizer.get_vocab().items() if token.startswith("IMGIMG"))
        codes = self.vq.config.codes
        self.first_code = min(images, default=0)
        if images != list(range(self.first_code, self.first_code + codes)):
            raise ValueError(
                f"{self.spec.name} needs the ids of its {codes} codes in one row, got {len(images)} of them, from "
                f"{self.first_code} on; take the published tokenizer."
            )
        self.spec = replace(self.spec, tokens=(self.spec.image_size // self.vq.config.patch) ** 2, codes=codes)
        return self

    @classmethod
    def tiny(cls) -> Self:
        self = cls.__new__(cls)
        self.spec = replace(cls.spec, image_size=6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.vq = Vq(VqConfig(32, 8, 32, 8, (1, 1), attends=False, unit=False))
            network = random_network()
        return self._take(network, tiny_tokenizer(), "cpu")

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        self = cls.__new__(cls)
        config = json.loads((folder / "vq.json").read_text())
        self.vq = Vq(VqConfig(**config | {"multiples": tuple(config["multiples"])}))
        fill(cls.spec.name, self.vq, load_file(folder / "vq.safetensors"))
        TransformersGenerator.__init__(self, weights=folder, device=device)
        return self

    def _save(self, folder: Path) -> None:
        """See `Generator._save`; the VQ has files of its own beside those of transformers."""
        super()._save(folder)
        (folder / "vq.json").write_text(json.dumps(asdict(self.vq.config)) + "\n")
        state = {key: value.cpu().contiguous() for key, value in self.vq.state_dict().items()}
        save_file(state, folder / "vq.safetensors")

    @functools.cached_property
    def control(self) -> frozenset[int]:
        return super().control | frozenset(range(self.first_code, self.first_code + self.spec.codes))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the prompt as a turn, and of an image's begin; raises ValueError for a control token in it."""
        return [self.bos, *self.words(prompt), self.eot, self.boi]

    def null_ids(self, prompt: str) -> list[int]:
        return [self.bos, self.boi]

    def _levels(self, tokens: Tensor) -> Tensor:
        """See `Generator._levels`; they are cut off, not rounded, as the authors do."""
        return (255 * self.vq.decode(tokens)).byte()

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; the codes to come are those of an even grey."""
        size = self.spec.image_size
        with torch.no_grad():
            grey = self.vq.encode(torch.full([1, 3, size, size], 0.5, device=self.device))  # [1, L]
        ahead = grey.expand(len(tokens), -1)[:, tokens.shape[1] :]
        return self.decode(torch.cat([tokens.to(self.device), ahead], 1))


def random_network(*, layers: int = 2, width: int = 32) -> Any:
    """A random `ChameleonForConditionalGeneration` for `tiny_tokenizer`."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    vocabulary = tiny_tokenizer().get_vocab()
    config = ChameleonConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocabulary_map=vocabulary,
        vq_config={"base_channels": 32, "channel_multiplier": (1,), "num_res_blocks": 1, "latent_channels": 32},
    )
    network = ChameleonForConditionalGeneration(config)
    for weight in network.parameters():
        if weight.dim() == 2:  # the usual init is so small that a prompt would hardly matter
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return network


def tiny_tokenizer(codes: int = 32) -> Any:
    """A tokenizer that reads bytes, with the control tokens and as many codes of Chameleon."""
    digits = (str(code).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) for code in range(codes))
    return byte_tokenizer(BOS, PAD, EOT, BOI, *(f"IMGIMG{letters}Z" for letters in digits))
