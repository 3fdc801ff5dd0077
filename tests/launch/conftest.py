"""A fresh machine of stand-ins for each test of the launchers."""

import pytest

from tests.launch.machine import Machine


@pytest.fixture
def machine(tmp_path):
    """A folder with the launchers, and a PATH on which the cloud's programs are what the test makes them."""
    return Machine(tmp_path)
