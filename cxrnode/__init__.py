"""cxrnode: a batch-inference node for chest radiographs in PACS/DICOM workflows. Research use, not for diagnosis."""

from importlib.metadata import version

__version__ = version("cxrnode")
