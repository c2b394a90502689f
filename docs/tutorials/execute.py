"""Execute notebooks of this folder, each by a Jupyter kernel in an empty folder, and keep what they print.

    python docs/tutorials/execute.py [NAME.ipynb ...]

Not kept is what would differ the next time for no reason: progress, seconds, paths of this machine, execution counts.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
PROGRESS = re.compile(r"^update .* steps/s.*\n|^compiling .*\n", re.MULTILINE)
SECONDS = re.compile(r"[\d.]+ s of training")


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; raises nbclient's CellExecutionError where a cell does."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.execution_count = None
                cell.outputs = joined([kept(output, folder) for output in cell.outputs if not progress(output)])
    notebook.metadata = METADATA
    return notebook


def progress(output: nbformat.NotebookNode) -> bool:
    """Whether it is a word for people who wait."""
    shown = output.get("data", {}).get("text/plain", "")
    return output.get("name") == "stderr" or PROGRESS.match(f"{shown}\n") is not None


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Text that came in pieces, as it happened to, in one."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and "text" in output and "text" in found[-1]:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def kept(output: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """An output without what belongs to this execution."""
    output.pop("execution_count", None)
    if output.output_type == "execute_result":
        output.execution_count = None
    if "text" in output:
        text = PROGRESS.sub("", output.text.replace("\r\n", "\n"))
        text = text.replace(folder, "/home/you/try").replace(sys.prefix, "/home/you/venv")
        output.text = SECONDS.sub("... s of training", text)
    if "data" in output:
        output.metadata = {}
    return output


def main() -> None:
    """Rewrite those that are named, or all."""
    os.environ["TTY_COMPATIBLE"] = "0"  # commands in cells draw no bar
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for path in [Path(word) for word in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        text = nbformat.writes(executed(path))
        path.write_text(text + "\n")
        print(path.name)


if __name__ == "__main__":
    main()
