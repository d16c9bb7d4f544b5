"""Ratios of rwk's rollout and statistics to plain transformers, each pair measured in turns in one run.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py                          # the built-in world's size
    python benchmarks/rollout.py --device cuda --dtype bfloat16 --layers 24 --width 1024 --tokens 576 --codes 16384
    python benchmarks/rollout.py --model janus_pro_7b --device cuda --dtype bfloat16 --torch-compile --ceilings
    OMP_NUM_THREADS=2 python benchmarks/rollout.py --model janus            # a random Janus
    OMP_NUM_THREADS=2 python benchmarks/rollout.py --model janus --ceilings  # and what the machine could do at most

Sampling is compared with `generate`, which reads every row's prompt and grows its cache, on the same model, rows and
number of tokens; guided, with its `guidance_scale`. Statistics are compared with a padded forward pass over the whole
vocabulary. Janus, guided, is compared with its own `generate` and with the loop of the authors' script, which trainers
have taken over: rows with and without prompt in turns, each prompt read for every row, a cache that grows. A ratio
above 1 says that rwk is faster. State the machine with the numbers: a shared one is noisy.

`--ceilings` measures what the machine does in a second, of a large product of matrices and of a copy in memory. At that
rate the products of all tokens with the weights, and the reading of all keys and values, take so many seconds; the
ratio is that of rwk's seconds to these. Where weights do not stay in a cache, as on a GPU, each step reads them too:
the share of the copy's bandwidth, with them, is what bounds drawing there.
"""

from __future__ import annotations

import argparse
import math
import statistics as stats
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.rollout import CausalGenerator
from rwk.policy_opt.sampling import Sampling

if TYPE_CHECKING:
    from rwk.adapters.janus import JanusPro

_JANUS = {"layers": 8, "width": 512, "inner": 0, "codes": 16384, "tokens": 576, "prompts": 1, "group": 8, "rounds": 3}
SIZES = {
    "llama": {"layers": 6, "width": 192, "inner": 0, "codes": 512, "tokens": 64, "prompts": 8, "group": 8, "rounds": 5},
    "janus": _JANUS,
    "janus_pro_1b": _JANUS | {"layers": 24, "width": 2048, "inner": 5632},
    "janus_pro_7b": _JANUS | {"layers": 30, "width": 4096, "inner": 11008},
}
"""`inner` is the width inside the feed-forward parts; 0 is 8/3 of the width."""
UNEQUAL, LONG, BOTH = ", unequal prompts", ", prompts of 200", ", prompts of 10 and 200"
PROMPTS = {"equal": ("", [15]), "unequal": (UNEQUAL, [8, 15, 22]), "long": (LONG, [200]), "both": (BOTH, [8, 198])}
"""What the pairs are called, and how many letters the prompts have in turns."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TEXT = 256
"""Text tokens in the vocabulary, after the codes."""


class Measured(CausalGenerator):
    """A Llama of the given size with random weights; a prompt is a text token for each letter, and one before."""

    def __init__(self, options: argparse.Namespace) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        self.spec = GeneratorSpec("measured", options.tokens, options.codes, options.tokens, "n/a", "random")
        config = LlamaConfig(
            vocab_size=options.codes + TEXT,
            hidden_size=options.width,
            intermediate_size=options.inner or options.width * 8 // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=max(1, options.width // 32),
            max_position_embeddings=options.tokens + 1024,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        self.module: Any = LlamaForCausalLM(config).eval().to(options.device, getattr(torch, options.dtype))

    def prompt_ids(self, prompt: str) -> list[int]:
        return [self.spec.codes, *(self.spec.codes + 2 + ord(letter) % (TEXT - 2) for letter in prompt)]

    def null_ids(self, prompt: str) -> list[int]:
        return [self.spec.codes, self.spec.codes + 1]

    def _levels(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def _save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Measured:
        raise NotImplementedError

    @classmethod
    def tiny(cls) -> Measured:
        raise NotImplementedError


def padded(generator: Measured, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids [B, P], padded on the left as `generate` wants them, and their mask."""
    rows = [generator.prompt_ids(prompt) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=generator.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=generator.device)
    return ids, mask


def plain_sample(generator: Measured, prompts: list[str], guidance: float) -> None:
    """As many tokens for as many rows by transformers' `generate`."""
    ids, mask = padded(generator, prompts)
    options: dict[str, Any] = {}
    if guidance != 1:
        null = torch.tensor([generator.null_ids(prompt) for prompt in prompts], device=ids.device)
        options = {"guidance_scale": guidance, "negative_prompt_ids": null}
    count = generator.spec.tokens
    generator.module.generate(
        ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=True, top_k=0, **options
    )


def plain_statistics(generator: Measured, prompts: list[str], tokens: Tensor) -> None:
    """Log-probabilities and entropy over the whole vocabulary, and the gradient."""
    ids, mask = padded(generator, prompts)
    full = torch.cat([ids, tokens], 1)
    mask = torch.cat([mask, torch.ones_like(tokens)], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = generator.module(input_ids=full, attention_mask=mask, position_ids=places).logits[:, ids.shape[1] - 1 : -1]
    logp = logits.float().log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    (logp.gather(2, tokens[..., None]).mean() + 0.01 * entropy.mean()).backward()


def seconds(run: Callable[[], object], options: argparse.Namespace) -> float:
    """How long the run took, the device's work included."""
    clock = CLOCKS[options.clock]
    start = clock()
    run()
    if options.device != "cpu":
        torch.accelerator.synchronize()
    return clock() - start


def measure(name: str, ours: Callable[[], object], plain: Callable[[], object], options: argparse.Namespace) -> float:
    """Prints the median ratio of pairs, its range, and median seconds and tokens a second; returns our seconds."""
    pairs = [(seconds(plain, options), seconds(ours, options)) for _ in range(options.rounds)]
    ratios = sorted(slow / fast for slow, fast in pairs)
    slow, fast = (stats.median(column) for column in zip(*pairs, strict=True))
    rate = options.prompts * options.group * options.tokens  # tokens of a run
    print(
        f"{name:40} {stats.median(ratios):5.2f} {ratios[0]:6.2f}..{ratios[-1]:.2f} {slow:9.3f} {fast:9.3f}"
        f" {rate / slow:9.0f} {rate / fast:9.0f}",
        flush=True,
    )
    return fast


def llama(options: argparse.Namespace) -> None:
    """Sampling and statistics of a Llama with codes in its vocabulary."""
    generator = Measured(options)
    generator.torch_compile = options.torch_compile
    for kind in options.prompts_of:
        name, letters = PROMPTS[kind]
        prompts = ["x" * letters[i % len(letters)] + chr(97 + i) for i in range(options.prompts)]
        rows = [prompt for prompt in prompts for _ in range(options.group)]
        for guidance in (1.0, 3.0):
            recipe = Sampling(guidance=guidance)

            def ours(prompts: list[str] = prompts, recipe: Sampling = recipe) -> object:
                return generator.sample(prompts, per_prompt=options.group, seed=0, sampling=recipe)

            def plain(rows: list[str] = rows, guidance: float = guidance) -> None:
                plain_sample(generator, rows, guidance)

            ours(), plain()
            measure(f"sample, guidance {guidance:g}{name}", ours, plain, options)
        drawn = generator.sample(prompts, per_prompt=options.group, seed=0)

        def ours_trained(drawn: Any = drawn) -> None:
            result = generator.statistics(drawn)
            (result.logprobs.mean() + 0.01 * result.entropy.mean()).backward()

        def plain_trained(rows: list[str] = rows, drawn: Any = drawn) -> None:
            plain_statistics(generator, rows, drawn.tokens)

        ours_trained(), plain_trained()
        measure(f"statistics and gradient{name}", ours_trained, plain_trained, options)


def janus_generate(generator: JanusPro, rows: list[str], guidance: float, *, greedy: bool = False) -> Tensor:
    """Tokens [B, L] by transformers' `JanusForConditionalGeneration.generate`."""
    ids = torch.tensor([generator.prompt_ids(row) for row in rows], device=generator.device)
    options: dict[str, Any] = {"guidance_scale": guidance, "do_sample": not greedy} | ({} if greedy else {"top_k": 0})
    mask = torch.ones_like(ids)
    return generator.network.generate(ids, attention_mask=mask, generation_mode="image", **options)  # type: ignore[no-any-return]


@torch.no_grad()
def janus_loop(generator: JanusPro, rows: list[str], guidance: float, *, greedy: bool = False) -> Tensor:
    """Tokens [B, L] by a loop as the authors write it."""
    from transformers import DynamicCache

    network = generator.network
    ids = torch.tensor([generator.prompt_ids(row) for row in rows], device=generator.device).repeat_interleave(2, 0)
    ids[1::2, 1:-1] = generator.pad
    embeds, cache, drawn = network.get_input_embeddings()(ids), DynamicCache(), []
    for _ in range(generator.spec.tokens):
        decoder = network.model.language_model
        hidden = decoder(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        logits = network.model.generation_head(hidden)
        logits = logits[1::2] + guidance * (logits[0::2] - logits[1::2])
        code = logits.argmax(1) if greedy else torch.multinomial(logits.softmax(1), 1)[:, 0]
        drawn.append(code)
        embeds = network.prepare_embeddings_for_image_generation(code.repeat_interleave(2)[:, None])
    return torch.stack(drawn, 1)


def janus(options: argparse.Namespace) -> None:
    """Guided sampling of a random Janus; greedy tokens of all ways are compared first, and must be the same."""
    from rwk.adapters.janus import JanusPro, random_network, tiny_tokenizer

    side = math.isqrt(options.tokens)
    sizes = {name: getattr(options, name) for name in ("layers", "width", "inner", "codes")}
    network = random_network(**sizes, side=side)
    network.to(getattr(torch, options.dtype))
    generator = JanusPro.of(network, tiny_tokenizer(), device=options.device)
    generator.torch_compile = options.torch_compile
    guidance = generator.spec.sampling.guidance
    around = len(generator.prompt_ids("x")) - 1
    for length in (16, 256):
        prompts = [chr(97 + i) * (length - around) for i in range(options.prompts)]
        rows = [prompt for prompt in prompts for _ in range(options.group)]

        def ours(prompts: list[str] = prompts, top_k: int = 0) -> Tensor:
            recipe = Sampling(guidance=guidance, top_k=top_k)
            return generator.sample(prompts, per_prompt=options.group, seed=0, sampling=recipe).tokens

        greedy = ours(top_k=1)
        for name in options.against:
            way = {"generate": janus_generate, "loop": janus_loop}[name]
            same = (way(generator, rows, guidance, greedy=True) == greedy).float().mean().item()
            if same < 1 and options.dtype == "float32":
                raise SystemExit(f"greedy tokens of {name} are those of rwk in {same:.1%} of places; they must be all.")

            def plain(way: Any = way, rows: list[str] = rows) -> Tensor:
                return way(generator, rows, guidance)  # type: ignore[no-any-return]

            took = measure(f"{name}, prompts of {length}", ours, plain, options)
        if options.ceilings:
            against_ceilings(generator, length, took, options)


def ceilings(options: argparse.Namespace) -> tuple[float, float]:
    """Operations a second of a large product of matrices, and bytes a second that a copy reads and writes."""
    square = torch.randn(2048, 2048).to(options.device, getattr(torch, options.dtype))
    source = torch.empty(1 << 28, dtype=torch.uint8, device=options.device).fill_(1)
    target = torch.ones_like(source)
    product = min(seconds(lambda: square @ square, options) for _ in range(5))
    copy = min(seconds(lambda: target.copy_(source), options) for _ in range(5))
    return 2 * 2048**3 / product, 2 * len(source) / copy


def against_ceilings(generator: JanusPro, length: int, took: float, options: argparse.Namespace) -> None:
    """Prints what drawing did in a second, what the machine can do, and how near it came to that."""
    flops, traffic = ceilings(options)
    linear = [part.weight for part in generator.module.modules() if isinstance(part, torch.nn.Linear)]
    weights, held = sum(weight.numel() for weight in linear), sum(weight.nbytes for weight in linear)
    rows, prefixes = 2 * options.prompts * options.group, options.prompts + 1
    read = length * prefixes + rows * (options.tokens - 1)
    kept = 2 * options.width * options.layers * getattr(torch, options.dtype).itemsize  # of a token, keys and values
    products = 2 * weights * read
    keys = kept * (rows * options.tokens * (options.tokens - 1) // 2 + prefixes * length * (options.tokens - 1))
    floor = products / flops + keys / traffic
    print(
        f"{f'the ceilings, prompts of {length}':40} {took / floor:5.2f} {'':14} {'':9} {floor:9.3f}\n"
        f"    products {products / took / 1e9:.0f} of {flops / 1e9:.0f} GFLOP/s, {products / flops:.2f} s so; "
        f"keys and values {keys / took / 1e9:.1f} of {traffic / 1e9:.1f} GB/s, {keys / traffic:.2f} s so; "
        f"with {held / 1e9:.2f} GB of weights in each of {options.tokens} steps "
        f"{(keys + held * options.tokens) / traffic / took:.0%} of that bandwidth; "
        f"{options.prompts * options.group / took:.2f} images per second",
        flush=True,
    )


def main() -> None:
    """Measures every pair and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SIZES], default="llama")
    for option in SIZES["llama"]:
        defaults = ", ".join(f"{sizes[option]} for {model}" for model, sizes in SIZES.items())
        parser.add_argument(f"--{option}", type=int, help=defaults)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    ways = ["generate", "loop"]
    parser.add_argument("--against", choices=ways, nargs="+", default=ways, help="of Janus: the authors' loop, say")
    parser.add_argument("--prompts-of", choices=[*PROMPTS], nargs="+", default=[*PROMPTS], help="lengths, of llama")
    parser.add_argument("--torch-compile", action="store_true", help="rwk draws by compiled steps, as suits a GPU")
    parser.add_argument("--ceilings", action="store_true", help="of Janus also against what the machine can do")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help="cpu counts processor time, with one thread")
    options = parser.parse_args()
    vars(options).update({name: size for name, size in SIZES[options.model].items() if getattr(options, name) is None})
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {vars(options)}")
    heads = ("plain s", "rwk s", "tokens/s", "rwk")
    print(f"{'pair':40} {'ratio':>5} {'range':>12} " + " ".join(f"{head:>9}" for head in heads))
    (llama if options.model == "llama" else janus)(options)


if __name__ == "__main__":
    main()
