import numpy as np
import pytest

from fe_posttrain.support.counts import Counts, aligned, read_counts


def written(folder, text, name="a.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_columns_come_in_any_order_and_others_are_not_read(tmp_path):
    text = '\ufeffdrawn, note ,correct,prompt_id,family\n8,x,3,one,easy\n\n4,,4,"two, quoted",\n'
    counts = read_counts(written(tmp_path, text))
    assert counts.prompt_ids == ("one", "two, quoted")
    assert counts.correct.tolist() == [3, 4]
    assert counts.drawn.tolist() == [8, 4]
    assert counts.tags == ("easy", None)
    assert counts.p.tolist() == [0.375, 1.0]
    assert {name: rows.tolist() for name, rows in counts.families().items()} == {"easy": [0]}


def test_a_column_named_tag_is_a_family_and_no_column_is_none(tmp_path):
    assert read_counts(written(tmp_path, "prompt_id,correct,drawn,tag\na,1,2,t\n")).tags == ("t",)
    assert read_counts(written(tmp_path, "prompt_id,correct,drawn\na,1,2\n")).tags is None


HEAD = "prompt_id,correct,drawn\n"
BAD = {
    "empty file": ("", ["line 1", "found nothing", "write prompt_id,correct,drawn"]),
    "only names": (HEAD, ["no prompt", "prompt_id,correct,drawn"]),
    "semicolons": ("prompt_id;correct;drawn\na;1;2\n", ["line 1", "'prompt_id;correct;drawn'", "separated by commas"]),
    "missing column": ("prompt_id,correct\na,1\n", ["line 1", "no column 'drawn'"]),
    "family and tag": ("prompt_id,correct,drawn,tag,family\na,1,2,x,y\n", ["line 1", "'family', 'tag'", "keep one"]),
    "more correct than drawn": (HEAD + "a,1,4\nb,5,4\n", ["line 3", "5 correct of 4 drawn"]),
    "half a hit": (HEAD + "a,0.5,4\n", ["line 2", "correct is '0.5'", "whole numbers"]),
    "negative": (HEAD + "a,0,-4\n", ["line 2", "drawn is '-4'"]),
    "not a number": (HEAD + "a,nan,4\n", ["line 2", "correct is 'nan'"]),
    "one draw": (HEAD + "a,1,1\n", ["line 2", "drawn is 1", "draw more"]),
    "too many": (HEAD + "a,1,1000000000000000000000\n", ["line 2", "1e+09"]),
    "doubled": (HEAD + "a,1,4\nb,1,4\na,2,4\n", ["line 4", "prompt 'a' is on line 2 already"]),
    "no name": (HEAD + " ,1,4\n", ["line 2", "prompt_id is empty"]),
    "short line": (HEAD + "a,1\n", ["line 2", "2 cells under 3 columns"]),
    "open quote": (HEAD + '"a,1,4\n', ["no CSV"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_file_line_and_remedy(case, tmp_path):
    text, expected = BAD[case]
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_counts(path)
    assert str(caught.value).startswith(str(path))
    assert [words for words in expected if words not in str(caught.value)] == []


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(HEAD.encode() + b"\xff\xfe,1,2\n")
    with pytest.raises(ValueError, match="no UTF-8 text at byte 24"):
        read_counts(tmp_path / "a.csv")


def test_both_sides_come_in_one_order_with_the_tags_that_either_has():
    one = Counts(("a", "b", "c"), [1, 2, 3], [4, 4, 4])
    other = Counts(("c", "a", "b"), [7, 5, 6], [8, 8, 9], ("z", "x", "x"))
    reference, trained = aligned(one, other)
    assert trained.prompt_ids == reference.prompt_ids == ("a", "b", "c")
    assert trained.correct.tolist() == [5, 6, 7]
    assert trained.drawn.tolist() == [8, 9, 8]
    assert reference.tags == trained.tags == ("x", "x", "z")


def test_prompts_of_one_side_only_are_named():
    one = Counts(tuple("abcdef"), [1] * 6, [4] * 6, source="A.csv")
    other = Counts(("f", "g"), [1, 1], [4, 4], source="B.csv")
    with pytest.raises(ValueError) as caught:
        aligned(one, other)
    assert "B.csv: 5 prompts of A.csv missing ('a', 'b', 'c', ...)" in str(caught.value)
    assert "A.csv: 1 prompt of B.csv missing ('g')" in str(caught.value)


def test_two_tags_for_one_prompt_are_refused():
    one = Counts(("a", "b"), [1, 1], [4, 4], ("x", "x"), "A.csv")
    other = Counts(("b", "a"), [1, 1], [4, 4], ("y", "x"), "B.csv")
    with pytest.raises(ValueError, match=r"prompt 'b': tag 'x' in A\.csv, 'y' in B\.csv"):
        aligned(one, other)


def test_counts_made_in_code_are_checked_too():
    with pytest.raises(ValueError, match="row 1: 5 correct of 4 drawn"):
        Counts(("a", "b"), [1, 5], [4, 4])
    with pytest.raises(ValueError, match="'a' occurs twice"):
        Counts(("a", "a"), [1, 1], [4, 4])
    with pytest.raises(ValueError, match="rows"):
        Counts(("a", "b"), [1], [4])


def test_thinning_leaves_as_many_draws_as_the_poorest_has_and_the_mean():
    counts = Counts(("a", "b", "c", "d"), [0, 30, 100, 2], [100, 100, 100, 10])
    thinned = [counts.evened(seed) for seed in range(400)]
    assert all(t.drawn.tolist() == [10] * 4 for t in thinned)
    hits = np.array([t.correct for t in thinned])
    assert (hits[:, [0, 2, 3]] == [0, 10, 2]).all()
    assert abs(hits[:, 1].mean() - 3.0) < 0.3  # hypergeometric, sd 1.38: 4.3 standard errors of 400
    even = Counts(("a", "b"), [1, 2], [4, 4])
    assert even.evened() is even
