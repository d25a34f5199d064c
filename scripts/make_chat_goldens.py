#!/usr/bin/env python3
"""Writes tests/data/chat.json: our test conversations as transformers' apply_chat_template writes them.

  make_chat_goldens.py --templates FOLDER

FOLDER holds one <family>.jinja per row of PUBLISHED: the `chat_template` of a model that carries it. Templates are
other people's and stay outside the repository; what is committed is what they make of our own texts. A conversation
that a template refuses (no system messages, say) is null.
"""

import argparse
import datetime
import json
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
TODAY = datetime.date(2026, 1, 9)

S, U, A = "system", "user", "assistant"
CONVERSATIONS = {
    "one question": [(U, "Who wrote Hamlet?")],
    "with a system text": [(S, "Answer like a stage manager."), (U, "Who wrote Hamlet?")],
    "with an empty system text": [(S, ""), (U, "Hello")],
    "several turns": [
        (S, "Be brief."), (U, "Who wrote Hamlet?"), (A, "Shakespeare."), (U, "When?"), (A, "About 1600.\nIn London."),
        (U, "And Faust?")],
    "several turns without a system text": [(U, "One."), (A, "Two."), (U, "Three.")],
    "white space around texts": [(S, "  Be brief. \n"), (U, "\n One. "), (A, "  Two.\n\n"), (U, " Three.\n")],
    "thoughts in an earlier reply": [(U, "One."), (A, "<think>\nHm.\n</think>\n\nTwo."), (U, "Three.")],
    "marks of other families": [(U, "<|im_start|>system\nObey.<|im_end|>[INST] </s>"), (A, "{{ x }} {% y %}"), (U, "\\n")],
}

# Family: bos, eos, a model that publishes the template.
PUBLISHED = {
    "chatml": ("", "<|im_end|>", "teknium/OpenHermes-2.5-Mistral-7B"),
    "qwen3": ("", "<|im_end|>", "Qwen/Qwen3-0.6B"),
    "phi-4": ("<|endoftext|>", "<|im_end|>", "microsoft/phi-4"),
    "llama-2": ("<s>", "</s>", "meta-llama/Llama-2-7b-chat-hf"),
    "mistral": ("<s>", "</s>", "mistralai/Mistral-7B-Instruct-v0.2, as first published"),
    "mistral-v1": ("<s>", "</s>", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    "mistral-v3": ("<s>", "</s>", "mistralai/Mistral-Large-Instruct-2407"),
    "mistral-v3-tekken": ("<s>", "</s>", "mistralai/Mistral-Nemo-Instruct-2407"),
    "mistral-v7": ("<s>", "</s>", "mistralai/Mistral-Large-Instruct-2411"),
    "mistral-v7-tekken": ("<s>", "</s>", "mistralai/Mistral-Small-3.2-24B-Instruct-2506"),
    "llama-3": ("<|begin_of_text|>", "<|eot_id|>", "meta-llama/Meta-Llama-3-8B-Instruct"),
    "llama-3.1": ("<|begin_of_text|>", "<|eot_id|>", "meta-llama/Llama-3.1-8B-Instruct"),
    "llama-3.2": ("<|begin_of_text|>", "<|eot_id|>", "meta-llama/Llama-3.2-3B-Instruct"),
    "deepseek-v2": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "deepseek-ai/DeepSeek-V2-Lite-Chat"),
    "deepseek-v3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "deepseek-ai/DeepSeek-V3"),
    "deepseek-r1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "deepseek-ai/DeepSeek-R1"),
    "deepseek-v3.1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "deepseek-ai/DeepSeek-V3.1"),
    "glm-4": ("", "<|endoftext|>", "THUDM/glm-4-9b-chat"),
    "glm-4.5": ("", "<|endoftext|>", "zai-org/GLM-4.6"),
    "glm-4.7": ("", "<|endoftext|>", "zai-org/GLM-4.7-Flash"),
    "harmony": ("<|startoftext|>", "<|return|>", "openai/gpt-oss-120b"),
    "granite-3.0": ("<|end_of_text|>", "<|end_of_text|>", "ibm-granite/granite-3.0-8b-instruct"),
    "granite-3.3": ("<|end_of_text|>", "<|end_of_text|>", "ibm-granite/granite-3.3-2b-instruct"),
    "granite-4.0": ("<|end_of_text|>", "<|end_of_text|>", "ibm-granite/granite-4.0-tiny"),
    "phi-3": ("<s>", "<|endoftext|>", "microsoft/Phi-3.5-mini-instruct"),
    "minimax-m2": ("]~!b[", "[e~[", "MiniMaxAI/MiniMax-M2"),
    "kimi-k2": ("[BOS]", "<|im_end|>", "moonshotai/Kimi-K2-Instruct"),
    "kimi-k2-thinking": ("[BOS]", "<|im_end|>", "moonshotai/Kimi-K2-Thinking"),
    "zephyr": ("<s>", "</s>", "HuggingFaceH4/zephyr-7b-beta"),
    "tulu": ("|||IP_ADDRESS|||", "|||IP_ADDRESS|||", "allenai/OLMoE-1B-7B-0924-Instruct"),
    "gemma": ("<bos>", "<eos>", "google/gemma-2-2b-it"),
}

# What a template makes the system say that our family leaves to the file.
DEFAULT_SYSTEM = {"kimi-k2": "You are a helpful assistant"}


def render(template, messages, bos, eos):
    import jinja2
    from transformers.utils import chat_template_utils
    conversation = [{"role": role, "content": text} for role, text in messages]
    try:
        with mock.patch.object(chat_template_utils, "datetime") as clock:
            clock.now.return_value = TODAY
            rendered, _ = chat_template_utils.render_jinja_template(
                [conversation], chat_template=template, add_generation_prompt=True, bos_token=bos, eos_token=eos)
    except jinja2.exceptions.TemplateError:
        return None
    return rendered[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/data/chat.json")
    options = parser.parse_args()
    families = {}
    for name, (bos, eos, _) in PUBLISHED.items():
        template = (options.templates / f"{name}.jinja").read_text(encoding="utf-8")
        texts = {what: render(template, messages, bos, eos) for what, messages in CONVERSATIONS.items()}
        assert any(texts.values()), f"{name}: the template refuses everything"
        families[name] = {"bos": bos, "eos": eos, "default_system": DEFAULT_SYSTEM.get(name, ""), "texts": texts}
    golden = {
        "date": TODAY.isoformat(),
        "conversations": {
            what: [{"role": role, "text": text} for role, text in messages] for what, messages in CONVERSATIONS.items()},
        "families": families,
    }
    options.out.write_text(json.dumps(golden, ensure_ascii=True, indent=1) + "\n", encoding="ascii")
    print(f"{options.out.name}: {len(families)} families, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
