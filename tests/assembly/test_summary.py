"""What is said of the data before a run begins."""

from jaxpeft.assembly.summary import data_warnings
from jaxpeft.data import SourceSummary, Summary


def summary(*sources):
    """A summary of sources of so many examples and such weights."""
    parts = tuple(
        SourceSummary(f"{n}.json", weight, n, n, n, 0, 0, remarks)
        for n, weight, *remarks in sources
    )
    total = sum(part.examples for part in parts)
    return Summary(total, total, total, 0, 0, (8,), None, parts)


def test_equal_weights_of_unlike_sources_are_told():
    (line,) = data_warnings("training", summary((1000, 1.0), (10, 1.0)))
    # 1,010 draws an epoch, half of them from each: 505 of 10, and of 1,000
    assert "an example of 10.json, which has 10, is shown about 50.5 times" in line
    assert "one of 1000.json, which has 1,000, 0.51 times" in line
    (line,) = data_warnings("training", summary((600, 2.0), (600, 2.0), (30, 2.0)))
    assert "of 30.json, which has 30, is shown about 13.7 times an epoch" in line


def test_weights_by_size_and_like_sources_are_no_surprise():
    assert not data_warnings("training", summary((1000, 1000.0), (10, 10.0)))
    assert not data_warnings("training", summary((1000, 1.0), (400, 1.0)))
    assert not data_warnings("training", summary((10, 1.0)))
    assert not data_warnings("evaluation", summary((1000, 1.0), (10, 1.0)))


def test_remarks_of_sources_are_told():
    told = summary((10, 1.0, "2 rows left out"), (9, 1.0))
    assert data_warnings("evaluation", told) == ["2 rows left out"]


def test_a_source_that_an_epoch_does_not_reach_is_told():
    # Of 1,020 draws it gets 0.34, and with ten times its weight 3.4.
    told = summary((1000, 3.0), (20, 0.001))
    (line,) = data_warnings("training", told)
    assert line.startswith("data.train: 20.json, of weight 0.001, is drawn less than")
    assert not data_warnings("training", summary((1000, 3.0), (20, 0.01)))
