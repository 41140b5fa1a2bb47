"""What the ledger says: queries, a study's story, verification, anchors, exports. A library: the CLI is a thin skin."""
