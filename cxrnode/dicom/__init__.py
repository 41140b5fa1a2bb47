"""The DICOM standard, no policy of the node's stages.

pydicom is set here, once for the process, for its settings are no thread's own: it validates no value that is read or
built (what is not valid is the sources' daily bread, and results have their own check), and it says nothing, for its
warnings and its log quote values, which may be patient data.
"""

from __future__ import annotations

import logging
import warnings

from pydicom import config

config.settings.reading_validation_mode = config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").propagate = False  # it has a handler that drops all: nothing goes past it now
