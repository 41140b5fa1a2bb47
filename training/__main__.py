"""python -m training."""

from __future__ import annotations

import sys

_OURS = ("training", "engines", "cxrnode")
_MISSING = """\
error: training needs {}, which is not installed. In the checkout, where there is no NVIDIA GPU (without the first line
pip brings CUDA, 6.5 GB):
  pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
  pip install -e '.[train]'
"""


def main() -> None:
    """Run the command; where what the extra `train` brings is not installed, say how it is."""
    try:
        from training.command import main as run  # noqa: PLC0415
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        if missing in _OURS:
            raise
        sys.stderr.write(_MISSING.format(missing))
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
