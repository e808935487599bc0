"""Full-size checks on the real records: `make test-slow`, with ODENETS_DATA."""

import os

import pytest

from odenets.experiments import ecg

needs_records = pytest.mark.skipif("ODENETS_DATA" not in os.environ, reason="needs the records: set ODENETS_DATA")


@pytest.mark.slow
@needs_records
def test_twins_reach_the_documents_numbers_on_the_random_split(tmp_path):
    """Section 5: cross entropy 0.10 and 0.09, accuracy 97.5 %.

    One seed of three trainings is held to what nine of ten reach (results/ecg.json): the tenth ends at 0.954 and 0.154.
    """
    result = ecg.run(ecg.Config(data="mitdb", baselines=False), tmp_path, progress=False)
    for row in result.summary["table"]:
        assert row["test_loss"] < 0.12, row["network"]
        assert row["accuracy"] > 0.96, row["network"]
