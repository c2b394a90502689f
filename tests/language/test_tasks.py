"""Questions are the same for equal numbers, splits share none, and a user's own task can do no harm but a line."""

import json

import pytest

from distqtrl.errors import Foreign, UserError
from distqtrl.language import arithmetic, tasks
from distqtrl.language.own import Own
from distqtrl.language.questions import Question

OWN = '''"""Reverse a word: 30 lines or fewer are a task."""

WORDS = {"train": ["stone", "water", "cloud"], "test": ["river"]}


def questions(split):
    return [(f"{word} backwards: ", word[::-1]) for word in WORDS[split]]


def reward(completion, answer):
    print("judged", completion)
    return sum(a == b for a, b in zip(completion.strip(), answer)) / len(answer)
'''


@pytest.fixture
def own(tmp_path):
    """own(text) -> the task of that module, ended after the test."""
    made = []

    def task(text, limit_s=20.0):
        (tmp_path / "task.py").write_text(text)
        made.append(Own(tmp_path / "task.py", limit_s))
        return made[-1]

    yield task
    for each in made:
        each.close()


def test_a_sum_is_on_one_side_whatever_its_order():
    assert {split: len(arithmetic.pairs(split)) for split in ("train", "test")} == {"train": 8159, "test": 1841}
    train = set(arithmetic.pairs("train"))
    assert all((b, a) in train for a, b in train)
    tested = arithmetic.pairs("test")
    for digit in range(10):  # no digit and no sum is left out of a split
        assert 0.05 < sum(pair[0] % 10 == digit for pair in tested) / len(tested) < 0.15


def test_arithmetic_is_judged_by_the_whole_answer():
    task = tasks.opened("arithmetic")
    question = task.question("test", 3)
    assert question == task.question("test", 3 + task.size("test"))
    a, b = int(question.prompt[:2]), int(question.prompt[3:5])
    right = str(a + b)[::-1]
    wrong = (right + "0", right[:-1], "", f" {right}")
    assert [task.reward(text, question) for text in (right, *wrong)] == [1, 0, 0, 0, 0]


def lines(path, questions):
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in questions))
    return path


def test_a_file_is_judged_by_the_last_number(tmp_path):
    path = lines(tmp_path / "sums.jsonl", [(f"What is {i} thousand?", f"Easy.\n#### {i},000") for i in range(1, 99)])
    task = tasks.opened(str(path))
    sizes = [task.size(split) for split in ("train", "test")]
    assert (sum(sizes), sizes[1] > 0) == (98, True)
    assert not {task.question("train", i) for i in range(98)} & {task.question("test", i) for i in range(98)}
    question = Question("", "so\n#### 1,200")
    texts = {"It is 1200.": 1, "1,200.0": 1, "3, no: $1200": 1, "1200 or 7": 0, "none": 0, "-1200": 0}
    assert {text: task.reward(text, question) for text in texts} == texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_lines_end_where_json_cannot_go_on(end, tmp_path):
    prompts = [f"{inside}{i}+1=" for i in range(30) for inside in "\u2028\u0085"]
    text = end.join(json.dumps({"question": prompt, "answer": "1"}, ensure_ascii=False) for prompt in prompts)
    (tmp_path / "x.jsonl").write_bytes(text.encode())
    task = tasks.opened(str(tmp_path / "x.jsonl"))
    found = {task.question(split, i).prompt for split in ("train", "test") for i in range(task.size(split))}
    assert found == set(prompts)


def test_tests_lie_beside_a_file_that_is_called_train(tmp_path):
    lines(tmp_path / "my_test.jsonl", [("a", "1"), ("b", "2")])
    task = tasks.opened(str(lines(tmp_path / "my_train.jsonl", [("c", "3")])))
    assert (task.size("train"), task.size("test"), task.question("test", 3).prompt) == (1, 2, "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1: it is not JSON"),
        ('{"question": "a", "answer": "1"}\n[1]', "line 2 is not an object with the keys question and answer"),
        ('{"question": "a"}', "line 1 is not an object"),
        ('{"question": "", "answer": "1"}', "line 1: question and answer are texts"),
        ('{"question": "a", "answer": "one"}', "line 1: the answer 'one' ends in no number"),
        ('{"question": "a", "answer": "1"}', "has no question to train"),
    ],
)
def test_a_file_of_other_lines_is_refused(text, said, tmp_path):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        tasks.opened(str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("arithmetics", "unknown language.task 'arithmetics': did you mean 'arithmetic'"),
        ("missing.jsonl", "missing.jsonl: No such file"),
        ("missing.py", "missing.py: No such file"),
    ],
)
def test_what_is_not_there_is_refused(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        tasks.opened(name)


def test_a_module_of_ones_own(own, capfd):
    task = own(OWN)
    assert [task.size(split) for split in ("train", "test")] == [3, 1]
    question = task.question("train", 4)
    assert question == Question("water backwards: ", "retaw")
    assert [task.reward(text, question) for text in ("retaw", " reta", "")] == [1, 0.8, 0]
    assert "judged retaw" in capfd.readouterr().err


def test_questions_without_end(own):
    task = own("def question(split, number): return split, str(number)\ndef reward(c, a): return c == a")
    assert task.size("train") is None
    assert task.question("test", 10**12) == Question("test", str(10**12))
    assert task.reward("1", Question("test", "1")) == 1


REWARD = "def question(split, number): return 'p', 'a'\ndef reward(completion, answer):\n    "


@pytest.mark.parametrize(
    ("body", "said", "kind"),
    [
        ("return float('nan')", "the reward of the prompt '1 or 2?' is nan: return a finite number", UserError),
        ("return None", "is None: return a finite number", UserError),
        ("return 10**400", "return a finite number", UserError),
        ("return {1, 2}", "is {'type': 'set'}: return a finite number", UserError),
        ("return 1 / 0", "the prompt '1 or 2?' failed: ZeroDivisionError: division by zero", Foreign),
        ("raise SystemExit", "failed: SystemExit", Foreign),
        ("import os; os._exit(3)", "its process ended in the reward of the prompt '1 or 2?'", UserError),
        ("import re; re.match('(a+)+b', 'a' * 60)", "the prompt '1 or 2?' took more than 0.5 s", UserError),
    ],
)
def test_a_reward_that_is_none_is_a_line(body, said, kind, own):
    task = own(REWARD + body, limit_s=0.5)
    with pytest.raises(kind) as refused:
        task.reward("completion", Question("1 or 2?", "a"))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rewards_are_numbers_of_any_kind(own):
    task = own(f"import numpy as np\nfrom fractions import Fraction\n{REWARD}return eval(completion)")
    made = ["np.float32(0.5)", "np.float64(0.5)", "np.int64(2)", "np.bool_(True)", "np.array(3.0)", "Fraction(1, 4)"]
    assert [task.reward(text, Question("p", "a")) for text in made] == [0.5, 0.5, 2, 1, 3, 0.25]


def test_the_traceback_is_of_the_users_own_code(own):
    with pytest.raises(Foreign) as raised:
        own(REWARD + "return 1 / 0", limit_s=20).reward("", Question("p", "a"))
    assert "task.py" in raised.value.trace
    assert "verifier.py" not in raised.value.trace


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x =", "import failed: .*SyntaxError"),
        ("def reward(c, a): return 1", "has not what a task needs: define reward"),
        ("def questions(s): return [1]\ndef reward(c, a): return 1", r"questions\('train'\) has 1: a question is"),
        (
            "def questions(s): return [{'question': '1+1=', 'answer': '2'}]\ndef reward(c, a): return 1",
            r"has \{'question': '1\+1=', 'answer': '2'\}: a question is \(prompt, answer\), both texts",
        ),
        ("def questions(s): return ['ab']\ndef reward(c, a): return 1", "has 'ab': a question is"),
        ("def questions(s): yield 'a', 'b'\ndef reward(c, a): return 1", "is {'type': 'generator'}: return a list"),
        ("def questions(s): return []\ndef reward(c, a): return 1", r"questions\('train'\) is \[\]: return a list"),
    ],
)
def test_a_module_that_is_no_task_is_refused(text, said, own):
    with pytest.raises(UserError, match=said):
        own(text).question("train", 0)


def test_a_signal_to_all_of_the_terminal_is_not_for_the_task(own):
    """Ctrl-C reaches every process of the terminal's group; training asks for rewards until it has stopped."""
    task = own(REWARD + "import os; return float(os.getpgid(0) == os.getpid())")
    assert task.reward("", Question("p", "a")) == 1
