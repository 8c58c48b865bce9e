"""Answer a question with a GGUF file in llama.cpp, in a process that imports nothing of ours.

Usage: python demo/chat.py FILE QUESTION
"""

import sys

import xllamacpp

NEW_TOKENS = 48
CONTEXT = 1024


def main(file: str, question: str) -> None:
    """Print the answer that llama.cpp's server gives, with the file's own chat template and without chance."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx = CONTEXT
    parameters.verbosity = -1
    asked = {"messages": [{"role": "user", "content": question}], "max_tokens": NEW_TOKENS, "temperature": 0.0}
    answer = xllamacpp.Server(parameters).handle_chat_completions(asked)
    sys.stdout.write(str(answer["choices"][0]["message"]["content"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
