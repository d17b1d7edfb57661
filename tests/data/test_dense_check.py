"""`lowtide data check` of a folder that holds no boxes or masks."""

from __future__ import annotations

import trees

from lowtide.cli import main


def test_a_folder_without_dense_labels_is_one_line_for_a_dense_task(tmp_path, capsys):
    trees.image(tmp_path / "cat" / "0.png", "a")
    assert main(["data", "check", str(tmp_path), "--task", "segment"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "holds no dense labels: expected one of ADE20K" in said
