"""Run a notebook and write down what it shows: python examples/make_notebook.py [examples/notebook.ipynb]"""

import json
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def executed(path: Path) -> nbformat.NotebookNode:
    """Run it in an empty folder; nothing of the machine or the hour stays in it."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return notebook


if __name__ == "__main__":
    notebook = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("notebook.ipynb")
    notebook.write_text(json.dumps(executed(notebook), indent=1, ensure_ascii=False) + "\n")
