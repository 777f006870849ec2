"""What the tests of the page share."""

from tests.scripts.conftest import command as command
