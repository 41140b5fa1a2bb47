"""The DICOM standard, no policy of the node's stages."""
