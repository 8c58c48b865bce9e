"""Open a checkpoint in vLLM on the CPU, and write the log-probabilities of token ids and a greedy continuation.

    PYTHON bench/vllm_answer.py CHECKPOINT QUESTIONS ANSWERS

Runs by the interpreter of an environment that has vLLM, and imports nothing of this project. QUESTIONS is a JSON file
{"ids": [[…], …], "prompt": […], "generate": 16}.
"""

import json
import os
import sys
from pathlib import Path

# One process, no look at the network, and a key/value cache of 1 GiB.
os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}


def main(checkpoint: str, questions: str, answers: str) -> None:
    """Answer the questions about one checkpoint."""
    import vllm  # type: ignore[import-not-found]

    asked = json.loads(Path(questions).read_text(encoding="utf-8"))
    longest = max(map(len, (*asked["ids"], asked["prompt"]))) + asked["generate"]
    engine = vllm.LLM(
        checkpoint,
        dtype="bfloat16",
        max_model_len=longest,
        max_num_batched_tokens=longest,
        max_num_seqs=4,
        enforce_eager=True,
        trust_remote_code=True,
    )
    every = [{"prompt_token_ids": ids} for ids in asked["ids"]]
    scored = engine.generate(every, vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
    chosen = [
        [each.prompt_logprobs[place][token].logprob for place, token in enumerate(each.prompt_token_ids) if place]
        for each in scored
    ]
    (going_on,) = engine.generate(
        [{"prompt_token_ids": asked["prompt"]}], vllm.SamplingParams(max_tokens=asked["generate"], temperature=0)
    )
    found = {"version": vllm.__version__, "chosen": chosen, "generated": list(going_on.outputs[0].token_ids)}
    Path(answers).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
