"""A multiple-choice task for lm-eval whose every part lies in one folder."""

import json
from pathlib import Path

NAME = "next_word"
EXAMPLES = 12

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""

GROUP = """\
group: words
task: [next_word, other_word]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
metadata: {version: 3.0}
"""


def write_task(folder: Path, name: str = NAME, data: str = "questions.json", **changes: str) -> Path:
    """Writes the task, whose data is named by a path relative to the folder; `changes` are more lines of its YAML."""
    folder.mkdir(exist_ok=True)
    questions = [
        {"question": f"the quick brown {number}", "choices": ["fox", "dog", "quartz"], "answer": number % 3}
        for number in range(EXAMPLES)
    ]
    (folder / "questions.json").write_text("\n".join(map(json.dumps, questions)))
    more = "".join(f"{key}: {value}\n" for key, value in changes.items())
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + more)
    return folder


def write_group(folder: Path) -> Path:
    """Writes `words`, a group of two tasks with a figure for both together."""
    for name in (NAME, "other_word"):
        write_task(folder, name)
    (folder / "words.yaml").write_text(GROUP)
    return folder
