"""What came of a plan when it was used: kept beside it, so that no start has to find out again.

Two things are worth keeping: that a plan's first images were shadowed to the end (see shadow), and that a plan which
had been built anew erred as well, for then the next build would err too, and each takes minutes.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from engines.base import EngineError
from engines.bundle import MODEL, Bundle
from engines.files import whole
from engines.plan import TRIAL, Machine, Plan, Precision, plan_path

_log = logging.getLogger(__name__)


class _Trial(BaseModel):
    """NAME.trial beside NAME.plan. It is void where model, GPU, driver or TensorRT are no longer these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    onnx_sha256: str
    gpu: str
    compute_capability: str
    driver: str
    module: str
    version: str
    plan_sha256: str
    failed: str = ""  # why, where no other plan would do better; "": this plan was shadowed to the end
    at: AwareDatetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Of the plans of one bundle in one precision, on this machine. `engines.plan.write_plan` forgets them."""

    folder: Path
    bundle: Bundle
    machine: Machine
    precision: Precision

    def refuse_failed(self) -> None:
        """Raises EngineError where a plan that was built anew failed here, and nothing has changed since then."""
        found = self._read()
        if found and found.failed:
            raise EngineError(
                f"an engine file that was built anew for {self.machine.gpu} erred as well on "
                f"{found.at:%Y-%m-%d %H:%M} UTC ({found.failed}), so none is built or used until the model, the GPU, "
                "its driver or TensorRT is another; to try again: cxrnode engine build"
            )

    def shadowed(self, plan: Plan) -> bool:
        """Whether that very plan was shadowed to the end here."""
        found = self._read()
        return found is not None and not found.failed and found.plan_sha256 == plan.sidecar.plan_sha256

    def remember(self, plan: Plan, *, failed: str = "") -> None:
        """A file that cannot be written costs a repetition, and no more: it is logged."""
        trial = _Trial(**self._here(), plan_sha256=plan.sidecar.plan_sha256, failed=failed, at=datetime.now(UTC))
        try:
            with whole(self._path, mode=0o600) as part:
                part.write_text(trial.model_dump_json(indent=1))
        except OSError as e:
            _log.warning("cannot write %s (%s): what was found out will be found out again", self._path, e.strerror)

    @property
    def _path(self) -> Path:
        return plan_path(self.folder, self.bundle, self.precision).with_suffix(TRIAL)

    def _here(self) -> dict[str, str]:
        return {"onnx_sha256": self.bundle.manifest.files[MODEL], **asdict(self.machine)}

    def _read(self) -> _Trial | None:
        """None where there is none, or none of this model, machine and software."""
        try:
            found = _Trial.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            _log.warning("%s cannot be read: what it says will be found out again", self._path)
            return None
        return found if self._here().items() <= found.model_dump().items() else None
