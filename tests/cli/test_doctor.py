"""distqtrl doctor on one rank."""

import json


def test_doctor(command):
    code, out, _ = command("doctor", "--json")
    assert code == 0
    assert json.loads(out)["ranks"][0]["rank"] == 0
    assert "rank 0 of 1" in command("doctor")[1]
