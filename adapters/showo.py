"""Show-o (Xie et al., 2024): a Phi that fills in the masked codes of a picture, many at a time.

The authors draw a code for every masked place and keep those whose probability, with some noise, is highest. What is
kept so is no draw of the network: likely codes are favoured, by more than their probability, and the chance of that is
a sum over all that was thrown away. Here a fixed order says which places are drawn next, so the log-probability of a
picture is exact, and the two pictures of a pair are read under the same masks. The order is the Halton sequence in two
dimensions, which keeps the places of one draw apart; its authors report a better FID with it than by confidence, in
MaskGIT (Besnier et al., 2025, arXiv:2503.17076). How many places a draw has is as the authors of Show-o have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.magvit_vq import Magvit, MagvitConfig
from rwk.adapters.masked_order import halton_order, steps_of
from rwk.adapters.pretrained import load_tokenizer, load_whole
from rwk.adapters.published import Origin, beside, find, read
from rwk.adapters.saved_networks import Tensors, filled, read_networks, write_networks
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.packed import outputs
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.stepwise import Reader, StepwiseGenerator

TEXT = 129
"""Places for a prompt, its marks among them."""
MARKS = ("pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
"""Their ids follow those of the tokenizer's words: padding, begin and end of an image, what is asked for, and others.
Behind them come the codes, and the mask last."""
PHI = "microsoft/phi-1_5"
VQ = Origin("showlab/magvitv2", "pytorch_model.safetensors", "MIT", 382)


def spec_of(name: str, side: int, draws: int, guidance: float, licence: str) -> GeneratorSpec:
    """The spec of a published generator, which fills in `side` by `side` codes of 16 by 16 pixels."""
    steps = steps_of(side**2, draws)
    return GeneratorSpec(name, side**2, 8192, 16 * side, licence, "arXiv:2408.12528", Sampling(guidance), steps)


@dataclass(frozen=True)
class PhiSizes:
    """Of the network; by default those of the published one, which is Phi-1.5 with normalised queries and keys."""

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    words: int = 50295
    """Of the tokenizer."""

    def config(self, codes: int) -> Any:
        """transformers' `PhiConfig`, with a vocabulary of words, marks, codes and the mask."""
        from transformers import PhiConfig

        sizes = {key: value for key, value in asdict(self).items() if key != "words"}
        vocabulary = self.words + len(MARKS) + codes + 1
        return PhiConfig(**sizes, vocab_size=vocabulary, qk_layernorm=True, bos_token_id=None, eos_token_id=None)


class Showo(StepwiseGenerator):
    """Show-o at 256 pixels: 1.4 billion weights.

    Tokens are in the order of drawing, not row by row. The authors' guidance_scale is the guidance here, less 1.
    """

    spec = spec_of("showo.256", 16, 18, 2.75, "MIT")
    sizes: ClassVar[PhiSizes] = PhiSizes()
    vq_sizes: ClassVar[MagvitConfig] = MagvitConfig()
    origin: ClassVar[Origin] = Origin("showlab/show-o", "pytorch_model.safetensors", "MIT", 5790)
    example_prompts = ("a fox", "a cat on a mat", "zebras")
    max_rows = 64
    cached = False
    module: Any

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        draws: int | None = None,
    ) -> None:
        """
        Args:
            weights: the published file, or a folder that holds it. The file of the tokenizer of images, which has the
                same name, is taken from a folder magvitv2 beside it, and the files of Phi's tokenizer from beside it,
                where they are. By default all come from the hub.
            revision: branch, tag or commit of the hub's repository of the network.
            device: where the networks lie.
            dtype: of the network: "float32", "bfloat16" or "float16".
            draws: how many make a picture; by default as the authors have it.

        Raises:
            ValueError: for files that are not these checkpoints, and more draws than tokens.
            RunFailed: where a file cannot be had.
        """
        name, file = self.spec.name, VQ.file
        by_hand = f"copy {file} of {self.origin.hub} into a folder, {file} of {VQ.hub} into its folder magvitv2"
        by_hand += " and name it as {name}@PATH"
        path = find(name, self.origin, weights, revision, by_hand=by_hand)
        near = beside(weights, f"magvitv2/{file}")
        vq_path = find(name, VQ, near and near / "magvitv2", by_hand=by_hand)
        tokenizer = load_tokenizer(name, PHI, weights)
        if len(tokenizer) != self.sizes.words:
            raise ValueError(
                f"{name} needs a tokenizer of {self.sizes.words} words, got one of {len(tokenizer)}; take {PHI}."
            )
        if draws is not None:
            self.spec = replace(self.spec, steps=steps_of(self.spec.tokens, draws))
        self._load(self.sizes, self.vq_sizes, [published(path), published(vq_path)], tokenizer, device, dtype)

    def _load(
        self, phi: PhiSizes, vq: MagvitConfig, tensors: list[Tensors], tokenizer: Any, device: str, dtype: str
    ) -> Self:
        from transformers import PhiForCausalLM

        name, config = self.spec.name, phi.config(1 << vq.bits)
        options = {"state_dict": dict(tensors[0]), "config": config, "dtype": getattr(torch, dtype)}
        network = load_whole(name, PhiForCausalLM, None, **options)
        return self._take(phi, network, filled(name, lambda: Magvit(vq), tensors[1], device, "float32"), tokenizer)

    def _take(self, phi: PhiSizes, network: Any, vq: Magvit, tokenizer: Any) -> Self:
        device = vq.decoder.conv_in.weight.device
        self.module, self.vq = network.to(device), vq.requires_grad_(False).eval()
        self.sizes, self.tokenizer = phi, tokenizer  # type: ignore[misc]
        self.order = halton_order(math.isqrt(self.spec.tokens)).to(device)
        side = math.isqrt(self.spec.tokens)
        self.spec = replace(self.spec, codes=1 << vq.config.bits, image_size=side * vq.config.patch)
        return self

    @classmethod
    def origins(cls) -> tuple[Origin, ...]:
        """Every published checkpoint that it is made of."""
        return (cls.origin, VQ)

    @classmethod
    def tiny(cls) -> Self:
        from transformers import PhiForCausalLM

        tokenizer = tiny_tokenizer()
        phi = PhiSizes(16, 32, 2, 2, words=len(tokenizer))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = PhiForCausalLM(phi.config(32))
            vq = Magvit(MagvitConfig(5, 32, (1, 1), (1, 1), (1, 1), (1, 1)))
            for weight in network.parameters():
                if weight.ndim > 1:  # the usual init is so small that a prompt would hardly matter
                    nn.init.normal_(weight, std=1.5 * weight.shape[1] ** -0.5)
        self = cls.__new__(cls)
        self.spec = replace(cls.spec, tokens=9, steps=steps_of(9, 3))
        return self._take(phi, network, vq, tokenizer)

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        from transformers import AutoTokenizer

        config, tensors = read_networks(folder, "phi", "vq")
        held, tokenizer = config["spec"], AutoTokenizer.from_pretrained(str(folder))
        self = cls.__new__(cls)
        self.spec = replace(cls.spec, tokens=held["tokens"], steps=held["steps"], sampling=Sampling(**held["sampling"]))
        phi, vq = PhiSizes(**config["phi"]), MagvitConfig(**config["vq"])
        return self._load(phi, vq, tensors, tokenizer, device, config["dtype"])

    def _save(self, folder: Path) -> None:
        phi, vq = asdict(self.sizes), asdict(self.vq.config)
        write_networks(folder, self.spec, phi=(self.module, phi), vq=(self.vq, vq))
        self.tokenizer.save_pretrained(folder)

    def prompt_ids(self, prompt: str | None) -> list[int]:
        """Ids of the prompt, or of none, up to the mark after which the image begins; cut to `TEXT`, its end kept."""
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = self.tokenizer.encode(prompt, add_special_tokens=False) if prompt else []
        ids = [self._mark("t2i"), *([] if ids[:1] == [begin] else [begin]), *ids]
        return [*ids[: TEXT - 1], end, self._mark("soi")]

    def _mark(self, name: str) -> int:
        return self.sizes.words + MARKS.index(name)

    def reader(self, rows: Sequence[str | None]) -> Reader:
        prefixes = [self.prompt_ids(row) for row in rows]
        width, length, first = max(map(len, prefixes)), self.spec.tokens, self._mark(MARKS[-1]) + 1
        padded = [[self._mark("pad")] * (width - len(ids)) + ids for ids in prefixes]
        ids = torch.tensor(padded, device=self.device)
        ids = nn.functional.pad(ids, (0, length), value=first + self.spec.codes)  # the mask
        ids = nn.functional.pad(ids, (0, 1), value=self._mark("eoi"))
        mask = self._mask([width - len(prefix) for prefix in prefixes], width, ids.shape[1])
        positions = torch.arange(ids.shape[1], device=self.device)[None] + TEXT + 1 - width

        def read(codes: Tensor) -> Tensor:
            known = codes.shape[1]
            drawn = ids.index_copy(1, width + self.order[:known], first + codes)
            embeds = self.module.get_input_embeddings()(drawn)
            output = self.module.get_decoder()(
                inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=False
            )
            count = next(end - start for start, end in self.bounds if start == known)
            return output.last_hidden_state[:, width + self.order[known : known + count]]  # type: ignore[no-any-return]

        return read

    def _mask(self, padding: list[int], width: int, length: int) -> Tensor:
        """[B, 1, S, S] to add to the scores: a prompt sees what is before, an image all; padding is seen by itself."""
        place = torch.arange(length, device=self.device)
        seen = (place[None] <= place[:, None]) | (place[:, None] >= width - 1)  # the mark before the image sees it too
        pads = place[None] < torch.tensor(padding, device=self.device)[:, None]  # [B, S]
        shut = ~(seen & (~pads[:, None] | pads[:, :, None]))[:, None]
        dtype = self.module.dtype
        return torch.zeros(shut.shape, dtype=dtype, device=self.device).masked_fill(shut, torch.finfo(dtype).min)

    def image_logits(self, hidden: Tensor) -> Tensor:
        head, first = self.module.get_output_embeddings(), self._mark(MARKS[-1]) + 1
        codes = slice(first, first + self.spec.codes)
        if type(head) is not nn.Linear:  # LoRA on the head: its rows are not in .weight alone
            return head(hidden)[..., codes]  # type: ignore[no-any-return]
        return outputs(head, hidden, codes)

    def code_embeddings(self) -> Tensor:
        return self.vq.codebook

    def soft_pixels(self, embeddings: Tensor) -> Tensor:
        return self.vq.decode(embeddings[:, self.order.argsort()])

    def _levels(self, tokens: Tensor) -> Tensor:
        """See `Generator._levels`; they are cut off, not rounded, as the authors do."""
        return (255 * self.soft_pixels(self.vq.codebook[tokens])).byte()

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; the codes to come are those of a grey picture."""
        side = self.spec.image_size
        with torch.no_grad():
            grey = self.vq.encode(torch.full([1, 3, side, side], 0.5, device=self.device))[:, self.order]  # [1, L]
        ahead = grey.expand(len(tokens), -1)[:, tokens.shape[1] :]
        return self.decode(torch.cat([tokens.to(self.device), ahead], 1))


class Showo512(Showo):
    """Show-o at 512 pixels, otherwise as `showo.256`."""

    spec = spec_of("showo.512", 32, 50, 6.0, "Apache-2.0")
    origin = replace(Showo.origin, hub="showlab/show-o-512x512", licence="Apache-2.0")


class Showo512Base(Showo512):
    """Show-o at 512 pixels before it was tuned on instructions, otherwise as `showo.512`."""

    spec = replace(Showo512.spec, name="showo.512_base")
    origin = replace(Showo512.origin, hub="showlab/show-o-512x512-wo-llava-tuning")


class ShowoClip(Showo):
    """Show-o at 256 pixels that reads images by CLIP, otherwise as `showo.256`."""

    spec = replace(Showo.spec, name="showo.clip_256")
    origin = replace(Showo.origin, hub="showlab/show-o-w-clip-vit", megabytes=5820)


class ShowoClip512(Showo512):
    """Show-o at 512 pixels that reads images by CLIP, otherwise as `showo.512`."""

    spec = replace(Showo512.spec, name="showo.clip_512")
    origin = replace(Showo512.origin, hub="showlab/show-o-w-clip-vit-512x512", megabytes=5820)


def published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file under the keys of the networks, without what reads images by CLIP and tables."""
    left_out = ("mm_projector.", "quantize.")
    return {k.removeprefix("showo."): v for k, v in read(path).items() if not k.startswith(left_out)}


def tiny_tokenizer() -> Any:
    """A tokenizer that reads bytes, with Phi's begin and end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer.add_special_tokens([end])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)
