from odenets.progress import no_progress, progress_bar


def test_items_come_through_and_nothing_is_shown_off_a_terminal(capsys):
    assert list(progress_bar([1, 2, 3], "Counting")) == list(no_progress([1, 2, 3], "Counting")) == [1, 2, 3]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
