"""The node's software bill of materials, CycloneDX 1.6 JSON: `make sbom`, or `python -m deploy.sbom FILE`.

What requirements.lock pins, as it lies in this environment: versions and licences by the packages' own word, the hashes
of what is installed from the index, the shared libraries inside the wheels, and the model bundles.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.bundle import Bundle, load_bundle, sha256_file, shipped_bundles

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
# packages that declare no licence in their metadata, by the LICENSE file in their source
UNDECLARED = {"protobuf": "BSD-3-Clause"}

Json = dict[str, Any]


def sbom() -> Json:
    """The whole document; components in the order of their names, nothing in it depends on the time."""
    whole = _cyclonedx("environment", "--pyproject", ROOT / "pyproject.toml", sys.executable)
    locked = {_key(c): c for c in _cyclonedx("requirements", LOCK)["components"]}
    packages = [_package(c, locked[_key(c)]) for c in whole["components"] if _key(c) in locked]
    models = [_model(load_bundle(str(folder))) for folder in shipped_bundles()]
    kept = {c["bom-ref"] for c in packages}
    root = whole["metadata"]["component"]
    return whole | {
        "components": packages + models,
        "dependencies": [
            d | {"dependsOn": sorted(kept.intersection(d.get("dependsOn", [])))}
            for d in whole["dependencies"]
            if d["ref"] in kept
        ]
        + [{"ref": root["bom-ref"], "dependsOn": sorted(kept) + [m["bom-ref"] for m in models]}],
    }


def _cyclonedx(*arguments: str | Path) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "bom.json")
        command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", *arguments, "--output-reproducible", "-o", out]
        subprocess.run([str(a) for a in command], check=True)
        document: Json = json.loads(out.read_text())
    return document


def _key(component: Json) -> str:
    return str(component["name"]).lower().replace("_", "-")


def _package(component: Json, locked: Json) -> Json:
    """`component` of the environment with the hashes of the lock, and the libraries in its wheel."""
    made = component | {"externalReferences": component.get("externalReferences", []) + locked["externalReferences"]}
    if not made.get("licenses"):
        made["licenses"] = [{"license": {"id": UNDECLARED[_key(component)]}}]
    if libraries := _libraries(component["name"]):
        made["components"] = libraries
    return made


def _libraries(package: str) -> list[Json]:
    files = metadata.files(package) or []
    inside = [f for f in files if f.parts[0].endswith(".libs") and ".so" in f.name]
    return [
        {"type": "file", "name": f.name, "hashes": [_sha256(Path(str(f.locate())))], "bom-ref": f"{package}/{f.name}"}
        for f in sorted(inside, key=str)
    ]


def _model(bundle: Bundle) -> Json:
    return {
        "type": "machine-learning-model",
        "bom-ref": f"bundle/{bundle.name}",
        "name": bundle.name,
        "version": bundle.manifest.version,
        "licenses": [{"license": {"name": bundle.manifest.license}}],
        "hashes": [_sha256(bundle.model_path)],
        "properties": [{"name": "cxrnode:bundle-digest", "value": bundle.digest}],
    }


def _sha256(path: Path) -> Json:
    return {"alg": "SHA-256", "content": sha256_file(path)}


if __name__ == "__main__":
    document = sbom()
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    print(f"{sys.argv[1]}: {len(document['components'])} components")
