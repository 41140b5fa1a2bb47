"""The software bill of materials: a valid CycloneDX document of what the node installs."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy.sbom import Json, sbom
from engines.bundle import load_bundle
from tests.support.locks import pins


@pytest.fixture(scope="module")
def document() -> Json:
    return sbom()


def of_type(document: Json, kind: str) -> dict[str, Json]:
    return {c["name"].lower().replace("_", "-"): c for c in document["components"] if c["type"] == kind}


def test_it_is_valid(document: Json) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None


def test_it_names_what_the_lock_pins_with_licence_and_hashes(document: Json) -> None:
    locked = pins("requirements.lock")
    packages = of_type(document, "library")
    assert {n for n, p in locked.items() if p.marker is None or p.marker.evaluate()} <= packages.keys() <= locked.keys()
    for name, package in packages.items():
        assert package["licenses"], name
        assert any(h["alg"] == "SHA-256" for r in package["externalReferences"] for h in r.get("hashes", [])), name


def test_it_names_the_libraries_inside_wheels(document: Json) -> None:
    inside = of_type(document, "library")["opencv-python-headless"]["components"]
    assert any(library["name"].startswith("libavcodec") for library in inside)


def test_it_names_the_models(document: Json) -> None:
    models = of_type(document, "machine-learning-model")
    for name in ("cxr3-lite2", "resnet50-cxr3"):
        assert models[name]["properties"] == [{"name": "cxrnode:bundle-digest", "value": load_bundle(name).digest}]


def test_everything_it_depends_on_is_in_it(document: Json) -> None:
    named = {c["bom-ref"] for c in document["components"]}
    root = next(d for d in document["dependencies"] if d["ref"] == "root-component")
    assert set(root["dependsOn"]) == named
