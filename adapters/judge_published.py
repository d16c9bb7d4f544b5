"""Judges that ask what published verifiers are asked, of any chat model that reads images."""

from __future__ import annotations

from dataclasses import replace

from rwk.adapters.judge import VqaScore, YesNo


class OrmQuestion(YesNo):
    """P(yes) among yes and no, asked as the verifier of whole images of Guo et al. (2025) is, and that of T2I-R1.

    They sample the answer, at temperature 1 and 0.3, and score an image 0 where it is another word; here nothing is
    drawn. `orm.t2i_r1` is the network that T2I-R1 taught to answer; without that teaching they ask LLaVA-OneVision.
    """

    spec = replace(YesNo.spec, name="judge.orm", source="arXiv:2501.13926")
    drift = {"bfloat16": 6.5e-3}
    asks = "orm"


class ParmClarity(OrmQuestion):
    """P(yes) that a picture on its way can be judged at all: the first of PARM's two questions (Guo et al., 2025).

    The authors ask a LLaVA-OneVision that they taught to answer, whose files are in a layout that is not read here, and
    go on to the second question where it says yes.
    """

    spec = replace(YesNo.spec, name="judge.parm_clarity", source="arXiv:2501.13926")
    drift = {"bfloat16": 4.7e-3}
    asks = "parm.clarity"


class ParmPotential(OrmQuestion):
    """P(yes) that a picture on its way may come to fit its prompt: the second of PARM's questions (Guo et al., 2025).

    The chat goes on after the first question, `judge.parm_clarity`, to which the model is taken to have said yes. It is
    a judge for `rwk sample --search parm`.
    """

    spec = replace(YesNo.spec, name="judge.parm_potential", source="arXiv:2501.13926")
    drift = {"bfloat16": 5.3e-3}
    asks = "parm.potential"


class ReasonGen(YesNo):
    r"""P(1) among 1 and 0 in the box of ReasonGen-R1's rubric: whether the image fits its prompt to the letter.

    The authors (2025) have Qwen2.5-VL-7B-Instruct describe the image and reason first, the likeliest word each time,
    take the digit in the last `\boxed{}`, and give 0 where there is none. Here the answer opens with the box: one
    forward pass and a chance instead of 0 or 1, without the reasoning that the rubric asks for, so the two may part.
    They cut "A photo of " out of prompts, which their generator's template put in; here a prompt stays as it is. A
    model whose chat template puts images first sees the image before the prompt.
    """

    spec = replace(YesNo.spec, name="judge.reasongen", unit="P(1) among 1 and 0", source="arXiv:2505.24875")
    drift = {"bfloat16": 8.9e-3}
    asks = "reasongen"


class VqaScoreLlavaOv(VqaScore):
    """P(Yes) in answer to VQAScore's question as t2v_metrics 3.0 words it for LLaVA-OneVision, by default that model.

    The question, the answer and the softmax are that code's, the rest is not: it opens the chat with a turn of the
    system, applies the checkpoint's repetition penalty, and takes a picture's tiles for the frames of a video. Here the
    model reads a picture and a chat as its publishers at llava-hf have it. So figures compare only with such of rwk.
    """

    spec = replace(VqaScore.spec, name="vqascore.llava_ov")
    hub = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    drift = {"bfloat16": 9.5e-3}
    asks = "vqascore.llava_ov"
