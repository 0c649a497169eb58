"""Documents that repeat what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from fabricate import fabricate_run
from robseg.records.result import Result

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "docs" / "result.schema.json"


def test_the_json_schema_is_that_of_the_code():
    """It is json.dumps(Result.model_json_schema(mode="serialization"), indent=1)."""
    assert json.loads(SCHEMA.read_text()) == Result.model_json_schema(mode="serialization")


def test_a_result_fits_the_schema_and_every_field_is_documented(tmp_path):
    fabricate_run(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(result, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**result, "clean": 3}, schema)
    text = (ROOT / "docs" / "result.md").read_text()
    assert [name for name in result if f"`{name}" not in text] == []


def test_links_in_the_documents_lead_somewhere():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(documents) > 4
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
