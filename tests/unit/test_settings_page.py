"""docs/settings.md lists what can be set: written by code (`make settings`), and not stale."""

import re
from pathlib import Path

from dbserve.settings import PREFIX, Settings
from tests.settings_page import page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_settings_is_what_the_code_would_write():
    assert (DOCS / "settings.md").read_text() == page(), "make settings"


def test_every_setting_is_said_what_it_is_for():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_pages_name_no_setting_that_there_is_none_of():
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = {
        (path.name, name)
        for path in (*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "SECURITY.md")
        for name in re.findall(rf"{PREFIX}[A-Z_]*[A-Z]\b(?!_)", path.read_text())
    }
    assert {(page, name) for page, name in named if name not in known | ELSEWHERE and not name.startswith(ACL)} == set()


# Read by the client and the command line, by tests and by examples: no settings of the service.
ELSEWHERE = {"DBSERVE_URL", "DBSERVE_PROJECT", "DBSERVE_REQUIRE_SERVERS", "DBSERVE_SCREENSHOTS"}
ACL = "DBSERVE_ACL_"  # what `dbserve redis-acl` reads
