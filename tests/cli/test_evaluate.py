"""distqtrl evaluate: needs the policy file alone, and draws what it played."""

import json


def test_evaluate_reads_the_policy_file_alone(trained, command, tmp_path):
    code, out, _ = command("evaluate", trained, "--episodes", 3, "--json")
    moved = tmp_path / "elsewhere.safetensors"
    (trained / "policy.safetensors").rename(moved)
    again = command("evaluate", moved, "--episodes", 3, "--json")
    assert code == 0
    assert again == (0, out, "")
    result = json.loads((trained / "result.json").read_text())
    assert json.loads(out)["mean"] == result["evaluation"]["mean"]
    assert "CartPole-v1: return" in command("evaluate", moved, "--episodes", 3)[1]


def test_evaluate_draws_its_first_episode(trained, command, tmp_path):
    plain = json.loads(command("evaluate", trained, "--episodes", 2, "--json")[1])
    file = tmp_path / "first.gif"
    code, out, err = command("evaluate", trained, "--episodes", 2, "--json", "--gif", file)
    drawn = json.loads(out)
    assert (code, err, drawn.pop("gif")["file"], drawn) == (0, "", str(file), plain)
    assert file.read_bytes().startswith(b"GIF89a")
    code, out, _ = command("evaluate", trained, "--episodes", 1, "--gif", file)
    first = float(out.split("return ")[1].split()[0])  # the mean of one
    assert out.splitlines()[1] == f"{file} shows the first of them, return {first:.2f}"
    before = sorted(tmp_path.iterdir())
    for path in (tmp_path / "first.png", tmp_path / "nowhere" / "first.gif"):
        code, out, err = command("evaluate", trained, "--gif", path)
        assert (code, out, err.count("\n"), sorted(tmp_path.iterdir())) == (2, "", 1, before)
        assert f"--gif {path} " in err
